"""Ways from one noise to another: along the sphere, and the same at the pace of what comes out."""

import torch
from torch import Tensor

from legato import errors

PARALLEL = 0.9995
"""Cosine above which the arc is as good as a line, and is taken as one."""


def slerp(a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    """sin((1 - s) theta) / sin theta a + sin(s theta) / sin theta b, with theta the angle between the flattened rows.

    Rows that are parallel (cosine above 0.9995) are joined by a line. Where |a| = |b| the norm stays, and equal shares make equal chords.

    Args:
        a, b: [B, ...] floating point.
        share: s in [0, 1], one number or one a row [B].
    Returns: [B, ...]; a itself at 0 and b at 1, up to rounding.
    Raises: LegatoValueError for unequal shapes, a share out of range, an end that is 0, and ends that are opposite, between which there
        is no shortest way.
    Source: Shoemake 1985; the threshold is that of Stable Diffusion's interpolation scripts.
    """
    if a.shape != b.shape or a.dim() < 2:
        raise errors.argument("a, b", expected="equal shapes [B, ...]", got=f"{list(a.shape)} and {list(b.shape)}")
    s = torch.as_tensor(share, dtype=a.dtype, device=a.device).expand(len(a)).reshape(-1, *[1] * (a.dim() - 1))
    if not bool(((s >= 0) & (s <= 1)).all()):
        raise errors.argument("share", expected="numbers in [0, 1]", got=share)
    norms = [end.flatten(1).norm(dim=1) for end in (a, b)]
    if not bool((torch.minimum(*norms) > 0).all()):
        raise errors.argument(
            "a, b", expected="rows of noise", got="a row that is 0 or not finite, which has no direction"
        )
    cosine = ((a * b).flatten(1).sum(1) / (norms[0] * norms[1])).clamp(-1, 1).reshape(s.shape)
    if bool((cosine < -PARALLEL).any()):
        raise errors.argument(
            "a, b", expected="ends with a shortest way between them", got=f"opposite rows, of cosine {float(cosine.min()):.6f}",
            fix="another seed for one end, or a point between",
        )  # fmt: skip
    line = cosine > PARALLEL
    theta = torch.where(line, 1.0, cosine.acos())
    of_a = torch.where(line, 1 - s, ((1 - s) * theta).sin() / theta.sin())
    of_b = torch.where(line, s, (s * theta).sin() / theta.sin())
    return of_a * a + of_b * b


def walk(a: Tensor, b: Tensor, shares: Tensor) -> Tensor:
    """`slerp` at each share: [K, B, ...] for shares [K], the same for all rows, or [K, B]."""
    return torch.stack([slerp(a, b, share) for share in shares])


def retimed(shares: Tensor, steps: Tensor, count: int) -> Tensor:
    """Shares at which the way, measured by what comes out, is cut in equal lengths: a free remedy against jumps.

    The length up to a share is taken as linear between the points of a first walk.

    Args:
        shares: [M] rising, of the first walk.
        steps: [B, M-1] distances between its neighbours, as `step_lengths` gives them.
        count: points of the new walk, both ends among them, >= 2.
    Returns: [count, B].
    Raises: LegatoValueError for shapes that do not fit, and a walk that does not move.
    """
    if shares.dim() != 1 or steps.dim() != 2 or steps.shape[1] != len(shares) - 1:
        raise errors.argument("steps", expected=f"shape [B, {len(shares) - 1}]", got=f"shape {list(steps.shape)}")
    if count < 2:
        raise errors.argument("count", expected="a whole number >= 2", got=count)
    length = torch.cat([steps.new_zeros(len(steps), 1), steps.cumsum(1)], 1)
    if not bool((length[:, -1] > 0).all()):
        raise errors.argument("steps", expected="a way that moves", got="a row whose steps are all 0")
    wanted = length[:, -1:] * torch.linspace(0, 1, count, dtype=steps.dtype, device=steps.device)
    place = torch.searchsorted(length, wanted, right=True).clamp(1, len(shares) - 1)
    low, high = (length.gather(1, at) for at in (place - 1, place))
    inside = ((wanted - low) / (high - low).clamp(min=torch.finfo(steps.dtype).tiny)).clamp(0, 1)
    shares = shares.to(steps)
    return (shares[place - 1] + inside * (shares[place] - shares[place - 1])).mT
