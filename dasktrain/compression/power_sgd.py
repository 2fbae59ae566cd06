"""A few columns in place of a matrix."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dasktrain.codes import INT8, Code, Ternary
from dasktrain.compression import Form, check_count
from dasktrain.vector import Layout

#: power iterations: after one, columns are nearly those of the largest singular values
ITERATIONS = 1


@dataclass(frozen=True)
class PowerSGD:
    """Send a few columns in place of a matrix, in int8; keep what they leave out, and add it to the next.

    A gradient M (m, n) is near to ``P Q^T``, with P (m, rank) an orthonormal basis of ``M Q`` for some Q, and Q
    (n, rank) then ``M^T P``. (Vogels, Karimireddy, Jaggi, 2019, "PowerSGD", arXiv 1905.13727.) There all workers share
    one P, which takes two messages a round; here each shard has its own, as near to its own M as power iterations make
    it (Halko, Martinsson, Tropp, 2011, "Finding Structure with Randomness", arXiv 0909.4061), and the driver adds up
    what they stand for. Vectors, and matrices that this would not make smaller, are sent as they are; of more
    dimensions the first is m and the others are n. Workers learn of the parameters by `dasktrain.codes.Ternary`.

    Parameters
    ----------
    rank
        Columns, each of a byte a number. A worker of several shards sends as many times more.
    every
        Sums from one that sends all, with what was kept, to the next, in int8 as well. 1: all do.
    """

    rank: int = 12
    every: int = 100

    def __post_init__(self) -> None:
        check_count("rank", self.rank)
        check_count("every", self.every)

    @property
    def code(self) -> Code:
        """Four columns take the bytes of one in float32, and leave out less; shards keep what is rounded away."""
        return INT8

    @property
    def last(self) -> Code:
        """A byte a number."""
        return INT8

    @property
    def change(self) -> Code:
        """Five numbers a byte."""
        return Ternary()

    def form(self, layout: Layout) -> Form:
        """Return what knows its matrices."""
        return _Columns(layout, self.rank)


class _Columns:
    """Send P and Q of each matrix of a layout.

    Tensors must begin at multiples of 64 bytes, as torch's own do: kernels may give other bits elsewhere.
    """

    adds = False

    def __init__(self, layout: Layout, rank: int) -> None:
        self._layout, self._rank = layout, rank
        sides = {name: (shape[0], math.prod(shape[1:])) for name, shape in layout.shapes.items() if len(shape) > 1}
        self._matrices = {name: (m, n) for name, (m, n) in sides.items() if rank * (m + n) < m * n}
        columns = {name: (m + n, rank) for name, (m, n) in self._matrices.items()}  # P above Q
        self._sent = Layout({**layout.shapes, **columns})
        self.size = self._sent.size

    def sent(self, gradient: Tensor) -> Tensor:
        """Return columns, and vectors as they are."""
        if not torch.isfinite(gradient).all():
            return torch.full((self.size,), torch.nan)  # which is refused
        sent = torch.empty(self.size)
        views = self._sent.views(sent)
        for name, part in self._layout.views(gradient).items():
            if name in self._matrices:
                torch.cat(self._columns(part.reshape(self._matrices[name])), out=views[name])
            else:
                views[name].copy_(part)
        return sent

    def _columns(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Return P (m, rank) and Q (n, rank)."""
        start = torch.randn((matrix.shape[1], self._rank), generator=torch.Generator().manual_seed(0))
        left = _basis(matrix @ start)
        for _ in range(ITERATIONS):
            left = _basis(matrix @ _basis(matrix.T @ left))
        right = matrix.T @ left
        half = (_exponent(right) - _exponent(left)) // 2  # so that numbers of both are on one grid
        return left * 2.0**half, right * 2.0**-half

    def gradient(self, sent: Tensor) -> Tensor:
        """Return the matrices that columns stand for."""
        gradient = torch.empty(self._layout.size)
        views = self._layout.views(gradient)
        for name, part in self._sent.views(sent.clone()).items():
            if name in self._matrices:
                m, n = self._matrices[name]
                torch.matmul(part[:m], part[m:].T, out=views[name].view(m, n))
            else:
                views[name].copy_(part)
        return gradient


def _basis(columns: Tensor) -> Tensor:
    """Return an orthonormal basis of a space that holds some columns (m, rank): (m, rank)."""
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis


def _exponent(columns: Tensor) -> int:
    """Return that of the largest number."""
    return int(torch.frexp(columns.abs().max()).exponent)
