"""Records: what the model said about each sample in the last few epochs, in memory, on a device or in a file that processes share."""

import math
import zlib
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from legato import errors
from legato.flatness.storage import PAGE, Store, check_file, check_room, first_alone, human, make_file, meet, place_of
from legato.flatness.trajectory import check_whole, warn

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LARGEST = 6e4
"""What float16 and bfloat16 are clipped to; float16 itself ends at 65504."""
_LAST = 2**31 - 1
_ROWS = 1 << 16


@final
class Records:
    r"""The outputs of each of N samples in the last `lag` epochs: a ring of lag + 1 slots, and the epoch of each row in each slot.

    What is written in epoch e goes to slot e mod (lag + 1); what is read then was written in epoch e - lag, and nothing overwrites it
    before the epoch is over. So a row that comes more than once in an epoch (in one batch or in two, in one process or in two, or
    because a step looks at its batch twice) reads the same record each time, and only its first finite outputs are recorded.

    A row is valid if it was recorded in epoch e - lag exactly. `dropped` counts rows that were not recorded because their outputs
    were not finite (or so large that their sum is not), `repeated` those that had been recorded in the same epoch already.

    Memory: (lag + 1) (N + 1) (C itemsize + 4) bytes; see `record_bytes`.

    Args:
        num_samples, num_classes: N and C.
        lag: >= 1, epochs.
        store: "cpu"; a device such as "cuda"; "shared", memory of this node that is shared with processes which get these records as
            an argument through torch.multiprocessing; or a file, as a Path or a string with a directory or a suffix in it, which all
            processes of a node may open. What a file holds counts only after `load_state_dict`.
        dtype: float32, float64, float16 or bfloat16. The last two are clipped to +-60000.
    Raises: LegatoValueError for a number out of range, another dtype, another file, or more than half of the memory that is free.
    """

    def __init__(
        self, num_samples: int, num_classes: int, lag: int, *, store: Store = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        for name, value in (("num_samples", num_samples), ("num_classes", num_classes), ("lag", lag)):
            check_whole(name, value, 1)
        if dtype not in DTYPES:
            raise errors.argument("dtype", expected="torch.float32, float64, float16 or bfloat16", got=dtype)
        self.num_samples, self.num_classes, self.lag, self.dtype = num_samples, num_classes, lag, dtype
        self.slots = lag + 1
        self.bytes = record_bytes(num_samples, num_classes, lag, dtype)
        self.place = place_of(store)
        check_room(self.place, self.bytes)
        # [slots, N + 1, C], and int32 [slots, N + 1]; row N takes what is not kept
        self.table, self.stamps = self._allocate()
        self._pages = self._opened()
        self._seen = 0
        self._finite: Tensor | int = 0  # tensors, when to look would be to wait
        self._first: Tensor | int = 0
        self._newest = -1
        self._later: tuple[Tensor, Tensor, Any, int, bool] | None = None
        self._checksums: dict[int, int] = {}

    def __repr__(self) -> str:
        shape = f"{self.num_samples} x {self.num_classes}, lag={self.lag}"
        return f"Records({shape}, {str(self.dtype).removeprefix('torch.')} in {self.place}: {human(self.bytes)})"

    @property
    def device(self) -> torch.device:
        """Where the table is."""
        device: torch.device = self.table.device
        return device

    @property
    def dropped(self) -> int:
        """Rows so far that were not recorded because they were not finite. Waits for the device, as does `repeated`."""
        return self._seen - int(self._finite)

    @property
    def repeated(self) -> int:
        """Rows so far that had been recorded before in the same epoch."""
        return int(self._finite) - int(self._first)

    def read(self, index: Tensor, epoch: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """What was recorded of these rows `lag` epochs before `epoch`.

        Args:
            index: int64 [B], rows in 0 .. N-1; not looked at.
            epoch: counted from 0.
            device: where the outputs should be; None for the table's own.
        Returns: outputs [B, C] in the table's dtype, finite also where nothing was recorded; and bool [B], whether something was,
            on the table's device.
        """
        self._write_now()
        rows, was = index.to(self.device), epoch - self.lag
        table, stamps = self._pages[was % self.slots]
        if device is not None and device.type == "cuda" and self.device.type == "cpu":
            past = torch.empty(len(rows), self.num_classes, dtype=self.dtype, pin_memory=True)
            torch.index_select(table, 0, rows, out=past)
        else:
            past = table.index_select(0, rows)
        if was < 0:
            valid = torch.zeros_like(rows, dtype=torch.bool)
        elif self.device.type == "cpu":  # numpy does little things in half of the time
            valid = torch.from_numpy(stamps.numpy()[rows.numpy()] == was)
        else:
            valid = stamps.index_select(0, rows) == was
        ahead = device is not None and device.type == "cuda"  # the other way, the host would read before it arrives
        return past.to(device, non_blocking=ahead), valid

    def write(self, index: Tensor, logits: Tensor, epoch: int, *, count: bool = True) -> None:
        """Record the outputs of these rows; from a CUDA device to the host they are under way until the next call.

        Args:
            index: int64 [B], rows in 0 .. N-1; not looked at.
            logits: [B, C], anywhere; no gradient is kept.
            epoch: counted from 0.
            count: whether `dropped` and `repeated` hear of it.
        """
        self._write_now()
        rows, outputs = index.to(self.device), logits.detach()
        if outputs.device.type == "cuda" and self.device.type == "cpu":
            host = torch.empty(outputs.shape, dtype=outputs.dtype, pin_memory=True)
            host.copy_(outputs, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            self._later = (rows, host, arrived, epoch, count)
        else:
            self._put(rows, outputs.to(self.device), epoch, count)

    def restart(self) -> None:
        """Forget everything."""
        self._later = None
        self.stamps.fill_(-1)
        self._seen, self._finite, self._first = 0, 0, 0
        self._checksums.clear()
        self._newest = -1

    def state_dict(self) -> dict[str, Any]:
        """The table and its stamps themselves, no copies; of a file, its path, which rows count, and a checksum of each slot."""
        self._write_now()
        state = {"newest": self._newest, "counts": [self._seen, int(self._finite), int(self._first)]}
        if not isinstance(self.place, Path):
            return state | {"table": self.table, "stamps": self.stamps}
        recorded = self._recorded(self._newest)
        checksums = [self._checksum(slot, recorded[slot]) for slot in range(self.slots)]
        return state | {"path": str(self.place), "recorded": recorded, "checksums": checksums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave. Without a table in it, or with a file that has gone on since, those rows are not valid.

        All processes that share a file load together.

        Raises: LegatoValueError for records of another shape.
        """
        self._later = None
        self._checksums.clear()
        if "recorded" in state:
            self._take_file(state)
        elif "table" in state:
            self._check_shape(state["table"].shape)
            self.table.copy_(state["table"])
            self.stamps.copy_(state["stamps"])
        else:
            self.restart()
            return
        self._newest = state["newest"]
        self._seen, self._finite, self._first = state["counts"]

    def _put(self, rows: Tensor, outputs: Tensor, epoch: int, count: bool) -> None:
        """Each row's first finite outputs of this epoch; the others go to row N. No value is read, so no device is waited for."""
        self._newest = max(self._newest, epoch)
        table, stamps = self._pages[epoch % self.slots]
        number = rows.numel()
        if self.device.type == "cpu" and claim_all(stamps, rows, outputs, epoch):
            target = rows
            finite: Tensor | int = number
            first: Tensor | int = number
        else:
            which_finite, which_first = claim(stamps, rows, outputs, epoch)
            target = torch.where(which_first, rows, self.num_samples)
            finite, first = which_finite.sum(), which_first.sum()
        if self.dtype.itemsize == 2:
            outputs = outputs.clamp(-LARGEST, LARGEST)
        table.index_copy_(0, target, outputs.to(self.dtype))
        stamps.index_fill_(0, target, epoch)
        if count:
            self._seen += number
            self._finite = self._finite + finite
            self._first = self._first + first

    def _opened(self) -> list[tuple[Tensor, Tensor]]:
        """Table and stamps of each slot, kept, for to take them out takes as long as to read a batch."""
        return list(zip(self.table.unbind(), self.stamps.unbind(), strict=True))

    def _write_now(self) -> None:
        if self._later is not None:
            (rows, host, arrived, epoch, count), self._later = self._later, None
            arrived.synchronize()
            self._put(rows, host, epoch, count)

    def _allocate(self) -> tuple[Tensor, Tensor]:
        rows, place = self.num_samples + 1, self.place
        if isinstance(place, Path):
            with first_alone() as first:
                if first:
                    make_file(place, self._outline(), PAGE + sum(self._sizes()))
                    self._map()[1].fill_(-1)
            return self._map()
        device = "cpu" if place == "shared" else place
        table = torch.zeros(self.slots, rows, self.num_classes, dtype=self.dtype, device=device)
        stamps = torch.full((self.slots, rows), -1, dtype=torch.int32, device=device)
        if place == "shared":
            table.share_memory_()
            stamps.share_memory_()
        return table, stamps

    def _sizes(self) -> tuple[int, int]:
        """Bytes of the stamps, rounded up to whole pages, and of the table."""
        rows = self.slots * (self.num_samples + 1)
        return -(-4 * rows // PAGE) * PAGE, rows * self.num_classes * self.dtype.itemsize

    def _map(self) -> tuple[Tensor, Tensor]:
        """Table and stamps in the file: a header of one page, the stamps, the table."""
        assert isinstance(self.place, Path)
        check_file(self.place, self._outline())
        rows, (before, size) = self.num_samples + 1, self._sizes()
        whole = torch.from_file(str(self.place), shared=True, size=PAGE + before + size, dtype=torch.uint8)
        stamps = whole[PAGE : PAGE + 4 * self.slots * rows].view(torch.int32).view(self.slots, rows)
        return whole[PAGE + before :].view(self.dtype).view(self.slots, rows, self.num_classes), stamps

    def _outline(self) -> dict[str, Any]:
        return {"samples": self.num_samples, "classes": self.num_classes, "lag": self.lag, "dtype": str(self.dtype)}

    def _check_shape(self, shape: torch.Size) -> None:
        if shape != self.table.shape:
            was, now = ([s[0] - 1, s[1] - 1, s[2]] for s in (shape, self.table.shape))
            raise errors.argument(
                "state", expected=f"records of [lag, num_samples, num_classes] = {now}", got=was,
                fix="make the object for the data set that the state is of, or leave the state out to restart the records",
            )  # fmt: skip

    def _recorded(self, newest: int) -> Tensor:
        """bool [slots, N]: whether the row was recorded in the one epoch of the last lag + 1 that its slot is for."""
        epochs = [_last_of(slot, newest, self.slots) for slot in range(self.slots)]
        return torch.stack([(self.stamps[slot, :-1] == epoch) & (epoch >= 0) for slot, epoch in enumerate(epochs)])

    def _checksum(self, slot: int, recorded: Tensor) -> int:
        """CRC-32 of the rows; kept for a slot of a past epoch, which does not change before it is used again."""
        epoch = _last_of(slot, self._newest, self.slots)
        if epoch in self._checksums:
            return self._checksums[epoch]
        value = 0
        for rows in recorded.nonzero().squeeze(1).split(_ROWS):
            value = zlib.crc32(self.table[slot].index_select(0, rows).view(torch.uint8).numpy().data, value)
        if epoch < self._newest:
            self._checksums[epoch] = value
        return value

    def _take_file(self, state: dict[str, Any]) -> None:
        """Stamps for those slots of our file that hold what they held; each process of a node writes the same.

        A run that was killed within an epoch of its last state has at most overwritten the oldest slot, which is of no use after the
        epoch of the state.
        """
        recorded, newest = state["recorded"], state["newest"]
        self._check_shape(torch.Size([recorded.shape[0], recorded.shape[1] + 1, self.num_classes]))
        if self._newest >= 0 or not isinstance(self.place, Path):
            self.restart()
        if not isinstance(self.place, Path):
            warn(
                f"the records are in {state['path']} and not in {self.place}: they start again. Fix: pass store={state['path']!r}"
            )
            return
        self._newest, lost = newest, []
        for slot, rows in enumerate(recorded):
            epoch = _last_of(slot, newest, self.slots)
            if self._checksum(slot, rows) == state["checksums"][slot]:
                self.stamps[slot, rows.nonzero().squeeze(1)] = epoch
            else:
                lost.append(epoch)
        self._checksums.clear()
        meet()  # else a quick process would write the next records under the eyes of a slow one
        if lost not in ([], [newest - self.lag]):
            warn(
                f"{self.place}: {len(lost)} of {self.slots} slots have changed since the state was saved. Their rows count nothing until "
                "they are recorded again. Fix: save a state at the end of each epoch"
            )

    def __getstate__(self) -> dict[str, Any]:
        """A file is opened again in the other process, not sent there."""
        self._write_now()
        hidden = ("_pages", "table", "stamps") if isinstance(self.place, Path) else ("_pages",)
        return {name: value for name, value in self.__dict__.items() if name not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.place, Path):
            self.table, self.stamps = self._map()
        self._pages = self._opened()


def claim_all(stamps: Tensor, rows: Tensor, outputs: Tensor, epoch: int) -> bool:
    """The case of most batches on the CPU, where values can be read at once: `claim`, if its answer is True for each row."""
    wide = torch.float64 if outputs.dtype == torch.float64 else torch.float32
    known, which = stamps.numpy(), rows.numpy()
    if not math.isfinite(outputs.sum(dtype=wide).item()) or np.count_nonzero(known[which] == epoch):
        return False
    place = np.arange(_LAST, _LAST - len(which), -1, dtype=np.int32)
    known[which] = place
    return not np.count_nonzero(known[which] != place)  # a row that came twice holds only one of its places


def claim(stamps: Tensor, rows: Tensor, outputs: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
    """Which outputs are to be recorded: the first finite ones of each row that has no stamp of this epoch yet.

    Afterwards the stamps of these rows hold a number that is no epoch, until the caller writes the epoch there.

    Args:
        stamps: int32 [N + 1], the epoch in which each row was last recorded.
        rows: int64 [B].
        outputs: [B, C].
        epoch: the present one.
    Returns: bool [B] finite, and bool [B] first, of which at most one is True for each row.
    """
    wide = torch.float64 if outputs.dtype == torch.float64 else torch.float32
    finite = outputs.sum(1, dtype=wide).isfinite()
    place = torch.arange(_LAST, _LAST - len(rows), -1, dtype=torch.int32, device=rows.device)
    bid = place.masked_fill((stamps.index_select(0, rows) == epoch) | ~finite, -_LAST)
    stamps.scatter_reduce_(0, rows, bid, "amax")
    return finite, (stamps.index_select(0, rows) == bid)


def check_index(index: Tensor, rows: int, num_samples: int, *, values: bool) -> None:
    """That an index fits a batch of `rows` rows; with `values`, also that it is in range, which waits for its device.

    Raises: LegatoTypeError for what is no tensor, LegatoValueError for another type, shape or range.
    """
    expected = f"int64 rows of the training set, in 0 .. {num_samples - 1}, of shape [{rows}] for a batch of {rows}"
    if not isinstance(index, Tensor):
        fix = "let the data set return the number of each sample, or wrap the loader so that it does"
        raise errors.argument_type("index", expected=expected, got=type(index).__name__, fix=fix)
    if index.dtype != torch.int64 or list(index.shape) != [rows]:
        fix = "pass the numbers of the rows, not a mask" if index.dtype == torch.bool else "pass index.long()" if list(index.shape) == [rows] else ""  # fmt: skip
        raise errors.argument("index", expected=expected, got=f"{index.dtype} of shape {list(index.shape)}", fix=fix)
    if values and rows:
        numbers = index.cpu().numpy()
        if np.maximum.reduce(numbers.view(np.uint64)) >= num_samples:  # negative ones are huge in this view
            least, largest = int(numbers.min()), int(numbers.max())
            raise errors.argument(
                "index", expected=expected, got=f"row {least if least < 0 else largest}",
                fix=f"num_samples={num_samples} must be the length of the data set; streams without row numbers need MESA",
            )  # fmt: skip


def record_bytes(num_samples: int, num_classes: int, lag: int, dtype: torch.dtype = torch.float32) -> int:
    """What `Records` take: (lag + 1) (num_samples + 1) (num_classes itemsize + 4)."""
    return (lag + 1) * (num_samples + 1) * (num_classes * dtype.itemsize + 4)


def _last_of(slot: int, newest: int, slots: int) -> int:
    """The last epoch up to `newest` that is written to this slot; negative if there was none."""
    return newest - (newest - slot) % slots
