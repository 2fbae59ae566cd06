"""Rows of different lengths in one flat array."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.int64]


class Ragged(NamedTuple):
    """Row i is ``values[offsets[i] : offsets[i + 1]]``."""

    values: NDArray[Any]  # (total length,)
    offsets: Integers  # (rows + 1,), from 0

    @staticmethod
    def of(rows: Sequence[Any], dtype: Any) -> "Ragged":
        """Put sequences of numbers one after another."""
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        return Ragged(np.fromiter(chain.from_iterable(rows), dtype, int(offsets[-1])), offsets)

    @staticmethod
    def of_bytes(rows: Sequence[bytes]) -> "Ragged":
        """Put bytes one after another, as uint8."""
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        return Ragged(np.frombuffer(b"".join(rows), dtype=np.uint8), offsets)

    @property
    def num_rows(self) -> int:
        """How many rows there are; ``len`` is that of the tuple."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Integers:
        """Length of each row."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: Integers) -> Integers:
        """Return the lengths of some rows, at the cost of these only."""
        lengths: Integers = self.offsets[rows + 1] - self.offsets[rows]
        return lengths

    def row(self, number: int) -> NDArray[Any]:
        """Return one row, a view."""
        return self.values[self.offsets[number] : self.offsets[number + 1]]

    def take(self, rows: Integers) -> "Ragged":
        """Return some rows, in their order."""
        lengths = self.lengths_of(rows)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        # Place j of the result is so far from the beginning of its row as it is from where that row is read.
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Ragged(self.values[places], offsets)

    def cut(self, longest: int) -> "Ragged":
        """Return the first `longest` values of each row."""
        keep = np.arange(len(self.values)) - np.repeat(self.offsets[:-1], self.lengths) < longest
        return Ragged(self.values[keep], np.concatenate([[0], np.cumsum(np.minimum(self.lengths, longest))]))

    def filled(self, value: int) -> "Ragged":
        """Return it with one `value` in each row that was empty."""
        empty = self.lengths == 0
        if not empty.any():
            return self
        values = np.insert(self._able_to_hold(value), self.offsets[:-1][empty], value)
        return Ragged(values, np.concatenate([[0], np.cumsum(np.maximum(self.lengths, 1))]))

    def followed_by(self, value: int) -> "Ragged":
        """Return it with one more `value` at the end of each row."""
        values = np.insert(self._able_to_hold(value), self.offsets[1:], value)
        return Ragged(values, self.offsets + np.arange(len(self.offsets)))

    def _able_to_hold(self, value: int) -> NDArray[Any]:
        return self.values.astype(np.promote_types(self.values.dtype, np.min_scalar_type(value)), copy=False)

    def padded(self, value: int) -> Tensor:
        """Return (rows, longest) int64, `value` behind each row's end."""
        lengths = self.lengths
        seen = np.arange(lengths.max(initial=0)) < lengths[:, None]
        out = np.full(seen.shape, value, dtype=np.int64)
        out[seen] = self.values
        return torch.from_numpy(out)

    def mask(self) -> Tensor:
        """Return (rows, longest) int64, 1 inside a row and 0 behind its end."""
        lengths = self.lengths
        return torch.from_numpy((np.arange(lengths.max(initial=0)) < lengths[:, None]).astype(np.int64))


def joined(parts: Sequence[Ragged]) -> Ragged:
    """Return the rows of all parts, one part after another."""
    lengths = np.concatenate([part.lengths for part in parts])
    return Ragged(np.concatenate([part.values for part in parts]), np.concatenate([[0], np.cumsum(lengths)]))
