"""Margins: one number a sample that says how far it is on its right side, and what losses of the margin share."""

import torch
from torch import Tensor

from legato import errors
from legato.losses.arguments import check_logits, check_range, check_weight, is_number
from legato.losses.rows import widened


def margins(logits: Tensor, target: Tensor) -> Tensor:
    """The margin z of each sample, above 0 where the prediction is right.

    One logit f a sample, target y in {0, 1}:   z = (2 y - 1) f.
    C >= 2 scores h a sample, class index y:    z = h[y] - max over j != y of h[j].
    At C = 2 the second is the first with f = h[1] - h[0]. Equal runners-up share the gradient.

    Args:
        logits: [B] or [B, 1] for one logit, [B, C] for C scores; floating point. Types shorter than float32 are computed in float32.
        target: [B]. One logit: int64 or floating point, 0 or 1 (also [B, 1] with logits [B, 1]). C scores: int64 class indices.
            Without its batch axis, as inside vmap: [] beside logits [], [1] or [C].
    Returns: [B], float32 or float64, in the unit of the logits.
    Raises: LegatoValueError for shapes or types of the target that do not fit, and on the CPU for a class index out of range;
        LegatoTypeError for logits that are not floating point. That targets of one logit are 0 or 1 is not looked at, so that no
        device is waited for; the objects look.
    """
    scores, signs = signed_scores(logits, target)
    return scores if signs is None else signs * scores


_MINUS_ONE = torch.tensor(-1.0)
"""A constant as a tensor, for a plain number is made one at every call, which costs more than small batches do."""


def signed_scores(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
    """(scores [B] with their graph, signs [B] of -1 and 1 or None for all 1); the margins are their product. See `margins`."""
    check_margin_shapes(logits, target)
    scores = widened(logits)
    if has_one_logit(logits, target):
        labels = _column(target).to(scores.dtype)
        return scores if scores.shape == labels.shape else scores.reshape(labels.shape), _MINUS_ONE.add(labels, alpha=2)
    labels = target.unsqueeze(-1)
    try:
        own = scores.gather(-1, labels)
    except RuntimeError:
        check_range(target, scores.shape[-1], 0)  # names the class; nothing is ignored, for 0 is in range
        raise
    return own.squeeze(-1) - scores.scatter(-1, labels, -torch.inf).amax(-1), None


def _column(values: Tensor) -> Tensor:
    """[B] of [B, 1]."""
    return values.squeeze(-1) if values.dim() == 2 else values


def has_one_logit(logits: Tensor, target: Tensor) -> bool:
    """Whether the target is 0 or 1 beside one logit a sample; else it is a class index beside C scores."""
    return logits.shape == target.shape or logits.shape == (*target.shape, 1)


def check_margin_shapes(logits: Tensor, target: Tensor) -> None:
    """Shapes and types of `margins`; no value is read.

    Raises: LegatoValueError, LegatoTypeError.
    """
    if not (isinstance(logits, Tensor) and logits.dim() == 0 and logits.is_floating_point()):
        check_logits(logits)
    if has_one_logit(logits, target):
        if target.dim() > 1 and (target.dim() > 2 or target.shape[1] != 1):
            raise errors.argument(
                "logits", expected="one logit or one row of scores a sample, [B], [B, 1] or [B, C]",
                got=f"shape {list(logits.shape)}", fix="for several labels a sample, add up one loss for each column",
            )  # fmt: skip
        if target.dtype != torch.int64 and not target.is_floating_point():
            raise errors.argument(
                "target", expected="int64 or floating point, 0 or 1", got=target.dtype, fix="pass target.long()"
            )
        return
    rows = list(logits.shape[:-1])
    if logits.dim() > 2 or list(target.shape) != rows or target.dtype != torch.int64:
        raise errors.argument(
            "target", expected=f"int64 class indices of shape {rows}, for logits of shape {list(logits.shape)}",
            got=f"{target.dtype} of shape {list(target.shape)}", fix=_fix(logits, target, rows),
        )  # fmt: skip


def _fix(logits: Tensor, target: Tensor, rows: list[int]) -> str:
    if list(target.shape) == rows:
        return "targets 0 and 1 in floating point go with one logit a sample; pass target.long() for several scores"
    return "pass one class index, or 0 or 1, for each row of the logits"


def check_factors(logits: Tensor, target: Tensor, weight: Tensor | None, pos_weight: float | None) -> None:
    """`weight` [C] belongs to C scores, `pos_weight` to one logit.

    Raises: LegatoValueError.
    """
    check_pos_weight(pos_weight)
    one = has_one_logit(logits, target)
    if one and weight is not None:
        raise errors.argument("weight", expected="none beside one logit a sample", got="a tensor", fix="use pos_weight")
    if not one and pos_weight is not None:
        fix = "pass weight=torch.tensor([1.0, pos_weight]) for two classes"
        raise errors.argument("pos_weight", expected="None beside several scores a sample", got=pos_weight, fix=fix)
    if weight is not None:
        check_weight(logits, weight)


def check_pos_weight(pos_weight: float | None) -> None:
    """Raises LegatoValueError unless it is None or a plain finite number >= 0."""
    if pos_weight is not None and not (is_number(pos_weight) and pos_weight >= 0):
        got = "a tensor" if isinstance(pos_weight, Tensor) else pos_weight
        fix = "pass pos_weight.item()" if isinstance(pos_weight, Tensor) else "1.0 weighs both classes alike"
        raise errors.argument("pos_weight", expected="a plain finite number >= 0", got=got, fix=fix)


def class_factors(target: Tensor, weight: Tensor | None, pos_weight: float | None, dtype: torch.dtype) -> Tensor | None:
    """What the loss of each sample [B] is multiplied by, or None for nothing."""
    if weight is not None:
        return weight.to(dtype)[target]
    if pos_weight is not None:
        return 1 + (pos_weight - 1) * _column(target).to(dtype)
    return None


def mean_divisor(rows: Tensor, weight: Tensor | None, factors: Tensor | None) -> float | Tensor:
    """What a "mean" divides by: the number of rows, or the sum of their class weights, as torch does; never 0.

    `pos_weight` changes no divisor, as in torch.nn.BCEWithLogitsLoss.
    """
    if weight is None or factors is None:
        return max(rows.numel(), 1)
    return factors.sum().clamp_min(torch.finfo(factors.dtype).tiny)


def check_margin_values(logits: Tensor, target: Tensor) -> None:
    """No NaN among the logits, and every target 0 or 1 or a class in range. Reads the tensors, so a GPU is waited for.

    Raises: LegatoValueError that names the first value that is wrong.
    """
    bad = int(logits.isnan().sum())
    if bad:
        fix = "look for NaN in the inputs, or lower the learning rate"
        raise errors.argument("logits", expected="numbers", got=f"{bad} NaN of {logits.numel()}", fix=fix)
    if not has_one_logit(logits, target):
        check_range(target, logits.shape[-1], 0)  # nothing is ignored, for 0 is in range
        return
    wrong = target[(target != 0) & (target != 1)]
    if len(wrong):
        value = wrong[0].item()
        fix = ("pass (target + 1) / 2" if value == -1 else "round soft labels, or use a loss that takes them" if 0 < value < 1
               else "for more than two classes, give the network one output for each")  # fmt: skip
        raise errors.argument("target", expected="0 or 1 beside one logit a sample", got=value, fix=fix)
