"""Derivatives of a random convex loss at the margins of a batch: the core of EnsLoss, without labels and without a graph."""

import torch
from torch import Generator, Tensor

from legato import errors
from legato.losses.arguments import is_number

_MINUS_OFFSET = torch.tensor(-1e-6, dtype=torch.float64)
"""Added to every derivative, as in the official code, so that none is 0. A tensor, for a plain number is made one at each call."""
SMALL_LAMBDA, NO_LAMBDA = 0.01, 1e-30
"""Below the first |lambda| the power loses more than two digits, and the way through log1p is taken; below the second lambda is 0."""
ORDERED_ROWS = 2048
"""Rows from which normal numbers are made in order and not sorted: there it is faster."""
RADIX_ROWS = 32768
"""Rows from which torch sorts integers by radix on a CPU, ten times as fast as it sorts floating point numbers."""


def ens_derivatives(
    margins: Tensor, draws: Tensor, lambda_: float = 0.0, *, tail_power: float = 1.0, clip: float = 1.0
) -> Tensor:
    """Derivatives g of a convex loss at the margins z, from standard normal numbers; the official algorithm.

    r = min(inverse_box_cox(draws, lambda_), clip), sorted; the k-th smallest margin gets g = -(k-th largest r);
    then g is divided by z^tail_power where z > 1, and 1e-6 is taken from it.
    So g rises with z (the loss is convex), is below 0 (it is calibrated), and |g| <= clip + 1e-6 (no sample can dominate). On the
    same draws g is that of the official code in every bit, in float32 at tail_power 1, clip 1 and |lambda_| >= 0.01 or 0, unless
    margins are equal: then it is the same for the tie as a whole, given out here in the order of the rows and there in any order.

    Args:
        margins: [B], float32 or float64; its graph is ignored.
        draws: [B], standard normal numbers in any order, of the type and device of margins.
        lambda_: finite; the paper's values are 0, or drawn in [-1, 1].
        tail_power: >= 0. At 1, the official code, the losses fall like -log z for ever; above 1 they are bounded below but for
            the 1e-6, which never decays.
        clip: > 0, the largest |g| but for the 1e-6; 1 in the official code.
    Returns: [B] without a graph, in the type of margins; NaN where a margin is NaN, and then the ranks of others mean nothing.
    Raises: LegatoValueError for shapes that differ and numbers out of range.
    Source: Dai 2025, arXiv 2409.00908, algorithm 1; github.com/statmlben/ensLoss, losses.py, for the clip, the tail and the offset.
    """
    check_ens_parameters(lambda_, tail_power, clip)
    if draws.shape != margins.shape or margins.dim() != 1 or draws.dtype != margins.dtype:
        expected = f"one number for each margin, {margins.dtype} of shape {list(margins.shape)[:1] or '[B]'}"
        raise errors.argument("draws", expected=expected, got=f"{draws.dtype} of shape {list(draws.shape)}")
    sizes = inverse_box_cox(draws.detach(), lambda_).clamp_max(clip)
    return assigned(margins.detach(), sizes.sort(descending=True).values, tail_power)


def assigned(margins: Tensor, sizes: Tensor, tail_power: float) -> Tensor:
    """Derivatives [B] at margins [B]: the k-th smallest margin gets the k-th of sizes [B], which fall; then tail and offset."""
    ranked = sizes.scatter(0, _ascending_order(margins), sizes)
    tail = margins.clamp_min(1)
    tail = tail.reciprocal_() if tail_power == 1 else tail.pow_(-tail_power)
    return torch.sub(_MINUS_OFFSET, ranked.mul_(tail))


