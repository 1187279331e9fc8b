"""A trained model as a folder: safetensors beside the import path of its factory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from legato import errors


def save_model(
    folder: Path, model: nn.Module, factory: str, input_shape: tuple[int, ...], num_classes: int, **about: Any
) -> Path:
    """Write `model.safetensors` and `model.json`; `factory` names what builds the untrained model."""
    from safetensors.torch import save_model as write

    folder.mkdir(parents=True, exist_ok=True)
    write(model, str(folder / "model.safetensors"))
    facts = {"factory": factory, "input_shape": list(input_shape), "num_classes": num_classes, **about}
    (folder / "model.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return folder


def load_model(folder: str | Path, build: Callable[[str, tuple[int, ...], int], nn.Module]) -> nn.Module:
    """The model of a folder, in eval mode; `build` is usually `legato.nets.build`.

    Raises: CheckpointError when the folder holds no model.
    """
    from safetensors.torch import load_model as read

    path = Path(folder)
    if not (path / "model.json").exists():
        raise errors.CheckpointError(
            f"{path} holds no model. Fix: name a folder with model.json and model.safetensors."
        )
    facts = json.loads((path / "model.json").read_text(encoding="utf-8"))
    model = build(facts["factory"], tuple(facts["input_shape"]), facts["num_classes"])
    read(model, str(path / "model.safetensors"))
    return model.eval()
