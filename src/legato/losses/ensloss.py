"""EnsLoss: a new random convex loss for every batch, as a function with a generator and as an object that keeps one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from legato import errors
from legato.losses.arguments import check_reduction
from legato.losses.ens_derivatives import (
    assigned,
    check_ens_parameters,
    falling_sizes,
)
from legato.losses.ens_stream import SizeStream
from legato.losses.margin_losses import logistic_loss
from legato.losses.margins import (
    check_factors,
    check_margin_shapes,
    check_margin_values,
    check_pos_weight,
    class_factors,
    mean_divisor,
    signed_scores,
)


def ens_loss(
    logits: Tensor,
    target: Tensor,
    lambda_: float = 0.0,
    *,
    tail_power: float = 1.0,
    clip: float = 1.0,
    weight: Tensor | None = None,
    pos_weight: float | None = None,
    random: bool = True,
    generator: Generator | None = None,
    reduction: str = "mean",
) -> Tensor:
    """EnsLoss of a batch: sum of g * z over the margins z, with derivatives g of a convex loss that is drawn for this batch.

    **The gradient is the object.** d loss / d z = g / B, and nothing else: g is drawn and sorted against z without a graph, as in
    `ens_derivatives`. The value is a pseudo-loss that compares to no other value, not even of the next batch.

    The normal draws are generated in rising order, which has the distribution of the official code and costs one sort instead of
    two; for the official numbers on given draws, use `ens_derivatives`. Several scores a sample go through the multi-class margin
    of `margins`; that form is ours, the paper has one logit.

    Args:
        logits: [B] or [B, 1], one logit a sample, or [B, C], C >= 2 scores. Types shorter than float32 are computed in float32.
        target: [B], 0 or 1 (int64 or floating point) for one logit, int64 class indices for C scores.
        lambda_, tail_power, clip: as in `ens_derivatives`.
        weight: [C], a factor for each class, for C scores only; "mean" divides by the sum of the factors.
        pos_weight: >= 0, a factor for y = 1, for one logit only; "mean" divides by B. Ranks do not see the factors.
        random: False takes normal quantiles instead of draws and needs no generator.
        generator: on the device of the logits; the global random numbers are never touched.
        reduction: "none" -> g * z of each sample [B], "mean" or "sum" -> []. An empty batch gives 0 with a graph.
    Returns: float32 or float64, of any sign. NaN where a logit is NaN, with its gradient.
    Raises: as `margins`; LegatoValueError for a generator that is missing or on another device, a number out of range, a weight
        that does not fit, and logits without a batch axis, for ranks need a batch.
    Source: Dai 2025, arXiv 2409.00908.
    """
    check_ens_parameters(lambda_, tail_power, clip)
    check_reduction(reduction)

    def sizes(z: Tensor) -> Tensor:
        if random:
            _check_generator(generator, z.device)
        return falling_sizes(1, z, lambda_, clip, random=random, generator=generator)[0]

    return _pseudo_loss(logits, target, sizes, tail_power, weight, pos_weight, reduction)


def _pseudo_loss(
    logits: Tensor,
    target: Tensor,
    sizes: Callable[[Tensor], Tensor],
    tail_power: float,
    weight: Tensor | None,
    pos_weight: float | None,
    reduction: str,
) -> Tensor:
    """`ens_loss` with the sizes of the derivatives as a function of the margins' shape, type and device."""
    scores, signs = signed_scores(logits, target)
    check_factors(logits, target, weight, pos_weight)
    if scores.dim() == 0:
        raise errors.argument(
            "logits", expected="a batch, in which margins are ranked", got="one sample without a batch axis"
        )
    z = scores.detach() if signs is None else signs * scores.detach()
    g = assigned(z, sizes(z), tail_power)
    factors = class_factors(target, weight, pos_weight, z.dtype)
    if factors is not None:
        g = g * factors
    if reduction == "mean":
        g = g.mul_(1 / mean_divisor(z, weight, factors))
    slopes = g if signs is None else g.mul_(signs)
    return slopes * scores if reduction == "none" else torch.dot(slopes, scores)  # one node, whose gradient is slopes


def _check_generator(generator: Generator | None, device: torch.device) -> None:
    if generator is None:
        raise errors.argument(
            "generator", expected="a torch.Generator, for global random numbers are not touched", got=None,
            fix="torch.Generator(logits.device), the object EnsLoss, which keeps one, or random=False",
        )  # fmt: skip
    if generator.device.type != device.type:
        raise errors.argument(
            "generator", expected=f"one on {device.type}, where the logits are", got=f"one on {generator.device.type}"
        )


