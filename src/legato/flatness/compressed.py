"""Records of many classes in little room: the k largest logits of each sample, and what the others weigh together."""

import math
from typing import Any, final

import torch
from torch import Tensor

from legato import errors
from legato.flatness.records import Records
from legato.flatness.storage import Store
from legato.flatness.trajectory import check_tau, check_whole

LARGEST_CLASS = 2**24
"""float32 holds all whole numbers up to here."""


def compress(logits: Tensor, top_k: int, tau: float) -> Tensor:
    r"""The k largest logits of each row, their classes, and the level of the others.

    level = tau (logsumexp over the others of logits / tau - log(C - k)): at this logit each of the C - k others would have the mean of
    their probabilities softmax(logits / tau). A row whose sum is not finite becomes NaN throughout.

    Args:
        logits: [B, C], floating point.
        top_k: k, in 1 .. C.
        tau: > 0, the temperature at which probabilities are kept.
    Returns: [B, 2 k + 1]: logits from the largest on, classes, level (0 for k = C); float64 if logits are, else float32.
    """
    wide = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    values, classes = wide.topk(top_k, dim=1)
    level = wide.new_zeros(len(wide), 1)
    others = wide.shape[1] - top_k
    if others:
        rest = (wide / tau).scatter(1, classes, -math.inf)
        level = tau * (rest.logsumexp(1, keepdim=True) - math.log(others))
    packed = torch.cat([values, classes.to(wide.dtype), level], dim=1)
    return packed.masked_fill(~wide.sum(1, keepdim=True).isfinite(), math.nan)


def expand(packed: Tensor, num_classes: int) -> Tensor:
    """[B, C]: the k largest logits in their places, the level in all others; for k = C the logits themselves.

    Args:
        packed: [B, 2 k + 1], as from `compress`, and finite.
        num_classes: C.
    """
    top_k = packed.shape[1] // 2
    values, classes, level = packed.split([top_k, top_k, 1], dim=1)
    logits: Tensor = level.repeat(1, num_classes).scatter(1, classes.long(), values)
    return logits


@final
class TopRecords:
    """`Records` of the k largest logits of each sample: softmax(record / tau) has their probabilities, and the rest of the mass evenly.

    Memory: (lag + 1) (N + 1) ((2 k + 1) itemsize + 4) bytes.

    Args:
        num_samples, num_classes, lag, store: as in `Records`.
        top_k: k, in 1 .. C; at C nothing is lost, and nothing saved.
        tau: > 0, the temperature of the loss.
        dtype: float32 or float64; shorter ones cannot hold the number of a class.
    Raises: LegatoValueError for a number out of range, another dtype, and as `Records` does.
    """

    def __init__(
        self, num_samples: int, num_classes: int, lag: int, top_k: int, tau: float, *, store: Store, dtype: torch.dtype
    ) -> None:
        check_whole("num_classes", num_classes, 1)
        check_whole("top_k", top_k, 1)
        check_tau(tau)
        if top_k > num_classes:
            raise errors.argument("top_k", expected=f"at most the {num_classes} classes", got=top_k)
        if dtype not in (torch.float32, torch.float64) or num_classes > LARGEST_CLASS:
            raise errors.argument(
                "dtype", expected=f"torch.float32 or float64 and at most {LARGEST_CLASS} classes, since the table holds their numbers",
                got=f"{dtype} and {num_classes} classes", fix="leave dtype out; a smaller top_k saves more",
            )  # fmt: skip
        self.num_classes, self.top_k, self.tau = num_classes, top_k, tau
        self.packed = Records(num_samples, 2 * top_k + 1, lag, store=store, dtype=dtype)
        self.num_samples, self.lag, self.bytes = num_samples, lag, self.packed.bytes

    def __repr__(self) -> str:
        return f"TopRecords({self.top_k} of {self.num_classes} classes, {self.packed})"

    @property
    def device(self) -> torch.device:
        """Where the table is."""
        return self.packed.device

    @property
    def dropped(self) -> int:
        """As in `Records`."""
        return self.packed.dropped

    @property
    def repeated(self) -> int:
        """As in `Records`."""
        return self.packed.repeated

    def read(self, index: Tensor, epoch: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """As in `Records`; what comes from the table is small, and is expanded on `device`."""
        packed, valid = self.packed.read(index, epoch, device)
        return expand(packed, self.num_classes), valid

    def write(self, index: Tensor, logits: Tensor, epoch: int, *, count: bool = True) -> None:
        """As in `Records`; compressed where the logits are."""
        self.packed.write(index, compress(logits.detach(), self.top_k, self.tau), epoch, count=count)

    def restart(self) -> None:
        """Forget everything."""
        self.packed.restart()

    def state_dict(self) -> dict[str, Any]:
        """As in `Records`."""
        return self.packed.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As in `Records`; the shape in its error is that of the compressed table, 2 k + 1 numbers a row."""
        self.packed.load_state_dict(state)
