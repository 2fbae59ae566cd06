"""A few columns in place of a matrix."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dasktrain.codes import INT8, Code, Signs
from dasktrain.compression import Form, check_count
from dasktrain.vector import Layout


@dataclass(frozen=True)
class PowerSGD:
    """Send a few columns in place of a matrix, in int8; keep what they leave out, and add it to the next.

    A gradient M (m, n) is near to ``P Q^T`` with P (m, rank) and Q (n, rank). Sums go turn about: of ``M Q``, whose
    orthonormal basis is the next P, and of ``M^T P``, whose basis is the next Q; so each is one message, and what is
    sent is linear in M and sums to the same bits in the tree. Vectors, and matrices that this would not make smaller,
    are sent as they are; of more dimensions the first is m and the others are n. (Vogels, Karimireddy, Jaggi, 2019,
    "PowerSGD", arXiv 1905.13727; turn about: Zhang et al., 2023, "Evaluation and Optimization of Gradient Compression
    for Distributed Deep Learning", arXiv 2306.08881.) Workers learn of the parameters by the signs of their changes,
    see `dasktrain.codes.Signs`.

    Parameters
    ----------
    rank
        Columns, each of a byte a number.
    every
        Sums from one that sends what was kept to the next, in int8 as well.
    """

    rank: int = 16
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
        """One bit a number."""
        return Signs()

    def form(self, layout: Layout) -> Form:
        """Return what knows its matrices."""
        return _Columns(layout, self.rank)


class _Columns:
    """Send M Q and M^T P by turns, of each matrix M of a layout.

    Tensors must begin at multiples of 64 bytes, as torch's own do: kernels may give other bits elsewhere.
    """

    def __init__(self, layout: Layout, rank: int) -> None:
        self._layout = layout
        sides = {name: (shape[0], math.prod(shape[1:])) for name, shape in layout.shapes.items() if len(shape) > 1}
        self._matrices = {name: (m, n) for name, (m, n) in sides.items() if rank * max(m, n) < m * n}
        columns = [{name: (side[turn], rank) for name, side in self._matrices.items()} for turn in (0, 1)]
        #: by turn: of what is sent, and of the basis that it is made with
        self._sent = [Layout({**layout.shapes, **columns[turn]}) for turn in (0, 1)]
        self._bases = [Layout(columns[1 - turn]) for turn in (0, 1)]

    def first(self) -> Tensor:
        """Return Q, which is random: no gradient is orthogonal to all of it."""
        bases = torch.empty(self._bases[0].size)
        for number, basis in enumerate(self._bases[0].views(bases).values()):
            basis.copy_(_basis(torch.randn(basis.shape, generator=torch.Generator().manual_seed(number))))
        return _rounded(bases)

    def size(self, place: int) -> int:
        """Return how many numbers columns and vectors have."""
        return self._sent[place % 2].size

    def common(self, place: int) -> int:
        """Return how many numbers all bases have."""
        return self._bases[place % 2].size

    def sent(self, gradient: Tensor, place: int, common: Tensor) -> Tensor:
        """Return columns, and vectors as they are."""
        turn = place % 2
        sent = torch.empty(self.size(place), dtype=gradient.dtype)
        views, bases = self._sent[turn].views(sent), self._bases[turn].views(common)
        for name, part in self._layout.views(gradient).items():
            if name in self._matrices:
                matrix = part.reshape(self._matrices[name])
                torch.matmul(matrix.T if turn else matrix, bases[name], out=views[name])
            else:
                views[name].copy_(part)
        return sent

    def whole(self, sent: Tensor, place: int, common: Tensor) -> Tensor:
        """Return the matrices that columns stand for."""
        turn = place % 2
        whole = torch.empty(self._layout.size, dtype=sent.dtype)
        views, bases = self._layout.views(whole), self._bases[turn].views(common)
        for name, part in self._sent[turn].views(sent).items():
            if name in self._matrices:
                left, right = (bases[name], part) if turn else (part, bases[name])
                torch.matmul(left, right.T, out=views[name].view(self._matrices[name]))
            else:
                views[name].copy_(part)
        return whole

    def next(self, total: Tensor, place: int, common: Tensor) -> Tensor:
        """Return orthonormal bases of the columns."""
        turn = place % 2
        bases, sent = torch.empty(self._bases[1 - turn].size), self._sent[turn].views(total)
        for name, basis in self._bases[1 - turn].views(bases).items():
            basis.copy_(_basis(sent[name]))
        return _rounded(bases)


def _rounded(bases: Tensor) -> Tensor:
    """Return the numbers that can be sent in int8: a basis that is nearly orthonormal does as well."""
    return torch.from_numpy(INT8.nearest(bases.numpy()))


def _basis(columns: Tensor) -> Tensor:
    """Return an orthonormal basis of a space that holds some columns (m, rank): (m, rank)."""
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis
