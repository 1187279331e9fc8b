"""Comp-sum losses: one number, tau, leads from the sum-exponential loss over cross-entropy to the absolute error."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from legato import errors

REDUCTIONS = ("none", "mean", "sum")


def comp_sum_loss(
    logits: Tensor,
    target: Tensor,
    tau: float = 1.0,
    *,
    temperature: float = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    r"""Comp-sum loss of each sample, on top of torch's own cross-entropy kernel.

    ce = logsumexp(h) - h[y];  loss = expm1((1 - tau) * ce) / (1 - tau);  loss = ce at tau = 1;  h = logits / temperature.
    tau 0: 1/p - 1.  tau 1: cross-entropy.  tau 1 + q: generalised cross-entropy (1 - p^q)/q.  tau 2: 1 - p.  (p = softmax(h)[y])
    Its gradient is that of cross-entropy times p^(tau-1): a tau above 1 looks away from samples that the model finds unlikely.

    Args:
        logits: [B, C] or [B, C, ...] or [C], floating point, before any softmax. float16 and bfloat16 are computed in float32.
        target: class indices int64 [B, ...], or probabilities of the shape of logits; those give sum_k q_k * loss(h, k).
        tau: >= 0, no unit.
        temperature: > 0, divides the logits.
        weight: [C], a factor for each class; "mean" divides by the sum of the factors, as torch does.
        ignore_index: class index whose rows count nothing. If all rows do, or there is none, the mean is 0 (torch gives NaN).
        label_smoothing: in [0, 1); mixes the target with the uniform distribution.
        reduction: "none" -> [B, ...], "mean" or "sum" -> [].
    Returns: loss >= 0, float32 or float64; at most 1/(tau - 1) for tau > 1. For tau < 1 it overflows to inf where
        (1 - tau) * ce passes 88 (float32) or 709 (float64).
    Raises: LegatoValueError for a number out of range or a shape that does not fit, LegatoTypeError for logits that are not floating point.
    Source: Mao, Mohri, Zhong 2023, arXiv 2304.07288; the closed form is derived in docs/methods/comp-sum.md.
    """
    _check(logits, target, tau, temperature, label_smoothing, reduction)
    scores = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if temperature != 1:
        scores = scores / temperature
    if label_smoothing or target.is_floating_point():
        losses, factors = _soft(scores, target, tau, weight, ignore_index, label_smoothing)
    else:
        losses, factors = _hard(scores, target, tau, weight, ignore_index)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if factors is None:
        return losses.mean() if losses.numel() else losses.sum()
    return losses.sum() / factors.sum().clamp_min(torch.finfo(losses.dtype).tiny)


def _phi(ce: Tensor, tau: float) -> Tensor:
    return ce if tau == 1 else torch.expm1((1 - tau) * ce) / (1 - tau)


def _hard(
    scores: Tensor, target: Tensor, tau: float, weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Loss of each sample, and what the mean divides by. torch's kernel gives ignored rows a cross-entropy, and so a loss, of 0."""
    try:
        losses = _phi(F.cross_entropy(scores, target, reduction="none", ignore_index=ignore_index), tau)
    except IndexError as problem:
        classes = scores.shape[_class_dim(scores)]
        wrong = target[((target < 0) | (target >= classes)) & (target != ignore_index)]
        raise errors.argument("target", expected=f"classes in 0 .. {classes - 1}", got=int(wrong[0])) from problem
    kept = target != ignore_index
    if weight is None:
        return losses, kept.to(losses.dtype)
    factors = weight.to(losses.dtype)[target.where(kept, 0)] * kept
    return losses * factors, factors


def _soft(
    scores: Tensor, target: Tensor, tau: float, weight: Tensor | None, ignore_index: int, smoothing: float
) -> tuple[Tensor, Tensor | None]:
    """sum_k q_k loss(h, k). Needs the loss of every class, hence one more table of the size of the logits."""
    axis, classes = _class_dim(scores), scores.shape[_class_dim(scores)]
    factors: Tensor | None = None
    if target.is_floating_point():
        q = target.to(scores.dtype)
    else:
        kept = target != ignore_index
        q = F.one_hot(target.where(kept, 0), classes).movedim(-1, axis).to(scores.dtype) * kept.unsqueeze(axis)
        factors = kept.to(scores.dtype) if weight is None else weight.to(scores.dtype)[target.where(kept, 0)] * kept
        q = q * (1 - smoothing) + smoothing / classes * kept.unsqueeze(axis).to(q.dtype)
    if target.is_floating_point() and smoothing:
        q = q * (1 - smoothing) + smoothing / classes
    if weight is not None:
        q = q * weight.to(scores.dtype).reshape([-1 if d == axis else 1 for d in range(scores.dim())])
    losses = _phi(-F.log_softmax(scores, axis), tau)
    return torch.where(q == 0, 0, q * losses).sum(axis), factors


def _class_dim(scores: Tensor) -> int:
    return 0 if scores.dim() == 1 else 1


