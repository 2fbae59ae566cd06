"""Which rows each shard sees in each round: a pure function of a few integers.

Every cut in this file - data set into shards, shard into windows, epoch into rounds, round into shards -
is the same one: deal cards round-robin and count what a hand holds. It is exact for any numbers, even to
within one card, and costs the same for the millionth round as for the first.
"""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Integral
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from dasktrain.draws import Draws
from dasktrain.errors import PlanError
from dasktrain.folds import Side
from dasktrain.permutation import Integers, permuted

Partitioning = Literal["block", "random", "stratified"]
Shuffle = Literal["shard", "epoch", "global", False]
Count = TypeVar("Count", int, Integers)
Lengths = Callable[["Rows"], Integers]

PARTITIONINGS = ("block", "random", "stratified")
SHUFFLES = ("shard", "epoch", "global", False)
_DEAL, _ORDER, _WINDOW, _GLOBAL, _TURN, _LENGTH, _SYNTHESIS = range(7)  # what a stream of random numbers is for


def dealt(cards: Count, hands: int, first: int) -> Count:
    """Count what the `first` of `hands` hold once `cards` are dealt to them in turn."""
    each, rest = divmod(cards, hands)
    return each * first + (min(rest, first) if isinstance(rest, int) else np.minimum(rest, first))


