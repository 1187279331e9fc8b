"""One comparison of a benchmark, before and while it is measured."""

from collections.abc import Callable
from dataclasses import dataclass

from legato.bench.allocator import keep_freed_memory
from legato.bench.memory import peak_bytes
from legato.bench.row import MIB, Row
from legato.bench.timing import Step, compare


@dataclass(frozen=True)
class Case:
    """Ours against a peer at one shape; the steps are made when they are timed, so that no two cases hold memory at once."""

    part: str
    peer: str
    shape: tuple[int, ...]
    ours: Callable[[], Step]
    other: Callable[[], Step]
    bar: float | None = None
    """The largest ratio of times that we ask for."""
    memory_bar: float | None = None
    """The largest ratio of memory peaks that we ask for."""
    work: int = 1
    """How many things a step does, such as episodes."""
    rate_bar: float | None = None
    """The smallest number of such things a second that we ask for."""
    peak: Callable[[Step], int] = peak_bytes
    """Counts the memory of a step."""

    def measure(self, seconds: float) -> Row:
        """Time and memory of both; takes longer than `seconds` where a step is so slow that the least number of pairs does."""
        keep_freed_memory()
        ours, other = self.ours(), self.other()
        return Row(
            part=self.part,
            peer=self.peer,
            shape=self.shape,
            timing=compare(ours, other, seconds=seconds),
            peak_mib=self.peak(ours) / MIB,
            peer_peak_mib=self.peak(other) / MIB,
            bar=self.bar,
            memory_bar=self.memory_bar,
            work=self.work,
            rate_bar=self.rate_bar,
        )
