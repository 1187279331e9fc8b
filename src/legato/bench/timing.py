"""How long one callable takes, measured as a ratio to another in the same process."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Step = Callable[[], object]
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A median and its 95% percentile bootstrap interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timing:
    """What `compare` found."""

    ratio: Interval
    """Time of ours divided by time of the peer."""
    same: Interval
    """The peer divided by itself, measured in the same blocks: what a ratio of 1 looks like on this machine."""
    milliseconds: float
    """Median time of one call of ours."""
    peer_milliseconds: float
    """Median time of one call of the peer."""
    pairs: int
    """How many pairs (ours, peer) were timed."""


def compare(ours: Step, peer: Step, *, seconds: float, pairs: int = 500, least: int = 6) -> Timing:
    """Time `ours` against `peer` on one thread by the CPU time of this process and of those that it starts.

    Each block runs peer, ours, peer', peer', ours, peer: a drift of the machine that is linear in time adds equally to all three.
    The ratio of a block is that of its sums; medians and bootstrap are over blocks. The first block warms up and is left out.

    Args:
        ours, peer: do one step each, with equal results expected but not checked.
        seconds: no block begins after this many, once `least` pairs are done.
        pairs: how many pairs are enough; there are 2 in a block.
        least: how many pairs are needed.
    """
    blocks: list[tuple[float, float, float]] = []
    with _one_thread():
        _block(ours, peer)
        end = time.perf_counter() + seconds
        while 2 * len(blocks) < least or (2 * len(blocks) < pairs and time.perf_counter() < end):
            blocks.append(_block(ours, peer))
    own, other, again = np.array(blocks).T
    return Timing(
        ratio=median_interval(own / other),
        same=median_interval(again / other),
        milliseconds=float(np.median(own)) * 500,
        peer_milliseconds=float(np.median(other)) * 500,
        pairs=2 * len(blocks),
    )


def median_interval(values: NDArray[np.float64]) -> Interval:
    """Median of `values` [N] and its 95% bootstrap interval; the resampling is fixed, so equal values give an equal interval."""
    rows = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[rows], axis=1), (0.025, 0.975))
    return Interval(float(np.median(values)), float(low), float(high))


def _block(ours: Step, peer: Step) -> tuple[float, float, float]:
    """CPU seconds of two calls each of ours, of the peer, and of the peer once more."""
    spent = [_seconds(step) for step in (peer, ours, peer, peer, ours, peer)]
    return spent[1] + spent[4], spent[0] + spent[5], spent[2] + spent[3]


def _seconds(step: Step) -> float:
    start, children = time.process_time(), _of_children()
    step()
    return time.process_time() - start + (_of_children() - children)


def _of_children() -> float:
    """CPU seconds of the processes that this one has started and waited for; 0 where the system does not count them."""
    with suppress(ImportError):
        from resource import RUSAGE_CHILDREN, getrusage

        used = getrusage(RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime
    return 0.0


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
