"""Low-rank adapters of a denoiser, in the file format that `load_lora_weights` of diffusers takes, for networks that have no such method too."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from legato import errors
from legato.training.checkpoint import read_tensors, write_tensors

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The layers of the paper: all projections of all attentions."""
FILE = "pytorch_lora_weights.safetensors"
PREFIX = "unet."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def add_lora(model: nn.Module, rank: int = 8, targets: Sequence[str] = ATTENTION, *, seed: int = 0) -> int:
    """Freeze `model` and give layers a trainable W + B A of this rank; return how many numbers are trainable.

    A is N(0, 1 / rank), B is 0, so the output stays what it was to the last bit; the scale is 1.

    Args:
        model: any Module; linear and convolutional layers are adapted.
        rank: >= 1; the paper takes 8.
        targets: ends of the names of layers, such as "to_q".
        seed: of A; the global generator is left alone.
    Raises: LegatoValueError for targets that match nothing, with the names that there are.
    """
    if rank < 1:
        raise errors.argument("rank", expected="a whole number >= 1", got=rank, fix="8 is the paper's")
    peft = errors.require("peft", extra="diffusion")
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not any(name == target or name.endswith(f".{target}") for name in layers for target in targets):
        ends = sorted({".".join(name.split(".")[-2 if name.split(".")[-1].isdigit() else -1 :]) for name in layers})
        raise errors.argument("targets", expected=f"ends of layer names, such as {', '.join(ends)}", got=list(targets))
    model.requires_grad_(False)
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets), init_lora_weights="gaussian")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        add: Any = getattr(model, "add_adapter", None)
        if add is not None:
            add(config)
        else:
            peft.inject_adapter_in_model(config, model)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights by name, `LAYER.lora_A.weight` and `LAYER.lora_B.weight`, without the name of the adapter."""
    return {name.replace(".default.", "."): value for name, value in model.state_dict().items() if ".lora_" in name}


def save_lora(model: nn.Module, folder: Path) -> Path:
    """Write the adapters to `folder`/pytorch_lora_weights.safetensors; a Stable Diffusion pipeline loads them with `load_lora_weights`.

    Raises: LegatoValueError for a model without adapters.
    """
    state = lora_state(model)
    if not state:
        raise errors.argument("model", expected="a model with adapters", got="none", fix="add_lora(model)")
    path = Path(folder) / FILE
    write_tensors(path, {f"{PREFIX}{name}": value for name, value in state.items()}, {"format": "pt"})
    return path


def load_lora(model: nn.Module, path: Path) -> None:
    """Add the adapters of a file, or of a folder that holds one, to `model`: those of `save_lora`, of diffusers and of diffusers before 0.21.

    Rank and layers follow from the file.
    Raises: CheckpointError for a file that cannot be read; LegatoValueError for one that is not all of this model, which
        diffusers only warns of.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise errors.CheckpointError(f"there are no adapters at {path}. Fix: give the folder that holds {FILE}.")
    tensors, _ = read_tensors(file)
    state = {name.removeprefix(PREFIX): value for name, value in renamed(tensors).items()}
    downs = {name.removesuffix(_DOWN): value for name, value in state.items() if name.endswith(_DOWN)}
    layers = dict(model.named_modules())
    strange = sorted({name.removesuffix(_DOWN).removesuffix(_UP) for name in state} - layers.keys())
    if not downs or strange:
        raise errors.argument(
            "lora", expected=f"adapters of layers of {type(model).__name__}", got=", ".join(strange[:3]) or "no adapter",
            fix="load it into the network it was trained on",
        )  # fmt: skip
    ranks = {name: value.shape[0] for name, value in downs.items()}
    if len(set(ranks.values())) > 1:
        raise errors.argument("lora", expected="one rank for all layers", got=sorted(set(ranks.values())))
    add_lora(model, next(iter(ranks.values())), list(downs))
    own = {name.replace(".default.", "."): value for name, value in model.named_parameters() if ".lora_" in name}
    wrong = sorted(own.keys() ^ state.keys()) or [n for n, value in own.items() if value.shape != state[n].shape]
    if wrong:
        raise errors.argument("lora", expected="the shapes of this network", got=", ".join(wrong[:3]))
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of any age as today's: `...processor.to_q_lora.down.weight` and `...to_q.lora.down.weight` become `...to_q.lora_A.weight`.

    diffusers 0.42 loads nothing from the first style and only warns.
    """
    new = {}
    for name, value in tensors.items():
        short = name.replace(".processor.", ".").replace("_lora.", ".lora.")
        if short != name:
            short = short.replace(".to_out.lora.", ".to_out.0.lora.")
        new[short.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")] = value
    return new
