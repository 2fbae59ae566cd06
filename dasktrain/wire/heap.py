"""Keep freed memory for the next shard.

Dask's nanny sets MALLOC_TRIM_THRESHOLD_=65536, so that glibc gives freed memory back to the system at once. A replica
frees and allocates its activations and gradients every few milliseconds and would fault each page in again: a
third of the time of a small network's round.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

#: parameters of mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: glibc's initial thresholds, and the largest it takes for mmap
_TRIM, _MMAP, _MOST = 128 << 10, 128 << 10, 32 << 20


@contextmanager
def kept() -> Iterator[None]:
    """Have this process keep the memory it frees, as far as its C library can; then give it back."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    libc.mallopt(_MMAP_THRESHOLD, _MOST)
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, int(os.environ.get("MALLOC_TRIM_THRESHOLD_", _TRIM)))
        libc.mallopt(_MMAP_THRESHOLD, int(os.environ.get("MALLOC_MMAP_THRESHOLD_", _MMAP)))
        libc.malloc_trim(0)
