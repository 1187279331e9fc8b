"""The C allocator, told to be steady: a benchmark of buffers of some MB else measures page faults."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 * 2**20


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, up to 1 GiB, for the rest of this process; False where there is no glibc.

    By default it gives a freed buffer back to the system or keeps it, as the layout of the heap happens to be; the next step then
    pays for its pages again, or not. At 2048 x 1000 that is a factor of 4, which has nothing to do with what the step computes.
    Buffers above 32 MiB are mapped afresh each time all the same, for every loss alike.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD) and mallopt(M_TRIM_THRESHOLD, 2**30))
