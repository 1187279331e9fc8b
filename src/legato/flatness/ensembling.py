"""Temporal ensembling: a loss that holds the outputs back near the moving average of what was said of the same sample."""

from typing import Any, final

import torch
from torch import Tensor

from legato import errors
from legato.flatness.records import DTYPES, claim
from legato.flatness.saf import TableTerm
from legato.flatness.storage import Store, check_room, place_of
from legato.flatness.trajectory import Ramp, check_whole, is_number


@final
class Averages:
    """The moving average of the outputs of each of N samples, before this epoch and with it.

    Z <- momentum Z + (1 - momentum) outputs, once an epoch; a reading gives Z / (1 - momentum^t) after t updates, as it was before the
    present epoch, however often a row comes. An epoch in which a row does not come leaves its average alone.

    Memory: 2 (N + 1) (C itemsize + 8) bytes.

    Args:
        num_samples, num_classes: N and C.
        momentum: in [0, 1).
        store: "cpu" or another device.
        dtype: float32 or float64.
    Raises: LegatoValueError for a number out of range, a store that is no device, or more than half of the memory that is free.
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        momentum: float,
        *,
        store: Store = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_whole("num_samples", num_samples, 1)
        check_whole("num_classes", num_classes, 1)
        if not (is_number(momentum) and 0 <= momentum < 1):
            raise errors.argument(
                "momentum", expected="a plain number in [0, 1)", got=momentum, fix="momentum=0.6 is the paper's"
            )
        if dtype not in DTYPES[:2]:
            raise errors.argument(
                "dtype", expected="torch.float32 or float64, for an average of short numbers stands still", got=dtype
            )
        place = place_of(store)
        if not isinstance(place, torch.device):
            raise errors.argument(
                "store", expected="a device, such as 'cpu' or 'cuda'", got=store, fix="SAF has shared and filed tables"
            )
        self.num_samples, self.num_classes, self.momentum, self.dtype, self.lag = (
            num_samples,
            num_classes,
            momentum,
            dtype,
            1,
        )
        self.bytes = 2 * (num_samples + 1) * (num_classes * dtype.itemsize + 8)
        check_room(place, self.bytes)
        rows = 2 * (num_samples + 1)  # two slots, one after the other; row N of the first takes what is not kept
        self.sums = torch.zeros(rows, num_classes, dtype=dtype, device=place)
        self.updates, self.stamps = (torch.full((rows,), value, dtype=torch.int32, device=place) for value in (0, -1))
        self.repeated_rows, self.dropped_rows = (torch.zeros((), dtype=torch.int64, device=place) for _ in range(2))

    def __repr__(self) -> str:
        return f"Averages({self.num_samples} x {self.num_classes}, momentum={self.momentum:g})"

    @property
    def device(self) -> torch.device:
        """Where the averages are."""
        return self.sums.device

    @property
    def dropped(self) -> int:
        """Rows that were not recorded because they were not finite. Waits for the device."""
        return int(self.dropped_rows)

    @property
    def repeated(self) -> int:
        """Rows that had been recorded before in the same epoch. Waits for the device."""
        return int(self.repeated_rows)

    def read(self, index: Tensor, epoch: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """The averages [B, C] before this epoch, on `device`, and whether there are any, bool [B]."""
        source, _, valid = self._slots(index.to(self.device), epoch)
        updates = self.updates.index_select(0, source).clamp_min(1).to(self.dtype)
        average = self.sums.index_select(0, source) / (1 - self.momentum**updates).unsqueeze(1)
        return average.to(device), valid

    def write(self, index: Tensor, logits: Tensor, epoch: int, *, count: bool = True) -> None:
        """Let the first finite outputs of each row in this epoch into its average."""
        source, target, valid = self._slots(index.to(self.device), epoch)
        outputs = logits.detach().to(self.device, self.dtype)
        finite, first = claim(self.stamps, target, outputs, epoch)
        before = self.sums.index_select(0, source).masked_fill(~valid.unsqueeze(1), 0)
        updates = self.updates.index_select(0, source).masked_fill(~valid, 0) + 1
        target = torch.where(first, target, self.num_samples)
        self.sums.index_copy_(0, target, torch.lerp(outputs, before, self.momentum))
        self.updates.index_copy_(0, target, updates)
        self.stamps.index_fill_(0, target, epoch)
        if count:
            self.dropped_rows += (~finite).sum()
            self.repeated_rows += (finite & ~first).sum()

    def restart(self) -> None:
        """Forget everything."""
        self.stamps.fill_(-1)
        self.repeated_rows.zero_()
        self.dropped_rows.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The averages themselves, no copies."""
        return {name: getattr(self, name) for name in ("sums", "updates", "stamps", "repeated_rows", "dropped_rows")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave. Raises: LegatoValueError for averages of another shape."""
        if state["sums"].shape != self.sums.shape:
            was, now = ([s[0] // 2 - 1, s[1]] for s in (state["sums"].shape, self.sums.shape))
            raise errors.argument("state", expected=f"averages of [num_samples, num_classes] = {now}", got=was)
        for name, value in state.items():
            getattr(self, name).copy_(value)

    def _slots(self, rows: Tensor, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where each row's last average before this epoch is, where the next one goes, and bool, whether there is one."""
        other = rows + self.num_samples + 1
        stamps = torch.stack([self.stamps.index_select(0, rows), self.stamps.index_select(0, other)])
        stamps = stamps.masked_fill(stamps == epoch, -1)
        second = stamps[1] > stamps[0]
        return torch.where(second, other, rows), torch.where(second, rows, other), stamps.amax(0) >= 0


@final
class TemporalEnsembling(TableTerm):
    r"""`loss = criterion(output, targets) + ensembling(output, index)`: the outputs stay near their moving average over epochs.

    ensembling = weight(e) * trajectory_loss(output, average of the outputs in the epochs before e, tau); the average is
    Z / (1 - momentum^t) with Z <- momentum Z + (1 - momentum) output, once an epoch. All else is as in `SAF`: `begin_epoch`, rows without a
    record, warnings, states. It takes the memory of two slots, where SAF takes lag + 1.

    Args:
        num_samples, num_classes, lam, tau, start, warmup, rows: as in `SAF`.
        momentum: in [0, 1); 0 is SAF with lag=1.
        store: "cpu" or another device.
        dtype: float32 or float64.
    Raises: LegatoValueError for a number out of range or a table that takes more than half of the free memory.
    Source: Laine and Aila 2017, arXiv 1610.02242, with momentum=0.6; there on probabilities, with a squared distance. The form and the weight
        of the distance are those of SAF.
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        lam: float = 0.3,
        tau: float = 5.0,
        momentum: float = 0.6,
        start: int = 5,
        warmup: int = 0,
        store: Store = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        rows: Tensor | None = None,
    ) -> None:
        check_whole("num_samples", num_samples, 1)
        ramp = Ramp(lam, start, warmup)
        self.averages = Averages(
            num_samples if rows is None else len(rows), num_classes, momentum, store=store, dtype=dtype
        )
        super().__init__(num_samples, self.averages, ramp, tau, rows)
