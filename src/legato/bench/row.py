"""One line of a benchmark, and the machine it was measured on, as plain data."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from legato.bench.timing import Timing

if TYPE_CHECKING:
    from legato.bench.flatness_spectrum import ProductRow

MIB = 2**20


@dataclass(frozen=True)
class Row:
    """Ours against a peer."""

    part: str
    """What was measured."""
    peer: str
    """What it was measured against."""
    shape: tuple[int, ...]
    """Of the logits, or of what the part says."""
    timing: Timing
    """Time of ours, of the peer, and their ratio."""
    peak_mib: float
    """Memory of ours at its peak."""
    peer_peak_mib: float
    """Memory of the peer at its peak."""
    bar: float | None = None
    """The largest ratio of times that we ask for, if we ask for one."""
    memory_bar: float | None = None
    """The largest ratio of memory peaks that we ask for, if we ask for one."""
    work: int = 1
    """How many things a call does, such as episodes."""
    rate_bar: float | None = None
    """The smallest number of them a second that we ask for, if we ask for one."""

    @property
    def per_second(self) -> float:
        """How many of these things ours does in a second."""
        return 1000 * self.work / self.timing.milliseconds

    @property
    def met(self) -> bool | None:
        """Whether the interval of the time ratio begins at or below its bar, and memory and rate are within theirs; None without a bar."""
        if self.bar is None and self.memory_bar is None and self.rate_bar is None:
            return None
        in_time = self.bar is None or self.timing.ratio.low <= self.bar
        in_memory = self.memory_bar is None or self.peak_mib <= self.memory_bar * self.peer_peak_mib
        return in_time and in_memory and (self.rate_bar is None or self.per_second >= self.rate_bar)


def as_json(rows: "Sequence[Row | ProductRow]") -> dict[str, Any]:
    """The rows with the facts of this machine."""
    return {"machine": machine(), "rows": [{**asdict(row), "met": row.met} for row in rows]}


def machine() -> dict[str, str | int]:
    """CPU model, versions and threads; never the name of the host, nor a path."""
    return {
        "cpu": _cpu_model(), "system": platform.system(), "python": platform.python_version(),
        "torch": torch.__version__, "threads": 1,
    }  # fmt: skip


def _cpu_model() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
