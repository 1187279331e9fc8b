"""A finished model as a folder: its weights in safetensors, and in JSON how to build the Module they belong to."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from legato import errors
from legato.training.checkpoint import read_tensors, write_tensors

WEIGHTS_FILE = "model.safetensors"
_KEY = "legato"


def save_model(
    folder: Path, model: nn.Module, factory: str, input_shape: Sequence[int], num_classes: int, **metadata: Any
) -> Path:
    """Write `model` so that `load_model` can build it again; return the file.

    Weights and JSON stand in one file (safetensors keeps words in its header), replaced in one step; `model.json`
    beside it is for the reader's eyes.

    Args:
        folder: made if absent.
        model: a compiled model is stored without its compilation.
        factory: what builds it, such as "mlp" or "package.module:function".
        input_shape: without the batch dimension.
        num_classes: >= 1.
        metadata: anything JSON holds, such as data=..., standardisation=...; NaN is refused.
    Raises: LegatoTypeError for metadata that JSON does not hold.
    """
    card = {"factory": factory, "input_shape": list(input_shape), "num_classes": num_classes} | metadata
    try:
        words = json.dumps(card, indent=1, allow_nan=False)
    except (TypeError, ValueError) as problem:
        raise errors.argument_type("metadata", expected="what JSON holds", got=problem) from problem
    state = getattr(model, "_orig_mod", model).state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    path = Path(folder) / WEIGHTS_FILE
    write_tensors(path, tensors, {_KEY: words})
    (path.parent / "model.json").write_text(words)
    return path


def load_model(folder: Path, build: Callable[[str, tuple[int, ...], int], nn.Module]) -> nn.Module:
    """The model that `save_model` wrote to `folder`, in eval mode on the CPU.

    Args:
        folder: holds `model.safetensors`.
        build: makes the Module of (factory, input_shape, num_classes), such as `legato.nets.build`. The factory's name
            comes from the file: pass a `build` that imports nothing but what you trust.
    Raises: CheckpointError for a file that is absent, damaged or of another network.
    """
    path = Path(folder) / WEIGHTS_FILE
    tensors, words = read_tensors(path)
    if _KEY not in words:
        raise errors.CheckpointError(f"{path} was not written by save_model: its header has no {_KEY!r} entry.")
    card = json.loads(words[_KEY])
    model = build(card["factory"], tuple(card["input_shape"]), card["num_classes"])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as problem:
        raise errors.CheckpointError(f"{path} does not fit {card['factory']}: {problem}") from problem
    return model.eval()