class EnsLoss(nn.Module):
    """`ens_loss` as an object with random numbers of its own: a drop-in for `torch.nn.BCEWithLogitsLoss` on labels 0 and 1.

    In training mode it returns the pseudo-loss, whose gradient is what to train with. After `eval()` it returns
    `logistic_loss`, a fixed loss (binary cross-entropy for one logit), so that validation curves mean something and draw nothing.

    With a `period`, call `begin_epoch(epoch)` at the start of each epoch; `legato.fit` does. As in the official code lambda is
    `lambda_` in the first period - 1 epochs, and from then on drawn anew, uniform in [-1, 1], every `period` epochs. It follows
    from seed and epoch alone.

    `state_dict` keeps the state of the generator and the epoch, so that a resumed run draws what it would have drawn. Every
    process of several ranks its own rows; with equal seeds all take the same draws. Each micro-batch of an accumulated step has
    its own random loss.

    At its first call it looks at the values: targets 0 or 1, or classes in range, and no NaN among the logits. Later a NaN logit
    gives a NaN loss, and nothing waits for a device. torch.compile compiles `random=False` and eval mode whole, and splits the
    graph at the draws otherwise. Inside torch.vmap use the function.

    Args:
        lambda_, tail_power, clip, weight, pos_weight, random, reduction: as in `ens_loss`.
        period: epochs between two draws of lambda, >= 1, or None for the same lambda always.
        seed: >= 0, of draws and lambdas.
    Raises: LegatoValueError for a number out of range, and at the first call for values that cannot be used.
    """

    weight: Tensor | None

    def __init__(
        self,
        lambda_: float = 0.0,
        *,
        period: int | None = None,
        tail_power: float = 1.0,
        clip: float = 1.0,
        weight: Tensor | None = None,
        pos_weight: float | None = None,
        random: bool = True,
        seed: int = 0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_ens_parameters(lambda_, tail_power, clip)
        check_pos_weight(pos_weight)
        check_reduction(reduction)
        if period is not None and not (isinstance(period, int) and period >= 1):
            raise errors.argument("period", expected="a whole number of epochs >= 1, or None", got=period)
        if not (isinstance(seed, int) and seed >= 0):
            raise errors.argument("seed", expected="a whole number >= 0", got=seed)
        self.stream = SizeStream(lambda_, period, clip, random, seed)
        self.tail_power, self.pos_weight, self.reduction = tail_power, pos_weight, reduction
        self.register_buffer("weight", weight)
        self.calls = 0

    @property
    def lambda_(self) -> float:
        """Lambda in this epoch."""
        return self.stream.lambda_

    def begin_epoch(self, epoch: int) -> None:
        """Set lambda for the epoch, from 0, that is about to begin."""
        self.stream.begin_epoch(epoch)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The pseudo-loss of a batch in training mode, the logistic loss in eval mode."""
        if not torch.compiler.is_compiling():
            self.calls += 1
            if self.calls == 1:
                check_margin_shapes(logits, target)
                check_margin_values(logits, target)
        weight, pos_weight, reduction = self.weight, self.pos_weight, self.reduction
        if not self.training:
            return logistic_loss(logits, target, weight=weight, pos_weight=pos_weight, reduction=reduction)
        return _pseudo_loss(logits, target, self.stream.next, self.tail_power, weight, pos_weight, reduction)

    def get_extra_state(self) -> dict[str, Any]:
        """Where the random numbers are, the epoch, and whether values were looked at."""
        return {"stream": self.stream.state(), "calls": self.calls}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was; the seed is that of the state."""
        self.stream.load(state["stream"])
        self.calls = state["calls"]

    def extra_repr(self) -> str:
        """`lambda_=0.0`, and whatever differs from its default."""
        stream = self.stream
        told = [f"lambda_={stream.first_lambda}"] + ([] if self.weight is None else [f"weight=[{len(self.weight)}]"])
        for holder, name, default in [
            (stream, "period", None), (self, "tail_power", 1.0), (stream, "clip", 1.0), (self, "pos_weight", None),
            (stream, "random", True), (stream, "seed", 0), (self, "reduction", "mean"),
        ]:  # fmt: skip
            value = getattr(holder, name)
            told += [] if value == default else [f"{name}={value!r}"]
        return ", ".join(told)
