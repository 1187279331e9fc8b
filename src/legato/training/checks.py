"""What `fit` checks once: its arguments, and the first batch. Values are read here only, never in later steps."""

import math
from collections.abc import Callable, Mapping, Set
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from legato import errors
from legato.training.fitted import plain_number

_OBJECTIVE_METHODS = ("begin_epoch", "loss", "after_step", "gradients", "state_dict", "load_state_dict")
_ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss, nn.BCELoss)
_ELEMENTWISE_FUNCTIONS = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy_with_logits)


def check_options(
    epochs: int,
    accumulate: int,
    clip_norm: float | None,
    ema_decay: float | None,
    checkpoint_seconds: float,
    autocast: str | None,
) -> None:
    """The numbers and words among the arguments of `fit`."""
    if not _is_count(epochs):
        raise errors.argument("epochs", expected="a whole number >= 1", got=epochs)
    if not _is_count(accumulate):
        raise errors.argument("accumulate", expected="a whole number >= 1", got=accumulate, fix="1 = no accumulation")
    if clip_norm is not None and not 0 < clip_norm < math.inf:
        raise errors.argument("clip_norm", expected="a number > 0", got=clip_norm, fix="None turns clipping off")
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise errors.argument("ema_decay", expected="a number in [0, 1)", got=ema_decay, fix="0.999 is usual")
    if not checkpoint_seconds >= 0:
        raise errors.argument("checkpoint_seconds", expected="a number >= 0", got=checkpoint_seconds)
    if autocast not in (None, "bf16"):
        raise errors.argument("autocast", expected="None or 'bf16'", got=repr(autocast))


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and int(value) >= 1


def check_parts(objective: Any, batches: Any) -> None:
    """The objective and the batches have the methods that the loop calls, and there is something to train on."""
    missing = [name for name in _OBJECTIVE_METHODS if not hasattr(objective, name)]
    if missing:
        fix = "wrap a loss function: Criterion(loss)" if callable(objective) else ""
        expected = "an objective with " + ", ".join(_OBJECTIVE_METHODS)
        got = f"{type(objective).__name__} without {', '.join(missing)}"
        raise errors.argument_type("objective", expected=expected, got=got, fix=fix)
    if not hasattr(batches, "epoch") or not hasattr(batches, "__len__"):
        raise errors.argument_type(
            "batches",
            expected="an object with len(batches) and batches.epoch(number)",
            got=type(batches).__name__,
            fix="legato.data.Batches for tensors, legato.data.IndexedLoader(loader) for a DataLoader",
        )
    if len(batches) < 1:
        fix = "give it at least batch_size rows, or lower batch_size"
        raise errors.argument("batches", expected="at least one batch an epoch", got="an empty loader", fix=fix)


def check_shares(batches: list[int]) -> None:
    """`batches` an epoch, of every process: they wait for each other in each step, so all have as many."""
    if len(set(batches)) > 1:
        fix = "cut the rows of an epoch to a multiple of the processes, as legato.data.Batches does"
        raise errors.argument("batches", expected="as many an epoch in every process", got=batches, fix=fix)


def check_own_rows(indices: list[Tensor]) -> None:
    """`indices` of the first batch, of every process: they are not all the same rows."""
    first, *others = indices
    if others and all(torch.equal(first, other) for other in others) and bool((first >= 0).any()):
        expected, got = "each process's own rows", f"the same {len(first)} rows in all {len(indices)} processes"
        fix = "legato.data.Batches(..., rank=accelerator.process_index, world_size=accelerator.num_processes)"
        raise errors.argument("batches", expected=expected, got=got, fix=fix)


def check_metrics(found: Any, reserved: Set[str]) -> dict[str, float | None]:
    """What `validate` returned, as plain numbers: None for NaN and infinities."""
    expected = "a function that returns a dict of numbers by name"
    if not isinstance(found, Mapping):
        raise errors.argument_type(
            "validate", expected=expected, got=type(found).__name__, fix='{"validation_error": 0.1}'
        )
    taken = sorted(reserved & found.keys())
    if taken:
        raise errors.argument(
            "validate", expected=f"names other than {', '.join(sorted(reserved))}", got=", ".join(taken)
        )
    plain: dict[str, float | None] = {}
    for name, value in found.items():
        try:
            plain[name] = plain_number(value)
        except (TypeError, ValueError, RuntimeError) as problem:
            got = f"{name} = {value!r}"
            raise errors.argument_type("validate", expected=expected, got=got) from problem
    return plain


def make_optimizer(factory: Callable[[list[nn.Parameter]], Optimizer], model: nn.Module) -> Optimizer:
    """The optimizer that `factory` makes of the model's trainable parameters."""
    example = "lambda parameters: torch.optim.SGD(parameters, lr=0.1)"
    if isinstance(factory, Optimizer) or not callable(factory):
        got = type(factory).__name__
        raise errors.argument_type("optimizer", expected="a function of the parameters", got=got, fix=example)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        fix = "set requires_grad on the parameters to train"
        raise errors.argument("model", expected="at least one trainable parameter", got="none", fix=fix)
    optimizer = factory(parameters)
    if not isinstance(optimizer, Optimizer):
        got = type(optimizer).__name__
        raise errors.argument_type("optimizer", expected="a function that returns an optimizer", got=got, fix=example)
    return optimizer


