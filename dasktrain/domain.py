"""The determinism domain: what torch keeps for a whole thread or process and that changes bits."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Compute with so many torch threads, and leave torch's thread count and random generator as they were.

    Kernels split their sums by threads: another number gives other bits (LayerNorm and matrix products
    among them).
    """
    before, random = torch.get_num_threads(), torch.random.get_rng_state()
    if threads != before:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.random.set_rng_state(random)
        if threads != before:
            torch.set_num_threads(before)
