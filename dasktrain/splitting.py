"""A data set cut in two or more, where it lies: at random, by class, by group or in time.

=============  ==============================================  =======================================================
by             which part a row is in                          read before the parts are
=============  ==============================================  =======================================================
nothing        its place in a random permutation of all rows   once, to count rows
``stratify``   its place in one of the rows of its class       once, to count classes
``group``      the hash of its key                             never
``time``       on which side of the cuts it lies               twice, for the cuts; never if they are given with ``at``
=============  ==============================================  =======================================================
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from numbers import Integral
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.delayed import Delayed
from numpy.typing import NDArray

from dasktrain.data.arrays import as_blocks, like
from dasktrain.data.encoders import ordered, plain
from dasktrain.data.groups import hashed, require_keys
from dasktrain.data.quantiles import exact_quantiles
from dasktrain.data.tokenised import run_each
from dasktrain.errors import DataError, PlanError, known_keywords, nearest
from dasktrain.permutation import permuted

#: of one partition's keys, and which partition it is: the part of each row, -1 for none
Part = Callable[[Any, int], NDArray[np.int64]]


@known_keywords
def split(
    data: Any,
    fractions: Sequence[float] = (0.8, 0.2),
    stratify: Any = None,
    group: Any = None,
    time: Any = None,
    at: Any = None,
    gap: Any = None,
    seed: int = 0,
) -> tuple[Any, ...]:
    """Cut a Dask DataFrame, or arrays of the same rows, into parts such as training and validation data.

    Parts are lazy, of the kind of `data`, and have its partitions, index and order of rows. What must be read for them
    is counted on the cluster (the current client's); no rows are gathered.

    Parameters
    ----------
    data
        Dask DataFrame, or a tuple of Dask or NumPy arrays (X, y, ...) of the same rows. Persist it if reading is dear:
        each part reads it again.
    fractions
        Of each part, in the order they are returned; they add up to 1. Rows are as many as they say to within one,
        overall or of each class; of groups and equal times, which stay whole, about as many.
    stratify
        Column (or array) of classes: each part has the data's mix of them.
    group
        Column (or array) of keys: rows of a key are all in one part, whatever the partitions. A key is in the same part
        of any other data set, too, if seed, fractions and the column's dtype are the same.
    time
        Column (or array) of times or numbers: parts follow each other, and those before a cut are earlier than it.
    at
        The cut, or a cut for each part but the first, in place of `fractions`.
    gap
        Rows that are less than this before a cut are in no part, such as ``pd.Timedelta("1D")``: what they tell may
        reach beyond the cut.
    seed
        Any non-negative integer.

    Returns
    -------
    tuple
        (train, valid), or as many as there are fractions. Of arrays, a tuple each; chunk sizes along rows are unknown.

    Raises
    ------
    DataError
        Data are of another kind, or a column is missing; rows without a class or a time.
    PlanError
        Fractions, cuts or what to split by cannot be met.

    Examples
    --------
    >>> frame = dd.from_pandas(pd.DataFrame({"user": [1, 2, 3, 4, 5, 1, 2, 3, 4, 5], "x": range(10)}), npartitions=2)
    >>> train, valid = split(frame, (0.6, 0.4), seed=1)
    >>> len(train), len(valid)
    (6, 4)
    >>> train, valid = split(frame, group="user")
    >>> set(train.user.compute()) & set(valid.user.compute())
    set()
    """
    shares = _shares(fractions)
    by = {name: key for name, key in (("stratify", stratify), ("group", group), ("time", time)) if key is not None}
    if len(by) > 1:
        raise PlanError(f"Data must be split by one thing, however {' and '.join(by)} are given; leave one out")
    if (at is not None or gap is not None) and time is None:
        raise PlanError("A cut or a gap must be in time, however time= is not given; name its column")
    if not isinstance(seed, Integral) or seed < 0:
        raise PlanError(f"seed must be a whole number and at least 0, however it is {seed}")
    kind, key = next(iter(by.items()), ("", None))
    # What counts rows and what reads the parts must cut one Parquet file alike (dask#12193).
    with dask.config.set({"optimization.tune.active": False}):
        rows = _Rows.of(data, key, kind)
        part = _part_of(kind, rows, shares, at, gap, int(seed))
        number = len(shares) if at is None else len(_cuts(at)) + 1
        return tuple(rows.chosen(part, which) for which in range(number))


def _shares(fractions: Sequence[float]) -> NDArray[np.float64]:
    """Return the sum of fractions up to each, (parts,)."""
    found = np.asarray(fractions, dtype=np.float64)
    if found.ndim != 1 or len(found) < 2 or not (found > 0).all() or abs(found.sum() - 1) > 1e-9:
        raise PlanError(
            f"fractions must be two or more, positive, and add up to 1, however they are {fractions}; try (0.8, 0.2)"
        )
    return np.append(np.cumsum(found)[:-1], 1.0)


def _part_of(kind: str, rows: "_Rows", shares: NDArray[np.float64], at: Any, gap: Any, seed: int) -> Part:
    """Find out what decides which part a row is in."""
    if kind == "group":
        return partial(_by_group, shares, seed)
    if kind == "time":
        if at is None:
            at = exact_quantiles(rows.keys, shares[:-1].tolist())
        by_time = partial(_by_time, _cuts(at), gap)
        try:
            by_time(rows.empty, 0)
        except TypeError as error:
            raise PlanError(
                f"A cut and a gap must be of the times' kind ({rows.empty.dtype}), however {error}; convert them"
            ) from error
        return by_time
    counts: list[dict[Any, int]] = list(dask.compute(*run_each(_count, (), rows.keys)))
    totals = sum(map(Counter, counts), Counter[Any]())
    before: Counter[Any] = Counter()
    starts = []
    for each in counts:
        starts.append({label: before[label] for label in each})
        before.update(each)
    places = {label: place for place, label in enumerate(ordered(totals))}
    return partial(_at_random, shares, seed, totals, places, starts)


def _cuts(at: Any) -> list[Any]:
    cuts = list(at) if isinstance(at, list | tuple | np.ndarray | pd.Index) else [at]
    cuts = [pd.Timestamp(cut) if isinstance(cut, str) else cut for cut in cuts]
    if not cuts or any(not one < other for one, other in pairwise(cuts)):
        raise PlanError(f"Cuts must be one or more, each later than the last, however at is {at!r}")
    return cuts


# -- on workers ---------------------------------------------------------------------------------------------------


def _count(keys: Any) -> dict[Any, int]:
    """Count one partition's rows of each class."""
    column = pd.Series(keys)
    require_keys(column, "class")
    counts = column.value_counts(sort=False)
    return {label: count for label, count in zip(plain(counts.index), counts.tolist(), strict=True) if count}


def _at_random(
    shares: NDArray[np.float64],
    seed: int,
    totals: Counter[Any],
    places: dict[Any, int],
    starts: list[dict[Any, int]],
    keys: Any,
    number: int,
) -> NDArray[np.int64]:
    codes, distinct = pd.factorize(pd.Series(keys))
    part = np.empty(len(codes), dtype=np.int64)
    for code, label in enumerate(plain(distinct)):
        here = np.flatnonzero(codes == code)
        total = totals[label]
        rng = np.random.default_rng((seed, places[label]))
        rank = permuted(starts[number][label] + np.arange(len(here)), total, rng)
        part[here] = np.searchsorted(np.round(shares * total), rank, side="right")
    return part


def _by_group(shares: NDArray[np.float64], seed: int, keys: Any, number: int) -> NDArray[np.int64]:
    require_keys(pd.Series(keys), "group")
    # 53 bits are what a float64 has
    place = (hashed(keys, seed) >> np.uint64(11)).astype(np.float64) / 2.0**53
    return np.searchsorted(shares, place, side="right").astype(np.int64)


def _by_time(cuts: list[Any], gap: Any, keys: Any, number: int) -> NDArray[np.int64]:
    times = pd.Series(keys)
    require_keys(times, "time")
    part = np.zeros(len(times), dtype=np.int64)
    for cut in cuts:
        part += (times >= cut).to_numpy()
    if gap is not None:
        for cut in cuts:
            part[((times < cut) & (times > cut - gap)).to_numpy()] = -1
    return part


def _chosen(part: Part, which: int, keys: Any, number: int, rows: Any) -> Any:
    return rows[part(keys, number) == which]


# -- collections --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """Partitions of a collection, and each one's keys.

    Attributes
    ----------
    keys : list of Delayed
        Of each partition.
    empty
        Keys of no rows.
    chosen
        ``chosen(part, which)`` returns a collection like the one they are of, with the rows of one part.
    """

    keys: list[Delayed]
    empty: Any
    chosen: Callable[[Part, int], Any]

    @staticmethod
    def of(data: Any, key: Any, name: str) -> "_Rows":
        """Look at what a user has."""
        if isinstance(data, dd.DataFrame):
            return _of_frame(data, key)
        if isinstance(data, tuple | list) and data:
            return _of_arrays(tuple(data), key, name)
        raise DataError(
            f"What is split must be a Dask DataFrame or a tuple of arrays, however it is {type(data)}; "
            "use dask.dataframe.from_pandas, or scikit-learn's splits"
        )


def _of_frame(frame: Any, key: Any) -> _Rows:
    columns = list(frame.columns)
    if key is not None and key not in columns:
        raise DataError(f"What to split by must be a column, however {key!r} is not; {nearest(str(key), columns)}")
    partitions = frame.to_delayed()
    keys = run_each(_column, (key,), partitions)

    def chosen(part: Part, which: int) -> Any:
        tasks = run_each(_chosen, (part, which), keys, range(len(partitions)), partitions)
        return dd.from_delayed(tasks, meta=frame._meta, divisions=frame.divisions, verify_meta=False)

    return _Rows(keys, _column(key, frame._meta), chosen)


def _column(key: Any, partition: pd.DataFrame) -> Any:
    return np.zeros(len(partition), dtype=np.int8) if key is None else partition[key].reset_index(drop=True)


def _of_arrays(arrays: tuple[Any, ...], key: Any, name: str) -> _Rows:
    first = as_blocks(arrays[0])
    blocks = [first, *(like(array, first, "every array") for array in arrays[1:])]
    columns = [block.to_delayed().ravel() for block in blocks]
    keys, empty = run_each(_zeros, (), columns[0]), np.empty(0, dtype=np.int8)
    if key is not None:
        by = like(key, first, name)
        if by.ndim != 1:
            raise DataError(f"{name} must be a key a row, (rows,), however it has {by.ndim} dimensions")
        keys, empty = list(by.to_delayed()), np.empty(0, dtype=by.dtype)

    def chosen(part: Part, which: int) -> Any:
        return tuple(_joined(part, which, keys, block, column) for block, column in zip(blocks, columns, strict=True))

    return _Rows(keys, empty, chosen)


def _joined(part: Part, which: int, keys: list[Delayed], array: da.Array, blocks: Any) -> da.Array:
    tasks = run_each(_chosen, (part, which), keys, range(len(keys)), blocks)
    shape = (np.nan, *array.shape[1:])
    return da.concatenate([da.from_delayed(task, shape, dtype=array.dtype) for task in tasks])


def _zeros(block: Any) -> NDArray[np.int8]:
    return np.zeros(len(block), dtype=np.int8)
