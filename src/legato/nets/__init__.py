"""Small reference networks, and the way to a network of the user's own: `pkg.module:factory`."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from legato import errors
from legato.nets.convnet import convnet
from legato.nets.mlp import mlp
from legato.nets.resnet import resnet

__all__ = ["build", "convnet", "mlp", "resnet"]
Factory = Callable[[tuple[int, ...], int], nn.Module]
NAMED: dict[str, Factory] = {"mlp": mlp, "convnet": convnet, "resnet": resnet}


def build(spec: str, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The network that `spec` names: mlp, convnet, resnet, or the import path `pkg.module:factory` of a
    `factory(input_shape, num_classes) -> Module`.

    Raises: LegatoValueError when the path cannot be imported, the factory returns no Module, or its outputs are not [B, num_classes].
    """
    if spec in ("convnet", "resnet") and len(input_shape) != 3:
        raise errors.argument(
            "model", expected="pictures [C, H, W] as inputs", got=f"{spec} for {list(input_shape)}", fix="--model mlp"
        )
    model = (NAMED[spec] if spec in NAMED else _imported(spec))(tuple(input_shape), num_classes)
    if not isinstance(model, nn.Module):
        raise errors.argument("model", expected=f"a torch.nn.Module from {spec}", got=type(model).__name__)
    if spec not in NAMED:
        _try(spec, model, input_shape, num_classes)
    return model


def _imported(spec: str) -> Factory:
    module, colon, name = spec.partition(":")
    if not colon:
        raise errors.choice("model", spec, [*NAMED, "pkg.module:factory"])
    here = str(Path.cwd())
    if here not in sys.path:  # an installed command does not look into the current folder by itself
        sys.path.insert(0, here)
    try:
        factory: Factory = getattr(import_module(module), name)
    except (ImportError, AttributeError) as problem:
        raise errors.argument(
            "model", expected="an import path pkg.module:factory", got=f"{spec!r} ({problem})"
        ) from problem
    return factory


def _try(spec: str, model: nn.Module, input_shape: tuple[int, ...], num_classes: int) -> None:
    """One forward pass of two rows of zeros, so that a wrong shape is named before any training."""
    training = model.training
    with torch.no_grad():
        shape = list(model.eval()(torch.zeros(2, *input_shape)).shape)
    model.train(training)
    if shape != [2, num_classes]:
        raise errors.argument(
            "model",
            expected=f"outputs of shape [B, {num_classes}] from {spec}",
            got=shape,
            fix="return one score for each class",
        )
