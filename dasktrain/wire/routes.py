"""Which way parameters and sums take among peers: by whoever owns a bucket, or along the tree of sums.

Peers have places, 0 and so on, and each sums a run of shards. A route is a function of who sums what and of nothing
else, so that the driver and all peers know the same one without telling. None changes a sum: which floats are added to
which is the tree's matter as ever.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, pairwise

from dasktrain.cut import Cut
from dasktrain.reduce import Node, holds, lineage, split, subtrees
from dasktrain.topology import Reduction

#: the driver's number among those of peers, which are their places
DRIVER = -1


class Routes(ABC):
    """Who gives whom parameters, and who adds which sums.

    Parameters
    ----------
    runs
        Shards that each peer sums, by its place.
    shards
        Leaves of the tree.
    cut
        Of the parameters, and of a gradient.

    Attributes
    ----------
    tops : frozenset of Node
        The fewest nodes that cover what peers sum. Their sums go to the driver.
    """

    def __init__(self, runs: Sequence[Node], shards: int, cut: Cut) -> None:
        self.runs, self.shards, self.cut = tuple(runs), shards, cut
        self.tops = frozenset(tops(runs, shards))

    def own(self, place: int) -> list[Node]:
        """Return the nodes that a peer sums alone."""
        return list(subtrees(*self.runs[place], self.shards))

    def connects_like(self, other: "Routes") -> bool:
        """Return whether the same peers are neighbours by another route among as many."""
        return all(self.neighbours(place) == other.neighbours(place) for place in range(len(self.runs)))

    def links(self, place: int, offset: int, node: Node) -> list[tuple[int, int]]:
        """Return by which peers a bucket of a node that a peer sums alone gets to the driver: from whom to whom."""
        places = [place]
        for part in lineage(node, self.shards):
            if (adder := self.adder(offset, part)) == DRIVER:
                break
            if places[-1] != adder:
                places.append(adder)
        return list(pairwise(places))

    @abstractmethod
    def adder(self, offset: int, node: Node) -> int:
        """Return who is sent a bucket of a node's sum, and adds it to that of its sibling."""

    @abstractmethod
    def adders(self, node: Node) -> Collection[int]:
        """Return the peers that are sent buckets of a node's sum."""

    @abstractmethod
    def added(self, place: int) -> range:
        """Return where the buckets begin that a peer adds, of the nodes that it adds."""

    @abstractmethod
    def rising(self, place: int) -> Iterable[Node]:
        """Return the nodes up to which a peer adds."""

    @abstractmethod
    def passed(self, place: int) -> Collection[Node]:
        """Return those of these nodes whose sums other peers wait for."""

    @abstractmethod
    def awaited(self, place: int) -> dict[Node, int]:
        """Return the nodes of which a peer adds buckets that somebody sends, itself or another, and who does."""

    @abstractmethod
    def giver(self, place: int, offset: int) -> int:
        """Return who gives a peer a bucket of the parameters."""

    @abstractmethod
    def given(self, place: int) -> range:
        """Return where the buckets of the parameters begin that the driver gives a peer."""

    @abstractmethod
    def takers(self, place: int, offset: int) -> Collection[int]:
        """Return whom a peer gives a bucket of the parameters."""

    @abstractmethod
    def neighbours(self, place: int) -> frozenset[int]:
        """Return those whom a peer sends anything, or they it."""

    @abstractmethod
    def lanes(self) -> Iterable[tuple[range, int | None]]:
        """Return where the buckets begin that take one way, for each way that some take, and who alone adds these."""


