"""The trajectory loss: how far outputs have moved since an earlier look at the same samples; its weight over the epochs; its statistics."""

import math
import warnings
from dataclasses import dataclass
from numbers import Real
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from legato import errors

REDUCTIONS = ("none", "mean", "sum")
FEW_CLASSES = 16
"""With fewer, the softmax of rows lies idle on the CPU's vectors, and that of columns is up to five times as quick."""
COMPARE_EVERY = 8
"""The cross-entropy beside the penalty is computed in one of this many calls."""
LARGEST_RATIO = 3.0
"""Penalty over cross-entropy, as means over an epoch, above which there is a warning."""
SMALL = 0.05
"""Nats; a cross-entropy below counts as this much, for beside a loss of nearly nothing any penalty looks large."""


def trajectory_loss(
    logits: Tensor, past: Tensor, tau: float = 5.0, *, valid: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    r"""How far the outputs are from those that the same samples had before.

    loss = tau^2 sum_c p[c] (log p[c] - log q[c]);  p = softmax(past / tau), a constant;  q = softmax(logits / tau).

    Its gradient is d loss / d logits = tau (q - p), that of tau^2 times the cross-entropy with soft targets p. For a large tau it
    becomes half the variance over the classes of logits - past. It is exactly 0 for logits equal to past.

    Args:
        logits: [B, C] or [B, C, ...], floating point and finite: what the model says now.
        past: of the same shape: what was said before; no gradient goes there.
        tau: > 0, divides both.
        valid: bool [B] or [B, ...]; rows with False have the loss 0, whatever `past` holds there, and a mean still divides by all rows.
        reduction: "none" -> [B, ...], "mean" or "sum" -> []. An empty batch has the mean 0.
    Returns: loss >= 0 up to rounding, in nats times tau^2; float64 if logits or past are, else float32.
    Raises: LegatoValueError for a tau that is not > 0, an unknown reduction or a shape that does not fit; LegatoTypeError for
        logits that are not floating point.
    Source: Du et al. 2022, arXiv 2205.14083; the factor tau^2 is that of its code.
    """
    if reduction not in REDUCTIONS:
        raise errors.choice("reduction", str(reduction), REDUCTIONS)
    check_tau(tau)
    _check_shapes(logits, past, valid)
    dtype = torch.float64 if torch.float64 in (logits.dtype, past.dtype) else torch.float32
    now, before, axis = logits.to(dtype) / tau, past.detach().to(dtype) / tau, 1
    if logits.dim() == 2 and logits.shape[1] < FEW_CLASSES:
        now, before, axis = now.t().contiguous(), before.t().contiguous(), 0
    if valid is not None:
        before = before.masked_fill(~valid.unsqueeze(axis), 0)
    p = before.softmax(axis)
    gap = before.log_softmax(axis) - now.log_softmax(axis)
    if valid is not None:
        p = p.masked_fill(~valid.unsqueeze(axis), 0)
    if reduction == "none":
        return (p * gap).sum(axis) * tau**2
    rows = gap.numel() // gap.shape[axis] if reduction == "mean" else 1
    return (p * gap).sum() * (tau**2 / max(1, rows))


def check_tau(tau: float) -> None:
    """Raises: LegatoValueError for anything but a plain finite number > 0."""
    if not (is_number(tau) and tau > 0):
        raise errors.argument("tau", expected="a plain finite number > 0", got=tau, fix="tau=5.0 is the paper's")


def is_number(value: object) -> bool:
    """A plain finite number; a tensor is none, because to compare it would be to wait for its device."""
    return isinstance(value, Real) and not isinstance(value, bool) and abs(float(value)) < math.inf


def check_whole(name: str, value: object, least: int) -> None:
    """Raises: LegatoValueError for anything but a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise errors.argument(name, expected=f"a whole number >= {least}", got=value)


def check_epoch(epoch: int, present: int, begun: bool) -> None:
    """A whole number >= 0, and not before the present epoch of a term that has begun.

    Raises: LegatoValueError.
    """
    check_whole("epoch", epoch, 0)
    if begun and epoch < present:
        raise errors.argument(
            "epoch", expected=f"epoch {present} or a later one", got=epoch,
            fix="to go back, load a state of that epoch; to train again, make a new object",
        )  # fmt: skip


def check_logits(logits: Tensor, classes: int) -> None:
    """Raises: LegatoValueError or LegatoTypeError for anything but floating point [B, classes]."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise errors.argument_type(
            "logits", expected="a floating point tensor", got=got, fix="pass the model's raw scores"
        )
    if logits.dim() != 2:
        raise errors.argument(
            "logits", expected=f"shape [B, {classes}], one row a sample", got=f"shape {list(logits.shape)}",
            fix="for dense outputs use MESA, which keeps no table; a table would need one entry for each position of each sample",
        )  # fmt: skip
    if logits.shape[1] != classes:
        raise errors.argument(
            "logits", expected=f"shape [B, {classes}], as num_classes={classes} says", got=f"shape {list(logits.shape)}",
            fix=f"pass num_classes={logits.shape[1]}",
        )  # fmt: skip


