"""Comp-sum losses: one number, tau, leads from the sum-exponential loss over cross-entropy to the absolute error."""

import torch
from torch import Tensor
from torch.nn import functional as F

from legato import errors
from legato.losses.arguments import (
    check_indices,
    check_logits,
    check_probabilities,
    check_reduction,
    check_weight,
    class_axis,
    is_number,
    num_classes,
)
from legato.losses.rows import cross_entropy, reduce, shares, widened


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

    Soft targets q, and class indices with label smoothing, give sum_k q_k * weight_k * loss(h, k), which is F.cross_entropy at
    tau = 1. A class with q_k = 0 is left out, gradients included. These need the loss of every class, and so more memory.

    Args:
        logits: [B, C], [B, C, ...] or [C], floating point, before any softmax. Types shorter than float32 are computed in float32.
        target: class indices, int64 [B, ...], or probabilities of the shape of logits.
        tau: >= 0, no unit.
        temperature: > 0, divides the logits. Any but 1 needs one more table of the size of the logits for a moment.
        weight: [C], a factor for each class; with class indices "mean" divides by the sum of the factors, as torch does.
        ignore_index: rows with this class index count nothing. A mean over nothing (all rows ignored, all weights 0, or an
            empty batch) is 0 with a gradient of 0, where torch gives NaN.
        label_smoothing: in [0, 1]; mixes the target with the uniform distribution.
        reduction: "none" -> [B, ...], "mean" or "sum" -> [].
    Returns: loss >= 0, float32 or float64, in nats at tau = 1, else without unit; at most 1/(tau - 1) for tau > 1.
        Its error is within 4 eps max|h| * max(1, p^(tau-1)). For tau < 1 it overflows to inf where (1 - tau) * ce passes 88
        (float32) or 709 (float64); nothing is checked here, so that no device is waited for, but `CompSumLoss` looks.
    Raises: LegatoValueError for a number out of range, a shape that does not fit, and on the CPU a class out of range;
        LegatoTypeError for logits that are not floating point.
    Source: Mao, Mohri, Zhong 2023, arXiv 2304.07288; the closed form is derived in docs/methods/comp-sum.md.
    """
    check_parameters(tau, temperature, label_smoothing, reduction)
    check_logits(logits)
    check_weight(logits, weight)
    scores = widened(logits)
    if temperature != 1:
        scores = scores / temperature
    if target.is_floating_point():
        check_probabilities(logits, target)
        losses = _soft(scores, _smoothed(target.to(scores.dtype), label_smoothing, num_classes(scores)), tau, weight)
        return reduce(losses, torch.ones_like(losses), reduction)
    check_indices(logits, target)
    ce = cross_entropy(scores, target, ignore_index)  # first, for it names a class out of range; 0 in ignored rows
    counts = shares(target, ignore_index, weight, scores.dtype)
    losses = _phi(ce, tau) if weight is None else counts * _phi(ce.masked_fill(counts == 0, 0), tau)  # inf * 0 is NaN
    if label_smoothing:
        uniform = (target != ignore_index).to(scores.dtype).unsqueeze(class_axis(scores)) / num_classes(scores)
        losses = (1 - label_smoothing) * losses + label_smoothing * _soft(scores, uniform, tau, weight)
    return reduce(losses, counts, reduction)


def check_parameters(tau: float, temperature: float, label_smoothing: float, reduction: str) -> None:
    """The plain numbers of `comp_sum_loss`.

    Raises: LegatoValueError for the first that is out of its range.
    """
    if not (is_number(tau) and tau >= 0):
        raise errors.argument("tau", expected="a plain finite number >= 0", got=tau, fix="tau=1.0 is cross-entropy")
    if not (is_number(temperature) and temperature > 0):
        raise errors.argument("temperature", expected="a plain finite number > 0", got=temperature)
    if not (is_number(label_smoothing) and 0 <= label_smoothing <= 1):
        raise errors.argument("label_smoothing", expected="a plain number in [0, 1]", got=label_smoothing)
    check_reduction(reduction)


def _phi(ce: Tensor, tau: float) -> Tensor:
    return ce if tau == 1 else torch.expm1((1 - tau) * ce) / (1 - tau)


def _soft(scores: Tensor, q: Tensor, tau: float, weight: Tensor | None) -> Tensor:
    """sum_k q_k * weight_k * loss(h, k) for q that broadcasts to the shape of scores."""
    axis = class_axis(scores)
    if weight is not None:
        q = q * weight.to(scores.dtype).reshape([-1 if d == axis else 1 for d in range(scores.dim())])
    ce = (-F.log_softmax(scores, axis)).masked_fill(q == 0, 0)  # masked, for inf * 0 is NaN, in the gradient too
    return (q * _phi(ce, tau)).sum(axis)


def _smoothed(q: Tensor, amount: float, classes: int) -> Tensor:
    return q if amount == 0 else (1 - amount) * q + amount / classes