def _check(
    logits: Tensor, target: Tensor, tau: float, temperature: float, label_smoothing: float, reduction: str
) -> None:
    """Types, shapes and plain numbers only, so that no device is waited for."""
    if isinstance(tau, Tensor) or not 0 <= tau < math.inf:
        raise errors.argument("tau", expected="a plain finite number >= 0", got=tau, fix="tau=1.0 is cross-entropy")
    if not 0 < temperature < math.inf:
        raise errors.argument("temperature", expected="a finite number > 0", got=temperature)
    if not 0 <= label_smoothing < 1:
        raise errors.argument("label_smoothing", expected="a number in [0, 1)", got=label_smoothing)
    if reduction not in REDUCTIONS:
        raise errors.choice("reduction", str(reduction), REDUCTIONS)
    if not logits.is_floating_point():
        raise errors.argument_type(
            "logits", expected="floating point scores", got=logits.dtype, fix="pass the model's raw outputs"
        )
    rows = [n for d, n in enumerate(logits.shape) if d != _class_dim(logits)]
    if target.is_floating_point():
        if target.shape != logits.shape:
            raise errors.argument(
                "target", expected=f"probabilities of shape {list(logits.shape)}", got=f"shape {list(target.shape)}"
            )
    elif target.dtype != torch.int64 or list(target.shape) != rows:
        raise errors.argument(
            "target", expected=f"int64 class indices of shape {rows}", got=f"{target.dtype} of shape {list(target.shape)}",
            fix="for one-hot rows, pass target.argmax(-1) or make them floating point",
        )  # fmt: skip


@dataclass(frozen=True)
class Warmup:
    """A schedule for tau: linear from `start` to `end` over the first `epochs` epochs, then constant."""

    end: float
    epochs: int
    start: float = 1.0

    def __call__(self, epoch: int) -> float:
        """Tau in the epoch with this number, counted from 0."""
        return self.end if epoch >= self.epochs else self.start + (self.end - self.start) * epoch / self.epochs


class CompSumLoss(nn.Module):
    """`comp_sum_loss` as an object: a drop-in for `torch.nn.CrossEntropyLoss`.

    With a `Warmup` as tau, call `begin_epoch(epoch)` at the start of each epoch; `legato.fit` does. On its first call it warns when the
    gradients are about to vanish (mean of p^(tau-1) below 1e-3) or the loss has overflowed; later calls never wait for the device.
    """

    def __init__(
        self,
        tau: float | Warmup = 1.0,
        *,
        temperature: float = 1.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.schedule = tau if isinstance(tau, Warmup) else Warmup(end=tau, epochs=0)
        self.epoch, self.checked = 0, False
        self.weight: Tensor | None
        self.register_buffer("weight", weight, persistent=False)
        self.options: dict[str, Any] = {
            "temperature": temperature,
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "reduction": reduction,
        }
        row = torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)
        for bound in (self.schedule.start, self.schedule.end):
            _check(*row, bound, temperature, label_smoothing, reduction)

    @property
    def tau(self) -> float:
        """Tau in this epoch."""
        return self.schedule(self.epoch)

    def begin_epoch(self, epoch: int) -> None:
        """Tell the schedule which epoch, from 0, is about to begin."""
        self.epoch = epoch

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch; see `comp_sum_loss`."""
        loss = comp_sum_loss(logits, target, self.tau, weight=self.weight, **self.options)
        if not self.checked and not torch.compiler.is_compiling():
            self.checked = True
            self._look(logits, target, loss)
        return loss

    def _look(self, logits: Tensor, target: Tensor, loss: Tensor) -> None:
        if self.tau < 1 and bool(loss.detach().isinf().any()):
            _warn(f"the loss is infinite: tau={self.tau:g} overflows for samples that the model finds very unlikely. "
                  "Remedy: tau >= 1, a higher temperature, or smaller initial weights.")  # fmt: skip
        if self.tau > 1 and not target.is_floating_point() and target.numel():
            ce = comp_sum_loss(
                logits.detach(),
                target,
                temperature=self.options["temperature"],
                ignore_index=self.options["ignore_index"],
                reduction="none",
            )
            if bool(((1 - self.tau) * ce).exp().mean() < 1e-3):
                _warn(f"gradients are about to vanish: the mean of p^(tau-1) is below 0.001 at tau={self.tau:g}. "
                      f"Remedy: warm up from cross-entropy with tau=Warmup(end={self.tau:g}, epochs=5).")  # fmt: skip

    def get_extra_state(self) -> dict[str, Any]:
        """The epoch, so that a resumed schedule goes on where it was."""
        return {"epoch": self.epoch, "checked": self.checked}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up the epoch again."""
        self.epoch, self.checked = state["epoch"], state["checked"]

    def extra_repr(self) -> str:
        """`tau=1.7`, and whatever differs from its default."""
        defaults = {"temperature": 1.0, "ignore_index": -100, "label_smoothing": 0.0, "reduction": "mean"}
        tau = f"tau={self.schedule.end:g}" if not self.schedule.epochs else f"tau={self.schedule!r}"
        return ", ".join([tau, *(f"{k}={v!r}" for k, v in self.options.items() if v != defaults[k])])


def _warn(text: str) -> None:
    warnings.warn(text, errors.LegatoWarning, stacklevel=4)


def gce(q: float = 0.7, **options: Any) -> CompSumLoss:
    """Generalised cross-entropy (1 - p^q)/q of Zhang and Sabuncu 2018: comp-sum with tau = 1 + q."""
    return CompSumLoss(1 + q, **options)


def mae(**options: Any) -> CompSumLoss:
    """1 - p: comp-sum with tau = 2. Half of the L1 distance to the one-hot target, so others' 'MAE' may be twice this."""
    return CompSumLoss(2.0, **options)


def sum_exponential(**options: Any) -> CompSumLoss:
    """1/p - 1: comp-sum with tau = 0."""
    return CompSumLoss(0.0, **options)
