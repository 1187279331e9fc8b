"""What the losses accept. Types, shapes and plain numbers only: no value of a tensor is read, so no device is waited for."""

import math
from numbers import Real

import torch
from torch import Tensor

from legato import errors

REDUCTIONS = ("none", "mean", "sum")


def is_number(value: object) -> bool:
    """A plain finite number; a tensor is none, because to compare it would be to wait for its device."""
    return isinstance(value, Real) and abs(float(value)) < math.inf  # math.isfinite cannot be compiled


def class_axis(logits: Tensor) -> int:
    """Where the classes stand: 1 in [B, C, ...], 0 in [C], as in torch."""
    return 0 if logits.dim() == 1 else 1


def num_classes(logits: Tensor) -> int:
    """C."""
    return logits.shape[class_axis(logits)]


def check_reduction(reduction: str) -> None:
    """One of torch's three words."""
    if reduction not in REDUCTIONS:
        raise errors.choice("reduction", str(reduction), REDUCTIONS)


def check_logits(logits: Tensor) -> None:
    """[B, C, ...] or [C], floating point."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise errors.argument_type(
            "logits", expected="a floating point tensor", got=got, fix="pass the model's raw scores"
        )
    if logits.dim() == 0:
        raise errors.argument("logits", expected="shape [B, C], [B, C, ...] or [C]", got="a scalar")


def check_indices(logits: Tensor, target: Tensor) -> None:
    """int64, of the shape of the logits without their class axis."""
    rows = [size for axis, size in enumerate(logits.shape) if axis != class_axis(logits)]
    if target.dtype != torch.int64 or list(target.shape) != rows:
        fix = ("for one-hot rows, pass target.argmax(-1)" if list(target.shape) == list(logits.shape)
               else "pass target.long()" if list(target.shape) == rows else "pass one class index for each row of the logits")  # fmt: skip
        raise errors.argument(
            "target", expected=f"int64 class indices of shape {rows}",
            got=f"{target.dtype} of shape {list(target.shape)}", fix=fix,
        )  # fmt: skip


def check_probabilities(logits: Tensor, target: Tensor) -> None:
    """Floating point, of the shape of the logits. That they sum to 1 is not looked at, as in torch."""
    if target.shape != logits.shape:
        raise errors.argument(
            "target", expected=f"probabilities of shape {list(logits.shape)}",
            got=f"{target.dtype} of shape {list(target.shape)}", fix="class indices must be int64",
        )  # fmt: skip


def check_weight(logits: Tensor, weight: Tensor | None) -> None:
    """One factor for each class."""
    if weight is not None and list(weight.shape) != [num_classes(logits)]:
        raise errors.argument("weight", expected=f"shape [{num_classes(logits)}]", got=f"shape {list(weight.shape)}")


def check_range(target: Tensor, classes: int, ignore_index: int) -> None:
    """Every index in 0 .. classes - 1, or ignored. Reads the tensor, so a GPU is waited for."""
    wrong = target[((target < 0) | (target >= classes)) & (target != ignore_index)]
    if len(wrong):
        raise errors.argument(
            "target", expected=f"classes in 0 .. {classes - 1}, for {classes} logits a row", got=f"class {int(wrong[0])}",
            fix="number the classes from 0, or give the network one output for each",
        )  # fmt: skip
