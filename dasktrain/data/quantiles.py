"""Exact quantiles of a column, in two passes that send a fraction of it.

The first pass sends `POINTS` order statistics of each partition, between which the global one must lie; the second the
distinct values in between and how often each occurs, about 2 / `POINTS` of the rows.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import dask
import numpy as np
import pandas as pd
from dask.delayed import Delayed

from dasktrain.data.groups import require_keys
from dasktrain.data.tokenised import run_each
from dasktrain.errors import DataError
from dasktrain.permutation import Integers

POINTS = 1024
#: rows of a partition, and its values at `_ranks`
Sketch = tuple[int, list[Any]]


def exact_quantiles(keys: Sequence[Delayed], shares: Sequence[float]) -> list[Any]:
    """Return for each share the value of rank round(share x rows), the smallest having rank 0.

    Parameters
    ----------
    keys
        One (rows,) Series or array each, of numbers or times.
    shares
        In (0, 1).

    Raises
    ------
    DataError
        There are no rows, one has no value, or two shares have the same value.
    """
    sketches: list[Sketch] = list(dask.compute(*run_each(_sketch, (), keys)))
    rows = sum(count for count, _ in sketches)
    if not rows:
        raise DataError(f"Data that are split must have rows, however all {len(keys)} partitions are empty")
    ranks = [min(rows - 1, round(share * rows)) for share in shares]
    between = [_between(sketches, rank) for rank in ranks]
    found = list(dask.compute(*run_each(_counts, (between,), keys)))
    cuts = [_at(rank, [counts[place] for counts in found]) for place, rank in enumerate(ranks)]
    if any(not one < other for one, other in pairwise(cuts)):
        raise DataError(f"Parts must have times of their own, however cuts are at {cuts}; take fewer or larger parts")
    return cuts


def _sketch(keys: Any) -> Sketch:
    column = pd.Series(keys)
    require_keys(column, "time")
    column = column.sort_values(ignore_index=True)
    return len(column), column.iloc[_ranks(len(column))].tolist()


def _ranks(rows: int) -> Integers:
    """Return the ranks in a partition that its sketch has the values of: the first, the last, and evenly between."""
    return np.unique(np.linspace(0, rows - 1, min(rows, POINTS)).round().astype(np.int64))


def _between(sketches: Sequence[Sketch], rank: int) -> tuple[Any, Any]:
    """Return two values between which, both included, the one of global `rank` lies."""
    values = [value for _, some in sketches for value in some]
    order = pd.Series(values).argsort(kind="stable").to_numpy()
    # A partition has at least r + 1 rows up to its value at rank r, and at most r below: steps of ranks add up to both.
    steps = [np.diff(_ranks(rows), prepend=-1) for rows, _ in sketches]
    up_to = np.cumsum(np.concatenate(steps)[order])
    steps = [np.diff(_ranks(rows), append=rows) for rows, _ in sketches]
    below = sum(rows for rows, _ in sketches) - np.cumsum(np.concatenate(steps)[order][::-1])[::-1]
    low, high = np.searchsorted(below, rank, side="right") - 1, np.searchsorted(up_to, rank + 1)
    return values[order[low]], values[order[high]]


def _counts(between: Sequence[tuple[Any, Any]], keys: Any) -> list[tuple[int, dict[Any, int]]]:
    """Return for each pair of values how many rows are below the first, and the values between with their counts."""
    column = pd.Series(keys)
    found = []
    for low, high in between:
        inside = column[(column >= low) & (column <= high)]
        values = inside.value_counts(sort=False)
        found.append((int((column < low).sum()), dict(zip(values.index.tolist(), values.tolist(), strict=True))))
    return found


def _at(rank: int, counts: Sequence[tuple[int, dict[Any, int]]]) -> Any:
    """Return the value of global `rank`."""
    total: Counter[Any] = Counter()
    for _, inside in counts:
        total.update(inside)
    values = sorted(total)
    ends = sum(below for below, _ in counts) + np.cumsum([total[value] for value in values])
    return values[int(np.searchsorted(ends, rank, side="right"))]