def shard_seed(seed: int, epoch: int, round: int, shard: int) -> int:
    """Return the 63-bit seed of everything random in one shard's contribution to one round."""
    where = f"{seed} {epoch} {round} {shard}".encode()
    return int.from_bytes(hashlib.blake2b(where, digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to read, in order: row ``row[i]`` of partition ``partition[i]``. All (rows,), int64.

    Where classes are drawn from, ``copy[i]`` tells how often the epoch reads that row before, 0 for the first time.
    """

    partition: Integers
    row: Integers
    copy: Integers | None = None

    def __len__(self) -> int:
        return len(self.row)

    def at(self, places: "slice | NDArray[Any]") -> "Rows":
        """Return some of these rows."""
        return Rows(self.partition[places], self.row[places], None if self.copy is None else self.copy[places])

    @staticmethod
    def joined(parts: "Sequence[Rows]") -> "Rows":
        """Return the rows of all parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        nothing = np.empty(0, dtype=np.int64)
        copies = [part.copy for part in parts if part.copy is not None]
        return Rows(
            np.concatenate([nothing, *(part.partition for part in parts)]),
            np.concatenate([nothing, *(part.row for part in parts)]),
            np.concatenate(copies) if copies else None,
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """What a round reads of a window.

    Attributes
    ----------
    window : int
        Which of the shard's in this epoch.
    rows : Rows
        All of the window, in order.
    read : slice
        Those that the round reads.
    """

    window: int
    rows: Rows
    read: slice


@dataclass(frozen=True, eq=False)
class Plan:
    """Rows of each shard in each round, computed without those before it.

    Parameters
    ----------
    strata
        (partitions, classes) integers: rows of each class in each partition. Unless `partition` is
        ``"stratified"`` there is one class, the rows. A stratified partition holds its rows sorted by class.
        If the plan is `grouped`, classes are shards, and rows are sorted by the shard that their group is dealt to.
    shards
        Logical data-parallel ranks. Each round's rows are spread over them to within one row.
    batch_size
        Rows of a round, at most. An epoch has R = ceil(rows / batch_size) rounds of rows / R rows each.
    seed
        Any non-negative integer.
    partition
        How rows are dealt to shards. ``"block"``: contiguous runs of partitions in their order. ``"random"``:
        the same over partitions in a random order. ``"stratified"``: every shard, window and (nearly) every
        round has the data set's mix of classes, to within a row a class and shard; each class is cut
        contiguously. A class with fewer rows in a shard than the shard has windows is in some of them.
    shuffle
        ``"shard"``: each epoch permutes a shard's partition order and its rows within windows; shards keep
        their rows, so no data moves between epochs. ``"epoch"``: partitions are dealt anew each epoch; up to
        the whole data set moves once an epoch. ``"global"``: every row goes anywhere; every shard reads from
        every partition every epoch. ``False``: the order of the data.
    window
        Rows of a shard that are permuted together; also what a lease needs at hand at a time.
    by_length
        Whether rows of like length are read together: a window's rows are sorted by length, cut into what each round
        reads of it, and the pieces are given to its rounds in a random order (in their own with ``shuffle=False``).
    drawn
        Rows of each class that an epoch reads, (classes,); None: those there are, each once. Another number reads each
        row of the class as often as any other, but for once; see :class:`dasktrain.draws.Draws`.
    grouped
        Whether every shard reads its own class of `strata`, and nothing else: rows that belong together are in one
        shard. Shards then differ in their rows, and each spreads its own over the rounds.
    side
        Which rows of the data set's `strata` are, if a fold is set apart; None: all.
    """

    strata: Integers
    shards: int
    batch_size: int
    seed: int = 0
    partition: Partitioning = "block"
    shuffle: Shuffle = "shard"
    window: int = 65_536
    by_length: bool = False
    drawn: tuple[int, ...] | None = None
    grouped: bool = False
    side: Side | None = None
    #: rows that an epoch reads, of each class and of all
    rows_per_class: Integers = field(init=False, repr=False)
    num_rows: int = field(init=False)
    _before: Integers = field(init=False, repr=False)  # rows of a partition that lie before those of each class
    _draws: Draws | None = field(init=False, repr=False, default=None)
    #: shard -> ((epoch, window), rows of that window in order): the latest window each shard has read from
    _latest: dict[int, tuple[tuple[int, int], Rows]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        strata = np.asarray(self.strata, dtype=np.int64)
        object.__setattr__(
            self, "strata", strata.reshape(len(strata), -1) if strata.size else strata.reshape(len(strata), 1)
        )
        there = self.strata if self.side is None else self.side.rows
        object.__setattr__(self, "_before", there.cumsum(axis=1) - there)
        object.__setattr__(self, "rows_per_class", self.strata.sum(axis=0))
        for name, least in (("shards", 1), ("batch_size", 1), ("window", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < least:
                raise PlanError(f"{name} must be a whole number and at least {least}, however it is {value}")
            object.__setattr__(self, name, int(value))
        if self.partition not in PARTITIONINGS or self.shuffle not in SHUFFLES:
            raise PlanError(
                f"partition must be one of {PARTITIONINGS} and shuffle one of {SHUFFLES}, "
                f"however they are {self.partition!r} and {self.shuffle!r}"
            )
        if not self.strata.any():
            raise PlanError(f"The data must have rows, however {len(self.strata)} partitions hold none")
        if self.grouped and self.strata.shape[1] != self.shards:
            raise PlanError(
                f"Groups must be dealt to the plan's {self.shards} shards, however they are to {self.strata.shape[1]}"
            )
        if self.drawn is not None:
            object.__setattr__(self, "rows_per_class", np.asarray(self.drawn, dtype=np.int64))
            object.__setattr__(self, "_draws", Draws(self.strata, self.drawn, self.seed, self.shuffle is not False))
        object.__setattr__(self, "num_rows", int(self.rows_per_class.sum()))

    @property
    def rounds(self) -> int:
        """Rounds in an epoch."""
        return -(-self.num_rows // self.batch_size)

    def rows_of_round(self, round: int) -> int:
        """Count the rows of all shards in a round."""
        return dealt(self.num_rows, self.rounds, round + 1) - dealt(self.num_rows, self.rounds, round)

    @property
    def fewest_rows(self) -> int:
        """Rows of the smallest contribution of a shard that has any rows at all in its round."""
        if self.grouped:
            return max(1, int(self.rows_per_class[self.rows_per_class > 0].min()) // self.rounds)
        return max(1, self.num_rows // self.rounds // self.shards)

    def _cursor(self, round: int, shard: int) -> int:
        """Count the rows a shard has seen before a round of its epoch."""
        if self.grouped:
            # What is left of each shard's rows when all its rounds have as many is dealt to rounds in turn, the next
            # shard's from where the last one's ended: so rounds, too, are within one row of each other (McNaughton's
            # wrap-around rule, "Scheduling with Deadlines and Loss Functions", Management Science 1959).
            each, rest = divmod(self.rows_per_class[: shard + 1], self.rounds)
            through, before = int(rest.sum()), int(rest[:shard].sum())
            return int(each[shard]) * round + dealt(through, self.rounds, round) - dealt(before, self.rounds, round)
        seen = dealt(self.num_rows, self.rounds, round)
        return dealt(seen, self.shards, shard + 1) - dealt(seen, self.shards, shard)

    def rows(self, epoch: int, round: int, shard: int, lengths: "Lengths | None" = None) -> Rows:
        """Return the rows of one shard in one round of an epoch, in the order they are read.

        ``lengths(rows)`` returns the length of each of some rows, (rows,); only a plan by length calls it.
        """
        return Rows.joined([piece.rows.at(piece.read) for piece in self.pieces(epoch, round, shard, lengths)])

    def pieces(self, epoch: int, round: int, shard: int, lengths: "Lengths | None" = None) -> list[Piece]:
        """Return the same by the windows that the round reads from, which are one or a few."""
        start, stop = self._cursor(round, shard), self._cursor(round + 1, shard)
        size = self._cursor(self.rounds, shard)
        windows = max(1, -(-size // self.window))
        pieces = []
        window = _hand_of(start, size, windows)
        while start < stop:
            first = dealt(size, windows, window)
            rows = self._window(epoch, shard, window, windows, lengths)
            pieces.append(Piece(window, rows, slice(start - first, min(stop - first, len(rows)))))
            start, window = min(stop, first + len(rows)), window + 1
        return pieces

    def window_seed(self, epoch: int, shard: int, window: int) -> int:
        """Return the 32-bit seed of what is made up for a window."""
        return int(self._rng(_SYNTHESIS, epoch, shard, window).integers(2**32))

    def partitions(self, epoch: int, shard: int) -> dict[int, int]:
        """Return how many rows a shard has in each partition it touches; under ``"global"`` an even share of all."""
        touched: dict[int, int] = {}
        if self.shuffle == "global" and not self.grouped:
            return dict(enumerate((self.strata.sum(axis=1) // self.shards).tolist()))
        start, count = self._runs(shard)
        for label in np.flatnonzero(count).tolist():
            segments = self._segments(epoch, label, int(start[label]), int(count[label]))
            for partition, _, length in segments.T.tolist():
                touched[partition] = touched.get(partition, 0) + length
        return touched

    # -- from a shard down to rows ------------------------------------------------------------------------

    def _runs(self, shard: int) -> tuple[Integers, Integers]:
        """Return where a shard's run begins in each class, and its length: two (classes,) arrays."""
        if self.grouped:
            own = np.arange(self.shards) == shard
            return np.zeros(self.shards, dtype=np.int64), np.where(own, self.rows_per_class, 0)
        edges = np.concatenate([[0], np.cumsum(self.rows_per_class)])
        before, through = dealt(edges, self.shards, shard), dealt(edges, self.shards, shard + 1)
        return np.diff(before), np.diff(through - before)

    def _window(self, epoch: int, shard: int, window: int, windows: int, lengths: "Lengths | None") -> Rows:
        key, rows = self._latest.get(shard, ((-1, -1), None))
        if rows is None or key != (epoch, window):
            rows = self._window_rows(epoch, shard, window, windows)
            if self.by_length:
                assert lengths is not None, "a plan by length must be told the lengths"
                first = dealt(self._cursor(self.rounds, shard), windows, window)
                rows = self._together(rows, lengths(rows), epoch, shard, first, window)
            self._latest[shard] = (epoch, window), rows
        return rows

    def _window_rows(self, epoch: int, shard: int, window: int, windows: int) -> Rows:
        """Read one window: a contiguous piece of the shard's run in each class, permuted and interleaved."""
        run_start, run_length = self._runs(shard)
        edges = np.concatenate([[0], np.cumsum(run_length)])
        before, through = dealt(edges, windows, window), dealt(edges, windows, window + 1)
        start, count = np.diff(before), np.diff(through - before)
        rng = self._rng(_WINDOW, epoch, shard, window)
        pieces, places = [], []
        for label in np.flatnonzero(count).tolist():
            n = int(count[label])
            index = int(start[label]) + np.arange(n)
            pieces.append(self._locate(epoch, shard, label, int(run_start[label]), int(run_length[label]), index))
            rank = rng.permutation(n) if self.shuffle else np.arange(n)
            # The rows of a class are spread evenly over the epoch, each shard's every so many, at its turn.
            turn = self._turn(epoch, label, shard)
            places.append(((int(start[label]) + rank) * self.shards + turn + 0.5) / self.rows_per_class[label])
        return Rows.joined(pieces).at(np.argsort(np.concatenate(places), kind="stable"))

    def _together(self, rows: Rows, lengths: Integers, epoch: int, shard: int, first: int, window: int) -> Rows:
        """Put rows of like length into the same piece: what one round reads of a window that begins at `first`."""

        def cursor(round: int) -> int:
            return self._cursor(round, shard)

        rounds = range(self.rounds + 1)
        begin, end = bisect_right(rounds, first, key=cursor) - 1, bisect_left(rounds, first + len(rows), key=cursor)
        edges = np.clip([cursor(round) - first for round in range(begin, end + 1)], 0, len(rows))
        pieces = [np.arange(start, stop) for start, stop in pairwise(edges.tolist())]
        if self.shuffle:
            order = self._rng(_LENGTH, epoch, shard, window).permutation(len(pieces))
            pieces = [pieces[number] for number in order.tolist()]
        sorted_ = np.empty(len(rows), dtype=np.int64)
        sorted_[np.concatenate(pieces)] = np.argsort(lengths, kind="stable")
        return rows.at(sorted_)

    def _turn(self, epoch: int, label: int, shard: int) -> int:
        """Return a shard's turn among all to read a row of a class; those with a row more than others come first."""
        place = (shard - int(self.rows_per_class[:label].sum())) % self.shards
        more = int(self.rows_per_class[label]) % self.shards
        rng = self._rng(_TURN, epoch if self.shuffle else 0, label)
        turns = np.concatenate([rng.permutation(more), more + rng.permutation(self.shards - more)])
        return int(turns[place])

    def _locate(self, epoch: int, shard: int, label: int, start: int, length: int, index: Integers) -> Rows:
        """Find the partition and row of places in a shard's run (`start`, `length`) of one class."""
        if self.shuffle == "global":
            total = int(self.rows_per_class[label])
            index = permuted(start + index, total, self._rng(_GLOBAL, epoch, label))
            start, length = 0, total
        segments = self._segments(epoch, label, start, length)
        if self.shuffle in ("shard", "epoch"):
            segments = segments[:, self._rng(_ORDER, epoch, shard, label).permutation(segments.shape[1])]
        partition, first, size = segments
        ends = np.cumsum(size)
        at = np.searchsorted(ends, index, side="right")
        place, partition = first[at] + index - (ends - size)[at], partition[at]
        row, copy = place, None
        if self._draws is not None:
            row, copy = self._draws.locate(epoch, label, partition, place)
        if self.side is not None:
            row = self.side.locate(label, partition, row)
        return Rows(partition, self._before[partition, label] + row, copy)

    def _segments(self, epoch: int, label: int, start: int, length: int) -> Integers:
        """Cut the run [start, start + length) of a class into (3, segments): partition, first of its places, rows."""
        order = self._deal(epoch)
        sizes = (self.strata if self._draws is None else self._draws.strata(epoch))[order, label]
        ends = np.cumsum(sizes)
        begins = ends - sizes
        low = np.maximum(start, begins)
        size = np.minimum(start + length, ends) - low
        some = size > 0
        return np.stack([order[some], (low - begins)[some], size[some]])

    def _deal(self, epoch: int) -> Integers:
        """Return the order in which partitions are dealt to shards."""
        if self.shuffle == "epoch":
            return self._rng(_DEAL, epoch).permutation(len(self.strata))
        if self.partition == "random":
            return self._rng(_DEAL).permutation(len(self.strata))
        return np.arange(len(self.strata))

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *purpose))


def _hand_of(card: int, cards: int, hands: int) -> int:
    """Return which of `hands` holds place `card` of `cards` when each hand is laid out in turn."""
    small, larger = divmod(cards, hands)
    in_larger = larger * (small + 1)
    if card < in_larger:
        return card // (small + 1)
    return larger + (card - in_larger) // max(small, 1)


def rows_only(counts: Sequence[int]) -> Integers:
    """Return the strata of a data set whose classes do not matter: (partitions, 1)."""
    return np.asarray(counts, dtype=np.int64).reshape(-1, 1)
