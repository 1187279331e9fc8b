"""A network of the user's own: found by its import path, called, and tried on two rows before any training."""

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from legato import errors

Factory = Callable[[tuple[int, ...], int], nn.Module]


def own(spec: str, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The network of `spec` = `pkg.module:factory`, for `factory(input_shape, num_classes) -> Module`.

    Raises: LegatoValueError when it cannot be imported or called, or returns anything but a Module with outputs [B, num_classes].
    """
    factory = _imported(spec)
    try:
        inspect.signature(factory).bind(input_shape, num_classes)
    except (TypeError, ValueError) as problem:
        raise errors.argument(
            "model", expected=f"{spec} to take (input_shape, num_classes)", got=str(problem),
            fix="def factory(input_shape, num_classes): ...",
        ) from problem  # fmt: skip
    model = factory(input_shape, num_classes)
    if not isinstance(model, nn.Module):
        raise errors.argument("model", expected=f"a torch.nn.Module from {spec}", got=type(model).__name__)
    _try(spec, model, input_shape, num_classes)
    return model


def _imported(spec: str) -> Callable[..., Any]:
    module, _, name = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # an installed command does not look into the current folder by itself
        sys.path.insert(0, here)
    try:
        found = import_module(module)
    except ImportError as problem:
        raise errors.argument(
            "model", expected=f"an importable module in {spec!r}", got=str(problem),
            fix="run legato in the folder that holds it, or install its package",
        ) from problem  # fmt: skip
    if not hasattr(found, name):
        raise errors.argument("model", expected=f"a function {name!r} in {module}", got="nothing of that name")
    factory: Callable[..., Any] = getattr(found, name)
    if not callable(factory):
        raise errors.argument("model", expected=f"a function at {spec}", got=type(factory).__name__)
    return factory


def _try(spec: str, model: nn.Module, input_shape: tuple[int, ...], num_classes: int) -> None:
    """One forward pass of two rows of zeros in eval mode, so that a wrong shape is named before any training."""
    modes = {module: module.training for module in model.modules()}
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            output = model.eval()(torch.zeros(2, *input_shape, device=device))
    except (RuntimeError, ValueError, TypeError, IndexError) as problem:
        raise errors.argument(
            "model", expected=f"{spec} to accept inputs of shape {[2, *input_shape]}", got=str(problem)
        ) from problem
    for module, training in modes.items():
        module.training = training
    got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if got != [2, num_classes]:
        raise errors.argument(
            "model", expected=f"outputs of shape [2, {num_classes}] from {spec} for 2 rows", got=got,
            fix="return one raw score for each class",
        )  # fmt: skip
