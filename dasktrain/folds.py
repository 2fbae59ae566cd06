"""Cross-validation where the data lie: every fold is another choice of the same rows."""

from dataclasses import dataclass
from numbers import Integral

import numpy as np

from dasktrain.errors import PlanError
from dasktrain.permutation import Integers, permuted

#: what the stream of random numbers is for; folds are the same for every seed of a run
_FOLDS = 200


@dataclass(frozen=True)
class Fold:
    """One of several parts of a data set, to validate on: ``fit(data, validation=dt.Fold(0, of=5))``.

    Training reads all rows but the fold's, and validation the fold's. Folds are drawn at random within partitions, have
    as many rows as each other to within one (of each class, if rounds are stratified), and depend on nothing but the
    rows' places: not on the seed, the model, or the number of workers.

    Parameters
    ----------
    number
        Which, from 0.
    of
        How many there are, at least 2.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        whole = all(isinstance(each, Integral) for each in (self.number, self.of))
        if not whole or self.of < 2 or not 0 <= self.number < self.of:
            raise PlanError(
                f"A fold must be one of two or more, counted from 0, however it is {self.number!r} of {self.of!r}"
            )


@dataclass(frozen=True, eq=False)
class Side:
    """The rows of a fold, or all others.

    The rows of a class are dealt to the folds in turn, from partition to partition, each partition's in a random order.

    Parameters
    ----------
    rows
        (partitions, classes) integers: those that there are, of which strata are made.
    fold
        Which is set apart.
    held
        Whether the side has the fold's rows, or those of all others.
    """

    rows: Integers
    fold: Fold
    held: bool

    @property
    def strata(self) -> Integers:
        """Return (partitions, classes): rows of this side."""
        held: Integers = np.maximum(0, -((self._first - self.rows) // self.fold.of))
        return held if self.held else self.rows - held

    def locate(self, label: int, partition: Integers, place: Integers) -> Integers:
        """Return rows of a class in their partitions, (rows,), given their places among those of this side."""
        first, of = self._first[partition, label], self.fold.of
        if self.held:
            turn = first + place * of
        else:
            beyond = place - first
            turn = np.where(beyond < 0, place, first + 1 + beyond + beyond // (of - 1))
        row: Integers = np.empty_like(turn)
        for number in np.unique(partition).tolist():
            here = partition == number
            rng = np.random.default_rng((_FOLDS, label, number))
            row[here] = permuted(turn[here], int(self.rows[number, label]), rng)
        return row

    @property
    def _first(self) -> Integers:
        """Return (partitions, classes): the first turn that is the fold's, of each class in each partition."""
        before = np.cumsum(self.rows, axis=0) - self.rows
        first: Integers = (self.fold.number - before) % self.fold.of
        return first