def _check_shapes(logits: Tensor, past: Tensor, valid: Tensor | None) -> None:
    for name, tensor in (("logits", logits), ("past", past)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise errors.argument_type(
                name, expected="a floating point tensor", got=got, fix="pass the model's raw scores"
            )
    if logits.dim() < 2:
        raise errors.argument("logits", expected="shape [B, C] or [B, C, ...]", got=f"shape {list(logits.shape)}")
    if past.shape != logits.shape:
        raise errors.argument(
            "past", expected=f"shape {list(logits.shape)}, as logits", got=f"shape {list(past.shape)}"
        )
    rows = [len(logits), *logits.shape[2:]]
    if valid is not None and (
        valid.dtype != torch.bool or list(valid.shape) not in (rows, rows[:1] + [1] * (len(rows) - 1))
    ):
        raise errors.argument(
            "valid", expected=f"bool of shape {rows}", got=f"{valid.dtype} of shape {list(valid.shape)}"
        )


@dataclass(frozen=True)
class Ramp:
    """The weight of a term in each epoch: 0 up to epoch `start`, then a linear rise to `lam` over `warmup` epochs, then `lam`."""

    lam: float
    """>= 0, the weight once it is fully on."""
    start: int
    """The last epoch, counted from 0, in which the term is off; -1 for none."""
    warmup: int = 0
    """How many epochs have a smaller weight."""

    def __post_init__(self) -> None:
        if not (is_number(self.lam) and self.lam >= 0):
            raise errors.argument("lam", expected="a plain finite number >= 0", got=self.lam)
        check_whole("start", self.start, -1)
        check_whole("warmup", self.warmup, 0)

    def __call__(self, epoch: int) -> float:
        """The weight in the epoch with this number, counted from 0."""
        return self.lam * min(1.0, max(0, epoch - self.start) / (self.warmup + 1))


@final
class Tally:
    """Sums over the calls of an epoch. They stay on their device until `read`, so that no step waits for it."""

    def __init__(self) -> None:
        self.calls = self.rows = self.compared = 0
        self.valid: Tensor | int = 0
        self.penalty: Tensor | None = None  # [], the sum over rows
        self.weight = 1.0
        self.both: Tensor | float = 0.0  # [2]: penalty and cross-entropy of the calls that were compared

    def add(self, rows: int, valid: Tensor | int, penalty: Tensor, weight: float) -> None:
        """One call: its rows, how many of them are valid, and its penalty [], which is weight times the mean divergence.

        The weight must be the same in all calls.
        """
        self.calls += 1
        self.rows += rows
        self.valid = self.valid + valid
        self.weight = weight
        if self.penalty is None:
            self.penalty = torch.zeros_like(penalty)
        self.penalty.add_(penalty.detach(), alpha=rows)

    def compare(self, penalty: Tensor, logits: Tensor, targets: Tensor | None) -> None:
        """Every now and then, put the penalty beside the cross-entropy, where targets are classes or probabilities."""
        if targets is None or self.calls % COMPARE_EVERY != 1 or not _fits(logits, targets):
            return
        with torch.no_grad():
            dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
            ce = F.cross_entropy(logits.to(dtype), targets if targets.dtype == torch.int64 else targets.to(dtype))
            self.both = self.both + torch.stack([penalty.detach().to(dtype), ce])
        self.compared += 1

    def read(self) -> dict[str, float]:
        """Rows that counted, the share of valid ones, and the mean divergence over all rows. Waits for the device."""
        total = 0.0 if self.penalty is None else float(self.penalty)
        rows = max(1, self.rows)
        return {
            "rows": self.rows,
            "valid_share": float(self.valid) / rows,
            "mean_divergence": total / self.weight / rows,
        }

    def fault(self, epoch: int, lam: float) -> str | None:
        """What is wrong with a finished epoch, and the remedy. Waits for the device."""
        if self.penalty is not None and not math.isfinite(float(self.penalty)):
            return (
                f"the penalty was infinite or NaN in epoch {epoch}. On confident outputs it is stiffer than cross-entropy. "
                f"Fix: a lower learning rate, a lam below {lam:g}, or warmup=5"
            )
        if isinstance(self.both, Tensor):
            penalty, ce = (self.both / self.compared).tolist()
            if penalty > LARGEST_RATIO * max(ce, SMALL):
                return (
                    f"in epoch {epoch} the penalty, {penalty:.3g}, outweighed the cross-entropy, {ce:.3g}: the model follows its past and "
                    f"not the labels. Fix: a lam below {lam:g}, a later start, warmup=5, or a lower learning rate"
                )
        return None


def _fits(logits: Tensor, targets: Tensor) -> bool:
    """Whether cross-entropy can be computed of them."""
    if targets.dtype == torch.int64:
        return targets.shape == logits.shape[:1] + logits.shape[2:]
    return targets.is_floating_point() and targets.shape == logits.shape


def warn(text: str) -> None:
    """A LegatoWarning, ascribed to the code that called an object of this room (two calls above the one that finds the fault)."""
    warnings.warn(text, errors.LegatoWarning, stacklevel=4)
