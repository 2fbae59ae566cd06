"""The largest numbers."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dasktrain.codes import INT8, Code, Sparse, Ternary
from dasktrain.compression import Form, check_count
from dasktrain.compression.whole import AsItIs
from dasktrain.errors import BadInput
from dasktrain.vector import Layout


@dataclass(frozen=True)
class TopK:
    """Send the largest numbers of a shard's gradient; keep the rest, and add it to the next.

    (Stich, Cordonnier, Jaggi, 2018, "Sparsified SGD with Memory", arXiv 1809.07599; Lin et al., 2018, "Deep Gradient
    Compression", arXiv 1712.01887.) Workers learn of the parameters by `dasktrain.codes.Ternary`.

    Parameters
    ----------
    share
        Of all numbers, what is sent; each takes 6 bytes. Shards differ in which are their largest: a worker of several
        sends as many times more.
    every
        Sums from one that sends all, with what was kept, to the next, in int8. 1: all do.
    """

    share: float = 0.01
    every: int = 100

    def __post_init__(self) -> None:
        if not isinstance(self.share, float | int) or not 0 < self.share <= 1:
            raise BadInput(f"share must be above 0 and at most 1, however it is {self.share}")
        check_count("every", self.every)

    @property
    def code(self) -> Code:
        """Few of the numbers are not zero."""
        return Sparse()

    @property
    def last(self) -> Code:
        """A byte a number."""
        return INT8

    @property
    def change(self) -> Code:
        """Five numbers a byte."""
        return Ternary()

    def form(self, layout: Layout) -> Form:
        """Return what chooses among all parameters."""
        return _Largest(layout.size, max(1, round(self.share * layout.size)))


class _Largest(AsItIs):
    """Send `count` of the numbers, and zeros for all others."""

    def __init__(self, size: int, count: int) -> None:
        super().__init__(size)
        self._count = count

    def sent(self, gradient: Tensor) -> Tensor:
        """Return the largest; of those that are as large as the least of them, the first."""
        if not torch.isfinite(gradient).all():
            return gradient  # which is refused
        sizes = gradient.abs().numpy()
        least = np.partition(sizes, -self._count)[-self._count]  # the number, whatever the order it comes in
        chosen = sizes > least
        equal = np.flatnonzero(sizes == least)
        chosen[equal[: self._count - int(chosen.sum())]] = True
        return torch.where(torch.from_numpy(chosen), gradient, 0.0)
