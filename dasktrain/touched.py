"""Rows of a table that a sum touches, and how two such sums add.

A row that only one of them touches keeps its bits: what does not touch it is no term, not one of zeros. So bits depend
on the tree alone, and a round costs what its rows touch, however large the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasktrain.errors import ReductionError


@dataclass(frozen=True, slots=True)
class Touched:
    """Some rows of a table, each once; the arrays are never written to."""

    rows: NDArray[np.int64]  # (touched,), rising
    values: NDArray[Any]  # (touched, width), float32 or float64


def plus(left: Touched, right: Touched) -> Touched:
    """Return left + right, of the rows that either touches.

    Raises
    ------
    ReductionError
        They are of tables of other widths or dtypes.
    """
    found = [(each.values.shape[1], each.values.dtype.name) for each in (left, right)]
    if found[0] != found[1]:
        raise ReductionError(f"Rows must be of one table to be added, however they are of {found}; report this")
    rows = np.concatenate([left.rows, right.rows])
    order = np.argsort(rows, kind="stable")
    rows, values = rows[order], np.concatenate([left.values, right.values])[order]
    again = np.flatnonzero(rows[1:] == rows[:-1]) + 1  # right's, each behind left's
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused once, at the root
        values[again - 1] += values[again]
    return Touched(np.delete(rows, again), np.delete(values, again, axis=0))


def plus_each(left: Sequence[Touched], right: Sequence[Touched]) -> tuple[Touched, ...]:
    """Add table by table; no tables stand for the sum of nothing.

    Raises
    ------
    ReductionError
        They are not of the same tables.
    """
    if not left or not right:
        return tuple(left or right)
    if len(left) != len(right):
        raise ReductionError(
            f"Rows must be of as many tables to be added, however they are of {len(left)} and {len(right)}; report this"
        )
    return tuple(map(plus, left, right))
