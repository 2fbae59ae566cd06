"""How often an epoch reads each row of a class of which it reads more, or fewer, than there are.

The rows of a class stand in a circle, and every epoch goes on where the last one stopped: with n rows and m readings
an epoch, row i is read floor(((i + 1) m + q) / n) - floor((i m + q) / n) times, where q moves on by m every epoch
(Bresenham, "Algorithm for Computer Control of a Digital Plotter", 1965). So every row is read floor(m / n) or
ceil(m / n) times an epoch, epochs add up to m exactly, and over any number of epochs no row is read more often than
another but for once. Each partition's rows are in a random order on the circle.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dasktrain.errors import PlanError
from dasktrain.permutation import Integers, permuted

#: what a stream of random numbers is for; a plan has others under the same seed
_START, _CIRCLE = 100, 101


@dataclass(frozen=True, eq=False)
class Draws:
    """Which rows are read in an epoch, and how often.

    Parameters
    ----------
    rows
        (partitions, classes) integers: rows there are.
    drawn
        (classes,) rows of each class that an epoch reads.
    seed
        Any non-negative integer.
    shuffled
        Whether rows of a partition are drawn in a random order, and not in their own.

    Raises
    ------
    PlanError
        A class is to be read that has no rows, or the numbers are too large for exact arithmetic in 64 bits.
    """

    rows: Integers
    drawn: Sequence[int]
    seed: int
    shuffled: bool = True
    _edges: Integers = field(init=False, repr=False)  # (partitions + 1, classes): rows before each partition
    #: epoch -> what `strata` returns; the latest only
    _latest: dict[int, Integers] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        edges = np.concatenate([np.zeros_like(self.rows[:1]), np.cumsum(self.rows, axis=0)])
        object.__setattr__(self, "_edges", edges)
        totals = edges[-1].tolist()
        if len(self.drawn) != len(totals):
            raise PlanError(f"drawn must have a number for each of {len(totals)} classes, however it is {self.drawn}")
        if not any(self.drawn):
            raise PlanError(f"An epoch must read rows, however drawn is {self.drawn}")
        for label, (total, drawn) in enumerate(zip(totals, self.drawn, strict=True)):
            if drawn < 0 or (drawn and not total):
                raise PlanError(f"Rows must be drawn of classes that have some, however {drawn} are of class {label}")
            if total * max(drawn, total) >= 2**62:
                raise PlanError(
                    f"A class's rows times those drawn of it must be below 2**62, however they are {total} x {drawn}; "
                    "sample the data beforehand"
                )

    def strata(self, epoch: int) -> Integers:
        """Return (partitions, classes): readings of each class in each partition."""
        if epoch not in self._latest:
            self._latest.clear()
            self._latest[epoch] = np.diff(self._numerators(epoch) // self._totals, axis=0)
        return self._latest[epoch]

    def locate(self, epoch: int, label: int, partition: Integers, place: Integers) -> tuple[Integers, Integers]:
        """Return the rows that readings are of, and how often the epoch reads them before.

        All are (readings,). Reading ``place[i]`` of a class in ``partition[i]`` is one of ``strata(epoch)``, and its
        row counts from the first of its class there.
        """
        total, drawn = int(self._totals[label]), int(self.drawn[label])
        begun = (self._numerators(epoch)[:, label] % total)[partition]
        step = ((place + 1) * total - begun - 1) // drawn
        copy = place - (step * drawn + begun) // total
        if not self.shuffled:
            return step, copy
        row = np.empty_like(step)
        for number in np.unique(partition).tolist():
            here = partition == number
            rng = np.random.default_rng((self.seed, _CIRCLE, label, number))
            row[here] = permuted(step[here], int(self.rows[number, label]), rng)
        return row, copy

    @property
    def _totals(self) -> Integers:
        """Rows of each class, or 1 where there are none, of which nothing is drawn."""
        totals: Integers = np.maximum(1, self._edges[-1])
        return totals

    def _numerators(self, epoch: int) -> Integers:
        """Return i m + q for the first row of each partition, and for the end: (partitions + 1, classes)."""
        drawn = np.asarray(self.drawn, dtype=np.int64)
        rng = np.random.default_rng((self.seed, _START))
        begin = rng.integers(0, self._totals)
        moved = [epoch * int(m) % int(n) for m, n in zip(self.drawn, self._totals, strict=True)]
        numerators: Integers = self._edges * drawn + (begin + np.array(moved, dtype=np.int64)) % self._totals
        return numerators
