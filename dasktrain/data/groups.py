"""Rows that belong together: keys hashed to buckets, whole buckets dealt to shards."""

import copy
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasktrain.errors import DataError
from dasktrain.permutation import Integers

Hashes = NDArray[np.uint64]
_BITS = 12
#: keys go to shards by this many buckets, so that what is told of a partition is small however many keys there are
BUCKETS = 1 << _BITS
#: hashes of keys that a data set is known by, the smallest it has
SKETCH = 4096


def hashed(keys: Any, seed: int = 0) -> Hashes:
    """Return 64 bits of each key, (rows,): equal for equal keys of one dtype, wherever they are.

    pandas' hash, mixed with the seed by the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast Splittable
    Pseudorandom Number Generators", OOPSLA 2014).

    Raises
    ------
    DataError
        Keys are of a kind that has no hash.
    """
    column = pd.Series(keys)
    if pd.api.types.is_float_dtype(column.dtype):
        column = column + 0.0  # -0.0 equals 0.0
    try:
        found = np.asarray(pd.util.hash_pandas_object(column, index=False), dtype=np.uint64)
    except TypeError as error:
        raise DataError(f"Groups must be strings or other plain values, however {error}; convert them") from error
    found = found + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found ^= found >> np.uint64(31)
    return found


def require_keys(column: "pd.Series[Any]", what: str) -> None:
    """Raise DataError if a row of a partition has no key, which is a `what`."""
    missing = int(column.isna().sum())
    if missing:
        raise DataError(
            f"Every row must have a {what} to be split by, however {missing} of {len(column)} of a partition "
            "have none; fill them in or drop them"
        )


def _buckets(hashes: Hashes) -> Integers:
    return (hashes >> np.uint64(64 - _BITS)).astype(np.int64)


@dataclass(frozen=True)
class GroupSurvey:
    """One partition's keys.

    Attributes
    ----------
    buckets, rows : ndarray
        Buckets that have rows, and how many, (buckets,).
    sketch : ndarray
        Its smallest hashes, sorted.
    missing : int
        Rows that have no key.
    """

    buckets: Integers
    rows: Integers
    sketch: Hashes
    missing: int

    @staticmethod
    def of(keys: Any) -> "GroupSurvey":
        """Look at one partition's keys, (rows,)."""
        keys = pd.Series(keys)
        hashes = hashed(keys)
        buckets, rows = np.unique(_buckets(hashes), return_counts=True)
        return GroupSurvey(buckets, rows, np.unique(hashes)[:SKETCH], int(keys.isna().sum()))


@dataclass(frozen=True, eq=False)
class Dealt:
    """Which shard each bucket of keys is dealt to.

    Attributes
    ----------
    shard : ndarray
        (buckets,) integers.
    strata : ndarray
        (partitions, shards) integers: rows of each shard in each partition.
    """

    shard: Integers
    strata: Integers

    @staticmethod
    def to(shards: int, surveys: Sequence[GroupSurvey]) -> "Dealt":
        """Deal the largest bucket first, each to the shard that has the fewest rows by then."""
        total = np.zeros(BUCKETS, dtype=np.int64)
        for survey in surveys:
            total[survey.buckets] += survey.rows
        held = [(0, shard) for shard in range(shards)]  # a heap
        shard = np.zeros(BUCKETS, dtype=np.int64)
        for bucket in np.argsort(-total, kind="stable").tolist():
            rows, shard[bucket] = held[0]
            heapq.heapreplace(held, (rows + int(total[bucket]), int(shard[bucket])))
        strata = [np.bincount(shard[each.buckets], each.rows, shards) for each in surveys]
        return Dealt(shard, np.array(strata, dtype=np.int64))

    def order(self, keys: Any) -> Integers:
        """Return the order of one partition's rows by shard, (rows,)."""
        return np.argsort(self.shard[_buckets(hashed(keys))], kind="stable")


class Groupable:
    """A source whose rows may belong together.

    Attributes
    ----------
    group
        The source's word for its keys; None: rows have none.
    dealt : Dealt or None
        How `convert` sorts the rows of partitions, by shard; None: as they come.
    """

    group: Any = None
    dealt: Dealt | None = None

    def by_shard(self, dealt: Dealt) -> Self:
        """Return this source with the rows of each partition sorted by the shard that their group is dealt to."""
        found = copy.copy(self)
        found.dealt = dealt
        return found


def check_apart(training: Sequence[GroupSurvey], validation: Sequence[GroupSurvey]) -> None:
    """Refuse groups that are in both data sets, as far as the smallest hashes of each show it.

    Raises
    ------
    DataError
        Says how many there are.
    """
    both = np.intersect1d(_sketch(training), _sketch(validation))
    if len(both):
        raise DataError(
            f"No group must be in both training and validation data, however at least {len(both)} are; "
            "split them with dt.split(..., group=)"
        )


def _sketch(surveys: Sequence[GroupSurvey]) -> Hashes:
    sketches = [survey.sketch for survey in surveys]
    return np.unique(np.concatenate(sketches))[:SKETCH] if sketches else np.empty(0, dtype=np.uint64)
