"""Nested states as JSON and named tensors, so that no checkpoint needs pickle."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from legato import errors

_TAGS = ("$tensor", "$array", "$tuple", "$items", "$float")


def flatten(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`tree` as JSON; each tensor moves into `tensors`, and its name stands in its place.

    Args:
        tree: dicts, lists, tuples, str, int, float, bool, None, tensors and numpy arrays, nested.
        name: where `tree` comes from, such as "optimizer"; begins the tensors' names.
        tensors: grows by contiguous copies on the CPU.
    Raises: CheckpointError for anything else; names its place.
    """
    if isinstance(tree, Tensor):
        return {"$tensor": _keep(_detached(tree, name), name, tensors)}
    if isinstance(tree, np.ndarray):
        return {"$array": _keep(_from_numpy(tree, name), name, tensors)}
    if isinstance(tree, dict):
        if all(isinstance(key, str) for key in tree) and not any(tag in tree for tag in _TAGS):
            return {key: flatten(value, f"{name}.{key}", tensors) for key, value in tree.items()}
        return {"$items": [[_key(key, name), flatten(value, f"{name}.{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, list):
        return [flatten(value, f"{name}.{i}", tensors) for i, value in enumerate(tree)]
    if isinstance(tree, tuple):
        return {"$tuple": [flatten(value, f"{name}.{i}", tensors) for i, value in enumerate(tree)]}
    if isinstance(tree, np.generic):
        return flatten(tree.item(), name, tensors)
    if isinstance(tree, float) and not math.isfinite(tree):
        return {"$float": repr(tree)}
    if tree is None or isinstance(tree, str | int | float | bool):
        return tree
    expected = "tensors, arrays, numbers, strings, and dicts, lists, tuples of these"
    raise errors.CheckpointError(errors.message(f"state of {name}", expected=expected, got=type(tree).__name__))


def unflatten(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """What `flatten` was given."""
    if isinstance(tree, list):
        return [unflatten(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    match tree:
        case {"$tensor": name}:
            return tensors[name]
        case {"$array": name}:
            return tensors[name].numpy()
        case {"$tuple": values}:
            return tuple(unflatten(value, tensors) for value in values)
        case {"$items": items}:
            return {key: unflatten(value, tensors) for key, value in items}
        case {"$float": text}:
            return float(text)
    return {key: unflatten(value, tensors) for key, value in tree.items()}


def _keep(tensor: Tensor, name: str, tensors: dict[str, Tensor]) -> str:
    """Keep a tensor under its name, or one like it: {"a": {"b": x}, "a.b": y} and {1: x, "1": y} hold two of one name."""
    while name in tensors:
        name += "'"
    tensors[name] = tensor
    return name


def _from_numpy(array: np.ndarray[Any, Any], name: str) -> Tensor:
    try:
        return torch.from_numpy(np.ascontiguousarray(array).copy())
    except TypeError as problem:
        text = errors.message(f"state of {name}", expected="an array of numbers", got=f"{array.dtype} array")
        raise errors.CheckpointError(text) from problem


def _detached(tensor: Tensor, name: str) -> Tensor:
    if type(tensor) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer) or tensor.layout != torch.strided:
        got = f"{type(tensor).__name__} with layout {tensor.layout}"
        raise errors.CheckpointError(errors.message(f"state of {name}", expected="a dense tensor", got=got))
    # A clone of its own: safetensors refuses names that share memory, as tied weights do.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _key(key: Any, name: str) -> str | int | float | bool | None:
    if key is None or isinstance(key, str | int | float | bool):
        return key
    raise errors.CheckpointError(
        errors.message(f"keys of {name}", expected="strings or numbers", got=type(key).__name__)
    )
