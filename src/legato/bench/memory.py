"""How much memory one step takes at its peak, as torch's CPU allocator or, for numpy, Python counts it."""

import tracemalloc
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(step: Callable[[], object]) -> int:
    """The largest number of bytes on the CPU that `step` holds at once, beyond what it began with.

    `step` runs once before it is measured. It must free what an earlier call left before it begins, or that counts as negative.
    """
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = recorded.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak


def traced_peak_bytes(step: Callable[[], object]) -> int:
    """The same for a step of numpy, whose arrays Python traces; torch's tensors it does not see."""
    step()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        step()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