def falling_sizes(
    batches: int, like: Tensor, lambda_: float, clip: float, *, random: bool = True, generator: Generator | None = None
) -> Tensor:
    """r of `ens_derivatives`, falling in each row, [batches, B], for margins [B] of the type and device of `like`.

    Args:
        random: draws from the generator; False takes `normal_profile`, the same for each batch.
    """
    rows, dtype, device = like.shape[0], like.dtype, like.device
    if random and rows < ORDERED_ROWS:
        draws = torch.randn(batches, rows, generator=generator, dtype=dtype, device=device)
        return inverse_box_cox(draws, lambda_).clamp_max_(clip).sort(descending=True).values
    if random:
        draws = sorted_normals(batches, rows, generator=generator, dtype=dtype, device=device)
    else:
        draws = normal_profile(rows, dtype=dtype, device=device).expand(batches, rows)
    rising = inverse_box_cox(draws, lambda_).clamp_max_(clip)
    return rising.cummax(-1).values.flip(-1)  # cummax, for quantile functions may step back by a rounding error


def inverse_box_cox(draws: Tensor, lambda_: float) -> Tensor:
    """exp(Z) at lambda 0, else max(1 + lambda Z, 0)^(1/lambda): positive, rising in Z, any shape."""
    if abs(lambda_) < NO_LAMBDA:
        return draws.exp()
    if abs(lambda_) < SMALL_LAMBDA:
        return ((lambda_ * draws).clamp_min(-1).log1p() / lambda_).exp()
    return (1 + lambda_ * draws).clamp_min(0).pow(1 / lambda_)


def sorted_normals(
    batches: int,
    rows: int,
    *,
    generator: Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal draws in rising order, [batches, rows], made in this order and never sorted.

    With standard exponential gaps E_1 .. E_{B+1}, the ratios (E_1 + .. + E_k) / (E_1 + .. + E_{B+1}), k = 1 .. B, are distributed
    as B uniform numbers in rising order; their normal quantiles as sorted normal ones.

    Source: Devroye 1986, Non-Uniform Random Variate Generation, chapter V, on uniform order statistics.
    """
    gaps = torch.rand(batches, rows + 1, generator=generator, dtype=dtype, device=device).neg_().log1p_()  # -E
    sums = gaps.cumsum(-1)
    draws: Tensor = torch.special.ndtri(sums[:, :-1] / sums[:, -1:])
    return draws


def normal_profile(rows: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """Normal quantiles at (k - 1/2) / B, k = 1 .. B, rising: draws without randomness, [rows].

    The midpoint rule: the mean of a function over them tends to its mean over normal draws, so a batch has the mean derivative
    that it has with random ones.
    """
    draws: Tensor = torch.special.ndtri((torch.arange(rows, dtype=dtype, device=device) + 0.5) / max(rows, 1))
    return draws


def check_ens_parameters(lambda_: float, tail_power: float, clip: float) -> None:
    """The plain numbers of `ens_derivatives`.

    Raises: LegatoValueError for the first that is out of its range.
    """
    if not is_number(lambda_):
        raise errors.argument("lambda_", expected="a plain finite number", got=lambda_, fix="0.0 is the paper's value")
    if not (is_number(tail_power) and tail_power >= 0):
        fix = "1.0 is the official code"
        raise errors.argument("tail_power", expected="a plain finite number >= 0", got=tail_power, fix=fix)
    if not (is_number(clip) and clip > 0):
        fix = "1.0 is the official code"
        raise errors.argument("clip", expected="a plain finite number > 0", got=clip, fix=fix)


def _ascending_order(values: Tensor) -> Tensor:
    """A stable argsort of [B]."""
    if values.shape[0] < RADIX_ROWS or values.device.type != "cpu":
        return values.argsort(stable=True)
    whole, last = (torch.int64, 63) if values.dtype == torch.float64 else (torch.int32, 31)
    bits = (values + 0.0).view(whole)  # + 0.0 turns -0.0, which is smaller as an integer, into 0.0
    return (bits ^ ((bits >> last) & torch.iinfo(whole).max)).argsort(
        stable=True
    )  # the bits of negatives run backwards