class ByOwner(Routes):
    """Each peer owns some buckets, adds those of all others, and gives them those of the parameters."""

    def links(self, place: int, offset: int, node: Node) -> list[tuple[int, int]]:
        """Return at most one: to the bucket's owner."""
        adder = self.adder(offset, node)
        return [] if adder in (place, DRIVER) else [(place, adder)]

    def adder(self, offset: int, node: Node) -> int:
        """Return the bucket's owner."""
        return DRIVER if self._is_complete(node) else self._owner(offset)

    def adders(self, node: Node) -> Collection[int]:
        """Return all that own some."""
        return () if self._is_complete(node) else range(min(len(self.runs), len(self.cut.offsets)))

    def _is_complete(self, node: Node) -> bool:
        """Whether there is nothing to add to a node, or all of that is added by the one that sums it."""
        return node in self.tops or any(holds(top, node) for top in self._alone)

    @cached_property
    def _alone(self) -> list[Node]:
        """Tops that one peer sums."""
        return [node for place in range(len(self.runs)) for node in self.own(place) if node in self.tops]

    def added(self, place: int) -> range:
        """Return what it owns."""
        return self.cut.owned(place, len(self.runs))

    def rising(self, place: int) -> Iterable[Node]:
        """Return the highest there are."""
        return self.tops

    def passed(self, place: int) -> Collection[Node]:
        """Return none: all go to the driver."""
        return ()

    def awaited(self, place: int) -> dict[Node, int]:
        """Return those of all peers, if it owns a bucket."""
        return self._parts if self.added(place) else {}

    @cached_property
    def _parts(self) -> dict[Node, int]:
        return {node: place for place in range(len(self.runs)) for node in self.own(place) if node not in self.tops}

    def giver(self, place: int, offset: int) -> int:
        """Return the bucket's owner; that has it from the driver."""
        owner = self._owner(offset)
        return DRIVER if owner == place else owner

    def given(self, place: int) -> range:
        """Return what it owns."""
        return self.added(place)

    def takers(self, place: int, offset: int) -> Collection[int]:
        """Return all others, of what it owns."""
        return self.neighbours(place) if self._owner(offset) == place else ()

    def neighbours(self, place: int) -> frozenset[int]:
        """Return all others."""
        return frozenset(range(len(self.runs))) - {place}

    def lanes(self) -> Iterable[tuple[range, int | None]]:
        """Return what each peer owns."""
        return [(owned, place) for place in range(len(self.runs)) if (owned := self.added(place))]

    def _owner(self, offset: int) -> int:
        return self.cut.owner(offset, len(self.runs))


