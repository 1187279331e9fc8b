"""SAF: a loss that holds the outputs back near those of a few epochs ago. The table of outputs, its upkeep, and what goes wrong with it."""

from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol, final

import numpy as np
import torch
from torch import Tensor

from legato import errors
from legato.flatness.compressed import TopRecords
from legato.flatness.records import Records, check_index
from legato.flatness.storage import Store
from legato.flatness.trajectory import (
    Ramp,
    Tally,
    check_epoch,
    check_logits,
    check_tau,
    check_whole,
    trajectory_loss,
    warn,
)

SMALLEST_SHARE = 0.9
"""Share of rows with a record, over an epoch in which all could have one, below which there is a warning."""
LARGEST_REPEATED = 0.01
"""Share of rows that had been seen before in the same epoch, above which there is a warning."""
FEWEST_REPEATED = 4
"""Rows that may come again in any case: samplers fill up the last batch."""
LARGEST_GROUP = 64
"""Batches of a step, accumulated, whose second look is told from a forgotten epoch."""
FEWEST_STEPS = 500
"""Steps of a run below which there is a warning."""
Batch = tuple[Any, Any, Tensor]


class Memory(Protocol):
    """What earlier epochs said about each row, such as `Records`."""

    num_samples: int
    num_classes: int
    bytes: int
    lag: int

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    @property
    def dropped(self) -> int:
        """Rows that were not recorded because they were not finite."""
        ...

    @property
    def repeated(self) -> int:
        """Rows that had been recorded before in the same epoch."""
        ...

    def read(self, index: Tensor, epoch: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Outputs [B, C] on `device`, and which of them count, bool [B]."""
        ...

    def write(self, index: Tensor, logits: Tensor, epoch: int, *, count: bool = True) -> None:
        """Record the outputs of this epoch."""
        ...

    def restart(self) -> None:
        """Forget everything."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that it holds."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        ...


class TableTerm:
    """A trajectory loss against a `Memory`: what `SAF` and `TemporalEnsembling` are, but for what they remember.

    Args:
        num_samples: rows of the training set.
        memory: of all rows, or of `rows`.
        ramp: the weight in each epoch.
        tau: > 0, the temperature.
        rows: int64, the rows that the memory is for, in its order; None for all.
    """

    def __init__(self, num_samples: int, memory: Memory, ramp: Ramp, tau: float, rows: Tensor | None) -> None:
        check_tau(tau)
        self.num_samples, self.memory, self.ramp, self.tau = num_samples, memory, ramp, tau
        self.places = None if rows is None else _places(rows, num_samples).to(memory.device)
        self.epoch, self.begun = 0, False
        self.since = 0  # the first epoch of which all rows can have been recorded
        self.planned: int | None = None
        self.warned: set[str] = set()
        self._checked = False
        self._recent: deque[Tensor] = deque(maxlen=1)
        self._open()

    def __repr__(self) -> str:
        return f"{self._name}(lam={self.ramp.lam:g}, tau={self.tau:g}, start={self.ramp.start}, {self.memory})"

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def weight(self) -> float:
        """The factor of the loss in this epoch."""
        return self.ramp(self.epoch)

    @property
    def stats(self) -> dict[str, float]:
        """This epoch so far: rows that were compared, the share of them with a record (`valid_share`), their `mean_divergence` in nats
        times tau^2; since the start: rows `dropped` for not being finite and rows `repeated` in an epoch; `bytes` of the table.
        Waits for the device."""
        memory = self.memory
        return self._tally.read() | {"dropped": memory.dropped, "repeated": memory.repeated, "bytes": memory.bytes}

    def __call__(self, logits: Tensor, index: Tensor, targets: Tensor | None = None) -> Tensor:
        """The term of a batch, a scalar; records the outputs.

        Args:
            logits: [B, C], what the criterion sees.
            index: int64 [B], rows of the training set; best where the loader left it, on the CPU, if the table is there.
            targets: int64 [B] or probabilities [B, C]; only looked at, to warn when the term outweighs the cross-entropy.
        Returns: >= 0 up to rounding, float32 or float64, on the device of the logits.
        Raises: LegatoValueError or LegatoTypeError for another shape or type, and for a row out of range, which is looked for at each
            call where the index is on the CPU, else at the first.
        """
        term = torch.compiler.disable(self._term) if torch.compiler.is_compiling() else self._term
        loss: Tensor = term(logits, index, targets)
        return loss

    def penalty(self, output: Tensor, batch: Batch) -> Tensor:
        """The term of a batch (inputs, targets, index)."""
        term: Tensor = self(output, batch[2], batch[1] if isinstance(batch[1], Tensor) else None)
        return term

    def begin_epoch(self, epoch: int) -> None:
        """Say which epoch, counted from 0, is about to begin; the same one again changes nothing.

        Raises: LegatoValueError for an epoch before the present one.
        """
        check_epoch(epoch, self.epoch, self.begun)
        if not self.begun:
            self.since = max(self.since, epoch and epoch + 1)
        if epoch != self.epoch:
            self._look_back()
            self.epoch = epoch
            self._open()
        self.begun = True

    def set_epoch(self, epoch: int) -> None:
        """`begin_epoch`, under the name that torch's DistributedSampler has for it."""
        self.begin_epoch(epoch)

    def epochs(self, count: int) -> Iterator[int]:
        """The epochs 0 .. count - 1, or those that are left after `load_state_dict`, each begun."""
        check_whole("count", count, 1)
        self.planned = count
        if self.ramp.start >= count - 1:
            self._warn_once(
                "start",
                f"it never acts: start={self.ramp.start} is the last epoch without it, and there are {count}. Fix: start={int(0.3 * count)}",
            )
        for epoch in range(self.epoch, count):
            self.begin_epoch(epoch)
            yield epoch

    def after_step(self, model: object) -> None:
        """The step is done: what comes with the same index from now on has come again. Calling it is not needed."""
        if (
            self._recent.maxlen == 1
        ):  # the first: what its group of batches looked like without this is not to be held against it
            self._seen, self._repeated = 0, self.memory.repeated
        self._recent = deque(maxlen=LARGEST_GROUP)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and table; the table's own tensors, no copies."""
        return {"epoch": self.epoch, "since": self.since, "memory": self.memory.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken, at any step. Without the key "memory" the trajectory starts anew: no row has a record.

        Raises: LegatoValueError for a table of another shape.
        """
        if "memory" in state:
            self.memory.load_state_dict(state["memory"])
            self.since = state["since"]
        else:
            self.memory.restart()
            self.since = state["epoch"] + 1
        self.epoch, self.begun = state["epoch"], True
        self._open()

    def _term(self, logits: Tensor, index: Tensor, targets: Tensor | None) -> Tensor:
        check_logits(logits, self.memory.num_classes)
        rows = self._rows(index, logits.shape[0])
        loss = self._compared(logits, rows, targets)
        again = any(index is other for other in self._recent)
        self.memory.write(rows, logits, self.epoch, count=not again)
        if not again:
            self._recent.append(index)
            self._seen += len(logits)
            self._steps += 1
            if self._seen > self._look_at:
                self._look_for_repeats()
        return loss

    def _compared(self, logits: Tensor, rows: Tensor, targets: Tensor | None) -> Tensor:
        weight = self.weight
        if weight == 0 or self.epoch < self.memory.lag:
            return _nothing(logits)
        past, valid = self.memory.read(rows, self.epoch, logits.device)
        mask: Tensor | None = valid
        if valid.device.type == "cpu":  # here it costs nothing to look
            count: Tensor | int = int(np.count_nonzero(valid.numpy()))
            mask = None if count == valid.shape[0] else valid
        else:
            count = valid.sum()
        if isinstance(count, int) and count == 0:
            loss = _nothing(logits)
        else:
            loss = weight * trajectory_loss(
                logits, past, self.tau, valid=None if mask is None else mask.to(logits.device)
            )
        self._tally.add(valid.shape[0], count, loss, weight)
        self._tally.compare(loss, logits, targets)
        return loss

    def _rows(self, index: Tensor, batch: int) -> Tensor:
        """Where the rows are in the memory."""
        check_index(index, batch, self.num_samples, values=not self._checked or index.device.type == "cpu")
        rows = index if index.device == self.memory.device else index.to(self.memory.device)
        if self.places is not None:
            rows = self.places.index_select(0, rows)
            if (not self._checked or index.device.type == "cpu") and batch and int(rows.min()) < 0:
                raise errors.argument(
                    "index", expected="rows that are among the `rows` of this process", got=f"row {int(index[int(rows.argmin())])}",
                    fix="give the DataLoader the TrajectorySampler that the rows are from; wrappers may replace it by one of their own",
                )  # fmt: skip
        self._checked = True
        return rows

    def _open(self) -> None:
        """Begin to count anew."""
        self._tally, self._seen, self._steps = Tally(), 0, 0
        self._look_at = self.memory.num_samples
        self._repeated = self.memory.repeated

    def _look_for_repeats(self) -> None:
        """More rows came than there are: so some came again; see how many, and look again soon."""
        self._look_at = self._seen + self.memory.num_samples // 20
        repeated = self.memory.repeated - self._repeated
        if repeated > max(LARGEST_REPEATED * self._seen, FEWEST_REPEATED):
            self._warn_once(
                "repeats", f"{repeated} of {self._seen} rows came again in epoch {self.epoch}. Did you forget set_epoch? Fix: call set_epoch(epoch) "
                "before each epoch. A sampler that draws with replacement also does this, and then all is well",
            )  # fmt: skip

    def _look_back(self) -> None:
        """At the epoch that is over."""
        if self.epoch == 0 and self.planned and self._steps and self.planned * self._steps < FEWEST_STEPS:
            self._warn_once(
                "steps", f"{self.planned} epochs of {self._steps} steps are few: what was said {self.memory.lag} epochs ago is immature and drags the "
                "model back. Fix: more epochs, smaller batches, a later start, or a small lam",
            )  # fmt: skip
        fault = self._tally.fault(self.epoch, self.ramp.lam)
        if fault:
            self._warn_once("penalty", fault)
        full = self.epoch >= self.since + self.memory.lag and self._tally.rows
        share = self._tally.read()["valid_share"] if full else 1.0
        if share < SMALLEST_SHARE:
            self._warn_once(
                "share", f"only {share:.0%} of the rows in epoch {self.epoch} had a record of epoch {self.epoch - self.memory.lag}; the others counted nothing. With "
                "several processes, each with a table of its own, this is a sampler that deals each row to another process every epoch. Fix: "
                "TrajectorySampler, and rows=sampler.rows, keep rows where they are; store='./records.bin' lets the processes of a node share "
                "one table. In one process: rows that are not visited every epoch, or outputs that are not finite",
            )  # fmt: skip

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            warn(f"{self._name}: {text}")


@final
class SAF(TableTerm):
    r"""Sharpness-aware training for free: `loss = criterion(output, targets) + saf(output, index)`.

    saf = weight(e) * trajectory_loss(output, output of the same samples in epoch e - lag, tau), where weight is 0 up to epoch `start`,
    then rises to lam over `warmup` epochs. Rows without a record count 0, and the mean is over all rows of the batch. Call
    `begin_epoch(e)`, or `set_epoch(e)`, before each epoch, or write `for epoch in saf.epochs(90)`; `legato.fit` does the former.

    With lam=0, up to epoch `start`, and where no row has a record, the result is 0 without a graph: the run is the plain one.
    In an epoch the first outputs of a row are recorded; what a second forward pass of the same step gives (sharpness-aware
    minimisation, closures of LBFGS) is compared with the same record and not recorded. Under torch.compile this is not traced.

    Several processes: each needs to find the rows that it recorded. Either `TrajectorySampler` keeps the rows of a process to it, and
    `rows=sampler.rows` keeps 1/W of the table there; or all processes of a node share a file, `store="./records.bin"`.

    It warns, once each: when the epoch seems never to change; when less than 90% of the rows have a record although `lag` epochs are
    over; when the penalty is three times the cross-entropy over an epoch, if it knows the targets; when it is NaN or infinite.

    Args:
        num_samples, num_classes: N, the length of the training set, and C.
        lam: >= 0.
        tau: > 0, the temperature.
        lag: >= 1, epochs between the outputs that are compared.
        start: the last epoch, counted from 0, without the term; 5, or 30% of the epochs if that is less. -1 for none.
        warmup: epochs after `start` with a smaller lam.
        store, dtype: of the table, as in `Records`.
        rows: int64, the rows of the training set that this process sees, if not all; the table has these only. The index stays
            the row of the training set.
        top_k: for many classes, keep only so many of the largest logits of each row, in (lag + 1) (N + 1) (8 top_k + 8) bytes; the other
            classes share their probability at tau evenly. With top_k = C nothing is lost. dtype is then float32 or float64.
    Raises: LegatoValueError for a number out of range or a table that takes more than half of the free memory.
    Source: Du et al. 2022, arXiv 2205.14083; lam=0.3, tau=5, lag=3, start=5 and the factor tau^2 as in its code.
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        lam: float = 0.3,
        tau: float = 5.0,
        lag: int = 3,
        start: int = 5,
        warmup: int = 0,
        store: Store = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        rows: Tensor | None = None,
        top_k: int | None = None,
    ) -> None:
        check_whole("num_samples", num_samples, 1)
        ramp, kept = Ramp(lam, start, warmup), num_samples if rows is None else len(rows)
        self.records: Records | TopRecords
        if top_k is None:
            self.records = Records(kept, num_classes, lag, store=store, dtype=dtype)
        else:
            self.records = TopRecords(kept, num_classes, lag, top_k, tau, store=store, dtype=dtype)
        super().__init__(num_samples, self.records, ramp, tau, rows)


def _nothing(logits: Tensor) -> Tensor:
    return torch.zeros(
        (), dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32, device=logits.device
    )


def _places(rows: Tensor, num_samples: int) -> Tensor:
    """int64 [N]: where each row of the training set is among `rows`, -1 for nowhere."""
    if rows.dtype != torch.int64 or rows.dim() != 1:
        got = f"{rows.dtype} of shape {list(rows.shape)}"
        raise errors.argument("rows", expected="int64 rows of the training set, of shape [n]", got=got)
    places = torch.full((num_samples,), -1, dtype=torch.int64)
    within = len(rows) and int(rows.min()) >= 0 and int(rows.max()) < num_samples
    if within:
        places[rows] = torch.arange(len(rows))
    if not within or int((places >= 0).sum()) != len(rows):
        raise errors.argument(
            "rows", expected=f"each row once, in 0 .. {num_samples - 1}", got=f"{len(rows)} rows, some of them not so"
        )
    return places
