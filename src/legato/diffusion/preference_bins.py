"""D by timestep: where the two controls are told apart, and how noisy that is."""

from dataclasses import dataclass

from torch import Tensor

from legato import errors


@dataclass(frozen=True)
class GapBin:
    """The gap D = errors_w - errors_l of the pairs whose t is in a range of levels; NaN where there are too few."""

    first: int
    last: int
    """Levels, both included."""
    pairs: int
    accuracy: float
    """Share with D < 0: the true control helps."""
    learned: float
    """Share with D < D_ref: it helps more than it helped the reference."""
    gap: float
    """Mean of D."""
    shift: float
    """Mean of D - D_ref; -beta / 2 times it is what TRL calls the margin of the rewards."""
    variance: float
    """Of D, divisor n - 1: small where all is small, so it says little alone."""
    spread: float
    """Standard deviation of D / |mean D|: free of scale."""


def gap_by_timestep(
    errors_w: Tensor, errors_l: Tensor, ref_w: Tensor, ref_l: Tensor, t: Tensor, levels: int, bins: int = 4
) -> tuple[GapBin, ...]:
    """What D is in each of `bins` equal ranges of the levels 0 .. levels - 1.

    Args:
        errors_w, errors_l, ref_w, ref_l: [N].
        t: int64 [N].
        levels: T.
        bins: in 1 .. T.
    Raises: LegatoValueError for shapes that differ, a t out of range and bins that are none.
    """
    parts = (errors_w, errors_l, ref_w, ref_l, t)
    if any(part.dim() != 1 or part.shape != t.shape for part in parts):
        raise errors.argument("errors, t", expected="equal shapes [N]", got=[list(part.shape) for part in parts])
    if not 1 <= bins <= levels:
        raise errors.argument("bins", expected=f"a whole number in 1 .. {levels}", got=bins)
    if len(t) and not 0 <= int(t.min()) <= int(t.max()) < levels:
        raise errors.argument("t", expected=f"levels in 0 .. {levels - 1}", got=f"{int(t.min())} .. {int(t.max())}")
    gap, reference = ((a - b).detach().double().cpu() for a, b in ((errors_w, errors_l), (ref_w, ref_l)))
    where = t.cpu() * bins // levels
    return tuple(_bin(gap[where == k], reference[where == k], -(-k * levels // bins), -(-(k + 1) * levels // bins) - 1)
                 for k in range(bins))  # fmt: skip


def _bin(gap: Tensor, reference: Tensor, first: int, last: int) -> GapBin:
    n, nan = len(gap), float("nan")
    if not n:
        return GapBin(first, last, 0, *[nan] * 6)
    mean, variance = float(gap.mean()), float(gap.var()) if n > 1 else nan
    return GapBin(
        first, last, n, float((gap < 0).double().mean()), float((gap < reference).double().mean()), mean,
        float((gap - reference).mean()), variance, variance**0.5 / abs(mean) if mean else nan,
    )  # fmt: skip