def make_schedule(
    factory: Callable[[Optimizer, int], LRScheduler] | None, optimizer: Optimizer, total_steps: int
) -> LRScheduler | None:
    """The schedule that `factory` makes, or None; the loop steps it after each optimizer step."""
    if factory is None:
        return None
    example = "schedule=legato.training.cosine"
    if not callable(factory):
        expected, got = "a function of (optimizer, total_steps)", type(factory).__name__
        raise errors.argument_type("schedule", expected=expected, got=got, fix=example)
    schedule = factory(optimizer, total_steps)
    if not isinstance(schedule, LRScheduler) or isinstance(schedule, ReduceLROnPlateau):
        expected, got = "a function that returns a schedule that steps by itself", type(schedule).__name__
        raise errors.argument_type("schedule", expected=expected, got=got, fix=example)
    return schedule


def check_batch(batch: Any) -> None:
    """The first batch is three tensors of equal length, without NaN or infinity."""
    if not isinstance(batch, tuple | list) or len(batch) != 3 or not all(isinstance(part, Tensor) for part in batch):
        got = (
            f"{type(batch).__name__} of {[type(part).__name__ for part in batch]}"
            if isinstance(batch, tuple)
            else batch
        )
        raise errors.argument_type("batches", expected="tuples (inputs, targets, index) of three tensors", got=got)
    inputs, targets, index = batch
    if not len(inputs) == len(targets) == len(index) or len(inputs) == 0:
        expected = "inputs, targets and index of one length >= 1"
        raise errors.argument("batches", expected=expected, got=f"{len(inputs)}, {len(targets)} and {len(index)} rows")
    for name, values in (("inputs", inputs), ("targets", targets)):
        bad = int((~torch.isfinite(values)).sum()) if values.is_floating_point() else 0
        if bad:
            got = f"{bad} NaN or infinite values of {values.numel()} in the first batch"
            raise errors.argument(name, expected="finite numbers", got=got, fix="clean or impute the data first")


def check_loss(loss: Any) -> None:
    """The objective's loss is a scalar with a graph."""
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        fix = 'average over the batch, for instance with reduction="mean"'
        raise errors.argument("objective", expected="a scalar loss", got=got, fix=fix)
    if not loss.requires_grad:
        fix = "compute the loss from the model's outputs, outside torch.no_grad()"
        raise errors.argument("objective", expected="a loss that depends on the parameters", got="no graph", fix=fix)


def check_output(output: Tensor, targets: Tensor, criterion: object) -> None:
    """Model output and targets fit together: rows, types, class range; shapes where torch would broadcast silently.

    Args:
        output: [B, ...] what the model returned.
        targets: [B, ...]; with output [B, C], C >= 2, integer targets [B] are class indices.
        criterion: read for `ignore_index` (-100 without one) and for being one of torch's element-wise losses.
    """
    shapes = f"outputs {list(output.shape)} and targets {list(targets.shape)}"
    if output.shape[:1] != targets.shape[:1]:
        fix = "the model must keep the batch dimension first"
        raise errors.argument("model", expected="one output row a target", got=shapes, fix=fix)
    elementwise = isinstance(criterion, _ELEMENTWISE) or criterion in _ELEMENTWISE_FUNCTIONS
    if elementwise and output.shape != targets.shape:
        fix = "reshape the targets to the outputs' shape, or squeeze the model's last dimension"
        raise errors.argument("targets", expected="the shape of the outputs", got=shapes, fix=fix)
    if targets.dtype == torch.float64 and output.dtype != torch.float64:
        fix = f"targets.to({output.dtype})"
        raise errors.argument("targets", expected=f"{output.dtype}, as the outputs", got=targets.dtype, fix=fix)
    if not elementwise and output.ndim == 2 and output.shape[1] >= 2 and targets.ndim == 1:
        _check_classes(targets, output.shape[1], getattr(criterion, "ignore_index", -100))


def _check_classes(targets: Tensor, classes: int, ignore: int) -> None:
    if targets.is_floating_point():
        return
    if targets.dtype != torch.int64:
        raise errors.argument("targets", expected="class indices in int64", got=targets.dtype, fix="targets.long()")
    bad = targets[((targets < 0) | (targets >= classes)) & (targets != ignore)]
    if len(bad):
        fix = f"build the model with num_classes >= {int(bad.max()) + 1}" if bad.max() >= classes else "count from 0"
        expected = f"class indices in 0 .. {classes - 1}, for the model has {classes} outputs"
        raise errors.argument("targets", expected=expected, got=int(bad[0]), fix=fix)
