"""On a worker: buckets of the parameters that it owns and steps as the driver does, with their optimizer's state."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dasktrain.domain import pinned
from dasktrain.messages import Vector
from dasktrain.optimizers import FUSED, take_step
from dasktrain.steps import Mean, Piece, Step
from dasktrain.vector import as_tensor

OPTIMIZERS = {kind.__name__: kind for kind in FUSED}


def fingerprint(values: Vector) -> int:
    """Return a number that tells values from others: the CRC-32 of their bytes.

    It does if fewer than 33 bits in a row are all that differ; of what differs anyhow one in four billion passes.
    """
    return zlib.crc32(values.data)


def get_ready() -> None:
    """Have torch load what it loads as the first optimizer is made, which takes seconds."""
    torch.optim.SGD([torch.zeros(1)])


class _Part:
    """A piece of a bucket, as it is stepped: between zeros for the numbers that are not there."""

    def __init__(self, piece: Piece, values: Vector) -> None:
        self.piece = piece
        self.parameter = nn.Parameter(self._padded(as_tensor(values[piece.place])))
        self.kept = {name: self._kept(value) for name, value in piece.kept.items()}

    def _padded(self, values: Tensor) -> Tensor:
        padded = values.new_zeros(self.piece.before + len(values) + self.piece.after)
        padded[self.piece.inner] = values
        return padded

    def _kept(self, value: "Vector | float | None") -> Any:
        if isinstance(value, np.ndarray):
            return self._padded(as_tensor(value))
        return None if value is None else torch.tensor(value, dtype=torch.float32)

    def take(self, total: Vector, mean: Mean) -> None:
        """Have the gradient that a bucket's sum becomes."""
        self.parameter.grad = None
        if self.piece.parameter in mean.used:
            self.parameter.grad = self._padded(as_tensor(total[self.piece.place])).div_(mean.divisor).mul_(mean.factor)

    @property
    def values(self) -> Vector:
        """What it is now."""
        values: Vector = self.parameter.detach()[self.piece.inner].numpy()
        return values


class Owned:
    """Buckets of the parameters, with what the optimizer keeps of them, by the first number of each."""

    def __init__(self) -> None:
        self._values: dict[int, Vector] = {}
        self._parts: dict[int, list[_Part]] = {}

    def __contains__(self, offset: int) -> bool:
        """Whether a bucket is here."""
        return offset in self._values

    def put(self, offset: int, values: Vector, pieces: Sequence[Piece]) -> None:
        """Take a bucket, which may change afterwards; `pieces` of it are stepped."""
        self._values[offset] = values.copy()
        self._parts[offset] = [_Part(piece, values) for piece in pieces]

    def drop(self, offset: int) -> None:
        """Forget a bucket, if it is here."""
        self._values.pop(offset, None)
        self._parts.pop(offset, None)

    def values(self, offset: int) -> Vector:
        """Return a bucket, good until the next step."""
        return self._values[offset]

    def step(self, step: Step, totals: Mapping[int, Vector]) -> None:
        """Step some buckets with their sums of gradients.

        Raises
        ------
        LookupError
            There is no such optimizer or group.
        """
        stepped = [(offset, part) for offset in totals for part in self._parts[offset]]
        groups: dict[int, list[Tensor]] = {}
        for offset, part in stepped:
            part.take(totals[offset], step.mean)
            groups.setdefault(part.piece.group, []).append(part.parameter)
        if not groups:
            return
        optimizer = OPTIMIZERS[step.optimizer]([step.groups[group] | {"params": groups[group]} for group in groups])
        optimizer.state.update({part.parameter: part.kept for _, part in stepped})
        with pinned(1):  # more would wait for each other longer than they work
            take_step(optimizer)
        for offset, part in stepped:
            self._values[offset][part.piece.place] = part.values
            part.parameter.grad = None