class AlongTree(Routes):
    """A node's sum is added up by the peer that sums the first shard of its right part, its hub.

    Each shard but the first is where one node splits, so that a peer with a shard is the hub of one. Sums go from hub
    to hub, parameters back; as a rule a peer sends two sums, and the parameters twice, whatever the number of peers.
    """

    def __init__(self, runs: Sequence[Node], shards: int, cut: Cut) -> None:
        super().__init__(runs, shards, cut)
        self._sorted = sorted((start, place) for place, (start, _) in enumerate(runs))
        self._adders: dict[Node, int] = {}
        self._hubbed: dict[int, list[Node]] = {}

    def adder(self, offset: int, node: Node) -> int:
        """Return the hub of the node above."""
        if node not in self._adders:
            self._adders[node] = DRIVER if node in self.tops else self._hub(self._parent(node))
        return self._adders[node]

    def adders(self, node: Node) -> Collection[int]:
        """Return the hub of the node above."""
        return () if node in self.tops else (self.adder(0, node),)

    def added(self, place: int) -> range:
        """Return all: a hub adds all of a node."""
        return self.cut.offsets

    def rising(self, place: int) -> Iterable[Node]:
        """Return those from which on another adds, or nobody."""
        return [node for node in (*self.own(place), *self._hubs(place)) if self.adder(0, node) != place]

    def passed(self, place: int) -> Collection[Node]:
        """Return those whose sums go on to another hub."""
        return [node for node in self._hubs(place) if self.adder(0, node) not in (place, DRIVER)]

    def awaited(self, place: int) -> dict[Node, int]:
        """Return the parts of nodes whose hub it is, but for those that it adds itself."""
        parts = chain.from_iterable(map(_halves, self._hubs(place)))
        return {part: self._holder(part) for part in parts if self._is_of_one(part) or self._hub(part) != place}

    def giver(self, place: int, offset: int) -> int:
        """Return whom it sends the largest of its sums."""
        return self._givers[place]

    def given(self, place: int) -> range:
        """Return all, if the largest of its sums goes to the driver."""
        return self.cut.offsets if self._givers[place] == DRIVER else range(0)

    def takers(self, place: int, offset: int) -> Collection[int]:
        """Return those that send it the largest of their sums."""
        return self._takers[place]

    def neighbours(self, place: int) -> frozenset[int]:
        """Return those that it has sums from, or they from it."""
        adders = {self.adder(0, node) for node in (*self.own(place), *self._hubs(place))}
        return frozenset(adders | set(self.awaited(place).values())) - {place, DRIVER}

    def lanes(self) -> Iterable[tuple[range, int | None]]:
        """Return all buckets: they take the same way."""
        return [(self.cut.offsets, None)]

    @cached_property
    def _givers(self) -> list[int]:
        sums = ((*self.own(place), *self._hubs(place)) for place in range(len(self.runs)))
        return [self.adder(0, max(nodes, key=lambda node: node[1] - node[0])) for nodes in sums]

    @cached_property
    def _takers(self) -> list[list[int]]:
        takers: list[list[int]] = [[] for _ in self.runs]
        for place, giver in enumerate(self._givers):
            if giver != DRIVER:
                takers[giver].append(place)
        return takers

    def _parent(self, node: Node) -> Node:
        return lineage(node, self.shards)[1]

    def _hub(self, node: Node) -> int:
        """Return who adds up a node that no peer sums alone."""
        return self._at(split(*node))

    def _hubs(self, place: int) -> list[Node]:
        """Return the nodes that a peer adds up."""
        if place not in self._hubbed:
            start, stop = self.runs[place]
            nodes = (_split_at(shard, self.shards) for shard in range(max(start, 1), stop))
            self._hubbed[place] = [node for node in nodes if self._is_within(node) and not self._is_of_one(node)]
        return self._hubbed[place]

    def _is_within(self, node: Node) -> bool:
        """Whether all of a node is summed by peers."""
        return not self.tops.isdisjoint(lineage(node, self.shards))

    def _is_of_one(self, node: Node) -> bool:
        """Whether a peer sums a node alone."""
        return node[1] <= self.runs[self._at(node[0])][1]

    def _holder(self, node: Node) -> int:
        """Return who has a node's sum."""
        return self._at(node[0]) if self._is_of_one(node) else self._hub(node)

    def _at(self, shard: int) -> int:
        """Return who sums a shard."""
        return self._sorted[bisect_right(self._sorted, (shard, len(self.runs))) - 1][1]


def routes_along(reduction: Reduction, runs: Sequence[Node], shards: int, cut: Cut) -> Routes:
    """Return the routes of a way to reduce that is not flat."""
    return AlongTree(runs, shards, cut) if reduction == "tree" else ByOwner(runs, shards, cut)


def tops(runs: Iterable[Node], shards: int) -> Iterator[Node]:
    """Yield the fewest nodes of the tree over `shards` leaves that cover some runs of shards."""
    joined: list[Node] = []
    for start, stop in sorted(runs):
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], stop
        else:
            joined.append((start, stop))
    return chain.from_iterable(subtrees(*run, shards) for run in joined)


def _halves(node: Node) -> tuple[Node, Node]:
    middle = split(*node)
    return (node[0], middle), (middle, node[1])


def _split_at(shard: int, shards: int) -> Node:
    """Return the node of the tree over `shards` leaves that splits at a shard other than the first."""
    start, stop = 0, shards
    while (middle := split(start, stop)) != shard:
        start, stop = (start, middle) if shard < middle else (middle, stop)
    return start, stop
