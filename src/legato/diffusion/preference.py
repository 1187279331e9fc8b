"""Condition preference: of two controls of one noisy sample, the true one shall help more than it did for the reference network."""

import math
import warnings
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from legato import errors

LOSS_TYPES = ("sigmoid", "cdpo", "hinge", "ipo")
QUANTILE, TIMES = 0.95, 3.0
"""Of the sizes of the reference gap, and how often that quantile makes a margin."""
LARGEST_BEYOND = 0.5
"""Share of pairs whose reference gap is beyond the margin above which there is a warning."""
LOOK = 64
"""Pairs that are looked at before that warning."""


def condition_preference_loss(
    errors_w: Tensor,
    errors_l: Tensor,
    ref_w: Tensor,
    ref_l: Tensor,
    beta: float,
    loss_type: str = "sigmoid",
    *,
    margin: float | None = None,
    label_smoothing: float = 0.1,
    reverse: float = 0.1,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""How much less the network errs under the winning control than under the losing one, against a reference network.

    D = errors_w - errors_l,  D_ref = ref_w - ref_l,  u = -(beta / 2) (D - D_ref);  all with the same x0, noise, t and text.
    sigmoid  -log sigmoid(u), the loss of DPO.
    cdpo     -(1 - e) log sigmoid(u) - e log sigmoid(-u), e = label_smoothing: at rest at D - D_ref = 2 logit(e) / beta.
    hinge    (1 - r) s max(0, D + m) + r (1 - s) max(0, m - D), s = sigmoid(-u) without gradient, r = reverse, m = margin: what the
             released code trains (r = 0.1; its DINO script has r = 0). Where |D| < m its gradient is 2 / beta times that of
             cdpo with e = r; where D < -m it only weakens the preference.
    ipo      (u - 1/2)^2, which is beta^2 times IPO's: at rest at D - D_ref = -1 / beta.

    Args:
        errors_w, errors_l: [B] mean squared errors under the winning and the losing control (`condition_errors`).
        ref_w, ref_l: [B], those of the reference.
        beta: > 0, in 1 / units of the errors, which are means over elements: 1 / beta is a small change of D.
        loss_type: sigmoid, cdpo, hinge or ipo.
        margin: > 0, of hinge, in units of the errors; `gate_margin` makes one.
        label_smoothing: in [0, 0.5), of cdpo.
        reverse: in [0, 0.5), of hinge.
        mask: bool [B], the pairs that count; the released code leaves out t = 0.
        reduction: "none" -> [B], 0 where masked; "sum"; "mean" over the pairs that count, 0 if there are none. With a mask the mean of
            a batch is not the mean of the means of its parts.
    Returns: in nats for sigmoid and cdpo (log 2 at D = D_ref), in units of the errors for hinge, without unit for ipo.
    Raises: LegatoValueError for shapes that differ, numbers out of range, an unknown loss type or reduction, and hinge without a margin.
    Source: Lyu, Li, Liu, Chen 2025, arXiv 2511.04753, and its code; cdpo: Mitchell 2023; ipo: Azar et al. 2023, arXiv 2310.12036.
    """
    _check_numbers(beta, loss_type, margin, label_smoothing, reverse)
    if loss_type == "hinge" and margin is None:
        raise errors.argument("margin", expected="a number > 0 for hinge", got=None, fix="gate_margin(ref_w - ref_l)")
    _check_errors(errors_w, errors_l, ref_w, ref_l)
    gap = errors_w - errors_l
    u = -(beta / 2) * (gap - (ref_w - ref_l))
    match loss_type:
        case "sigmoid":
            loss = F.softplus(-u)
        case "cdpo":
            loss = (1 - label_smoothing) * F.softplus(-u) + label_smoothing * F.softplus(u)
        case "ipo":
            loss = (u - 0.5).square()
        case _:
            assert margin is not None
            doubt = torch.sigmoid(-u).detach()
            loss = (1 - reverse) * doubt * F.relu(gap + margin) + reverse * (1 - doubt) * F.relu(margin - gap)
    return _reduced(loss, mask, reduction)


def diffusion_dpo_loss(
    errors_w: Tensor, errors_l: Tensor, ref_w: Tensor, ref_l: Tensor, beta: float = 5000.0, *, reduction: str = "mean"
) -> Tensor:
    """Diffusion-DPO: the logistic loss where the errors are those of two images under one control (`image_errors`).

    -log sigmoid(-(beta / 2) ((errors_w - errors_l) - (ref_w - ref_l))), all [B], with the same t, noise and text.
    Raises: LegatoValueError as `condition_preference_loss`.
    Source: Wallace et al. 2023, arXiv 2311.12908; beta=5000 is that of its code, for means over elements.
    """
    return condition_preference_loss(errors_w, errors_l, ref_w, ref_l, beta, reduction=reduction)


def gate_margin(gaps: Tensor, quantile: float = QUANTILE, times: float = TIMES) -> float:
    """A margin for hinge: `times` the `quantile` of |D_ref|, so that the gate is open for nearly all pairs; in units of the errors.

    Args:
        gaps: [N] of the reference, ref_w - ref_l, of as many pairs and timesteps as you can afford.
        quantile: in (0, 1].
        times: > 0.
    Raises: LegatoValueError where all gaps are 0: a fresh ControlNet does not hear its control yet.
    """
    if not 0 < quantile <= 1:
        raise errors.argument("quantile", expected="a number in (0, 1]", got=quantile)
    if not 0 < times < math.inf:
        raise errors.argument("times", expected="a number > 0", got=times)
    margin = times * float(torch.quantile(gaps.detach().double().abs(), quantile)) if len(gaps) else 0.0
    if not 0 < margin < math.inf:
        raise errors.argument(
            "gaps", expected="finite gaps of the reference, not all of them 0", got=f"{len(gaps)} gaps, margin {margin}",
            fix="train the ControlNet first: with its zero convolutions the control changes nothing",
        )  # fmt: skip
    return margin


def share_beyond(gaps: Tensor, margin: float) -> float:
    """P(D_ref < -margin) of gaps [N]: pairs that the hinge can only weaken."""
    return float((gaps < -margin).double().mean())


@final
class ConditionPreference:
    """`condition_preference_loss` that sets its margin, warns of a gate that is too narrow, and keeps count.

    Args:
        beta, loss_type, label_smoothing, reverse: as in `condition_preference_loss`.
        margin: of hinge; None sets it by `gate_margin` from `calibrate`, or else from the first batch, the same for all processes.
    Raises: LegatoValueError for numbers out of range and an unknown loss type.
    """

    def __init__(
        self,
        beta: float,
        loss_type: str = "sigmoid",
        *,
        margin: float | None = None,
        label_smoothing: float = 0.1,
        reverse: float = 0.1,
    ) -> None:
        _check_numbers(beta, loss_type, margin, label_smoothing, reverse)
        self.beta, self.loss_type, self.margin = beta, loss_type, margin
        self.label_smoothing, self.reverse = label_smoothing, reverse
        self._seen = self._beyond = 0
        self._last: tuple[Tensor, ...] = ()

    def calibrate(self, ref_w: Tensor, ref_l: Tensor) -> float:
        """Set the margin from the reference's errors of many pairs, [N] each; gives it."""
        margin = torch.tensor(gate_margin(ref_w - ref_l), dtype=torch.float64, device=ref_w.device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(margin, torch.distributed.ReduceOp.MAX)
        self.margin = float(margin)
        return self.margin

    def __call__(
        self, errors_w: Tensor, errors_l: Tensor, ref_w: Tensor, ref_l: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The mean loss over the pairs that count, a scalar; arguments as in `condition_preference_loss`."""
        _check_errors(errors_w, errors_l, ref_w, ref_l)
        if self.loss_type == "hinge":
            if self.margin is None:
                self.calibrate(ref_w, ref_l)
            self._look_at(ref_w - ref_l)
        self._last = tuple(part.detach() for part in (errors_w, errors_l, ref_w, ref_l))
        return condition_preference_loss(
            errors_w, errors_l, ref_w, ref_l, self.beta, self.loss_type,
            margin=self.margin, label_smoothing=self.label_smoothing, reverse=self.reverse, mask=mask,
        )  # fmt: skip

    @property
    def stats(self) -> dict[str, float]:
        """Of the last batch: both errors, `winner_drift` = mean(E_w - ref_w) (> 0: control is bought with quality), mean D and D_ref, the share
        of pairs with D < 0 (`accuracy`) and with D < D_ref (`learned`), and mean u (`margin`). Waits for the device."""
        if not self._last:
            return {}
        w, loser, rw, rl = self._last
        gap, reference = w - loser, rw - rl
        return {
            "winner_error": float(w.mean()), "loser_error": float(loser.mean()), "winner_drift": float((w - rw).mean()),
            "gap": float(gap.mean()), "reference_gap": float(reference.mean()), "accuracy": float((gap < 0).double().mean()),
            "learned": float((gap < reference).double().mean()), "margin": float(-(self.beta / 2) * (gap - reference).mean()),
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """The margin, and how many pairs were looked at."""
        return {"margin": self.margin, "seen": self._seen, "beyond": self._beyond}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.margin, self._seen, self._beyond = state["margin"], state["seen"], state["beyond"]

    def _look_at(self, gaps: Tensor) -> None:
        """Once, after the first pairs, so that the device is not waited for at each step."""
        assert self.margin is not None
        if self._seen >= LOOK:
            return
        self._seen, self._beyond = self._seen + len(gaps), self._beyond + int((gaps < -self.margin).sum())
        if self._seen >= LOOK and self._beyond > LARGEST_BEYOND * self._seen:
            text = (
                f"ConditionPreference: margin={self.margin:g} is smaller than the present gap of {self._beyond} of {self._seen} pairs: training "
                "will weaken control. Fix: margin=None, which sets it from the gaps, or loss_type='sigmoid'"
            )
            warnings.warn(text, errors.LegatoWarning, stacklevel=3)


def _reduced(loss: Tensor, mask: Tensor | None, reduction: str) -> Tensor:
    if reduction not in ("none", "sum", "mean"):
        raise errors.choice("reduction", reduction, ("none", "sum", "mean"))
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != loss.shape:
            got = f"{mask.dtype} of shape {list(mask.shape)}"
            raise errors.argument("mask", expected=f"bool of shape {list(loss.shape)}", got=got)
        loss = torch.where(mask, loss, 0)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    return loss.mean() if mask is None else loss.sum() / mask.sum().clamp(min=1)


def _check_numbers(beta: float, loss_type: str, margin: float | None, label_smoothing: float, reverse: float) -> None:
    if loss_type not in LOSS_TYPES:
        raise errors.choice("loss_type", str(loss_type), LOSS_TYPES)
    if not 0 < beta < math.inf:
        raise errors.argument("beta", expected="a number > 0", got=beta, fix="begin near 1 / the mean error")
    if margin is not None and not 0 < margin < math.inf:
        raise errors.argument("margin", expected="a number > 0, or None", got=margin)
    for name, share in (("label_smoothing", label_smoothing), ("reverse", reverse)):
        if not 0 <= share < 0.5:
            raise errors.argument(name, expected="a number in [0, 0.5)", got=share, fix="0.1 is the released code's")


def _check_errors(*parts: Tensor) -> None:
    names = ("errors_w", "errors_l", "ref_w", "ref_l")
    for name, part in zip(names, parts, strict=True):
        if part.dim() != 1 or part.shape != parts[0].shape or not part.is_floating_point():
            raise errors.argument(
                name, expected=f"a number a pair, shape [{len(parts[0]) if parts[0].dim() else 'B'}]",
                got=f"{part.dtype} of shape {list(part.shape)}", fix="condition_errors gives one mean a sample",
            )  # fmt: skip
    if parts[2].requires_grad or parts[3].requires_grad:
        raise errors.argument(
            "ref_w, ref_l", expected="errors of a frozen reference", got="errors with a gradient",
            fix="compute them under torch.no_grad()",
        )  # fmt: skip
