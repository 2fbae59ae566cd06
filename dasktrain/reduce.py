"""The canonical reduction tree: a fixed binary tree over shards decides which floats are added to which.

Node [start, stop) splits at `start` + the largest power of two below its length. Floating-point addition
commutes but does not associate, so who computes a node, and by which route it travels, cannot change a bit,
as long as every node is its left sum plus its right sum.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar, Union

import numpy as np

from dasktrain.codes import Code, rounded
from dasktrain.errors import NonFinite, ReductionError
from dasktrain.messages import Partial, Vector
from dasktrain.touched import Touched, plus_each

#: shards [start, stop), and the tree's sum over them
Node = tuple[int, int]
T = TypeVar("T")
S = TypeVar("S")
#: pairs of pairs of ... of something
Tree = Union[T, tuple["Tree[T]", ...]]  # noqa: UP007 - of strings there is no |
#: calls a function on each of many, perhaps several at once
Each = Callable[[Callable[[int], None], Sequence[int]], Iterable[object]]
NOT_FINITE = "A round's sums must be finite, however they hold NaN or infinity; lower the learning rate"
#: numbers that are summed at once: half a megabyte of float32, so that those of a few workers stay in the cache
BLOCK = 1 << 17


class Leaf(Protocol[T]):
    """Compute one shard and add it to `into`; a shard without rows returns `into` as it is."""

    def __call__(self, shard: int, into: T | None) -> T | None: ...


def split(start: int, stop: int) -> int:
    """Return where node [start, stop) splits, stop - start >= 2."""
    return start + (1 << (stop - start - 1).bit_length() - 1)


def subtrees(start: int, stop: int, shards: int) -> Iterator[Node]:
    """Yield the fewest nodes of the tree over `shards` leaves that cover [start, stop), in order."""

    def within(first: int, last: int) -> Iterator[Node]:
        if start <= first and last <= stop:
            yield first, last
        elif first < stop and start < last:
            middle = split(first, last)
            yield from within(first, middle)
            yield from within(middle, last)

    if start < stop:
        yield from within(0, shards)


def spine(start: int, stop: int) -> Iterator[Node]:
    """Yield the nodes that are left of the way from node [start, stop) to its last leaf, from the top."""
    while stop - start > 1:
        middle = split(start, stop)
        yield start, middle
        start = middle


def siblings(start: int, stop: int, shards: int) -> list[tuple[Node, Node]]:
    """Return the siblings of node [start, stop), of its parent and so on, each with the node above it, from the bottom.

    Raises
    ------
    ReductionError
        It is no node of the tree over `shards` leaves.
    """
    found: list[tuple[Node, Node]] = []
    first, last = 0, shards
    while (first, last) != (start, stop):
        if not first <= start < stop <= last or last - first == 1:
            raise ReductionError(f"Sums must be of nodes of the tree, however one is of [{start}, {stop}); report this")
        middle = split(first, last)
        left, right = (first, middle), (middle, last)
        below, beside = (left, right) if stop <= middle else (right, left)
        found.append((beside, (first, last)))
        first, last = below
    return found[::-1]


def lineage(node: Node, shards: int) -> list[Node]:
    """Return a node and those above it, up to the root of the tree over `shards` leaves."""
    return [node, *(parent for _, parent in siblings(*node, shards))]


def holds(outer: Node, inner: Node) -> bool:
    """Whether all shards of a node are another's."""
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def fold(start: int, stop: int, leaf: Leaf[T], add: Callable[[T, T], T]) -> T | None:
    """Sum the leaves of node [start, stop), holding at most log2(stop - start) + 1 sums at once.

    None stands for the sum of nothing. ``add(left, right)`` may reuse `left`'s memory and `right`'s.
    """
    if stop - start == 1:
        return leaf(start, None)
    middle = split(start, stop)
    left = fold(start, middle, leaf, add)
    if stop - middle == 1:
        return leaf(middle, left)
    right = fold(middle, stop, leaf, add)
    return add(left, right) if left is not None and right is not None else left if right is None else right


def reduce(partials: Iterable[Partial], shards: int, each: Each = map, code: Code | None = None) -> Partial:
    """Complete the tree from the partials of all workers.

    Parameters
    ----------
    partials
        Any order; together they must cover [0, shards) exactly once, each of them a node of the tree. Their arrays are
        used up: sums are taken in place where they may be written to.
    shards
        Leaves of the tree.
    each
        Like `map`; it may call on several threads at once. Vectors are added block by block, each block all the way to
        the root while it is in the processor's cache.
    code
        To whose grid vectors are rounded at every node; None: they are not.

    Returns
    -------
    Partial
        The node [0, shards).

    Raises
    ------
    ReductionError
        A node is missing, came twice, or is none of the tree.
    NonFinite
        The sum holds NaN or infinity.
    """
    nodes: dict[Node, Partial] = {}
    for partial in partials:
        if (partial.start, partial.stop) in nodes:
            raise ReductionError(f"Shards must be summed once, however {_name(partial)} came twice; report this")
        nodes[partial.start, partial.stop] = partial
    tree = _tree(0, shards, nodes)
    if nodes:
        raise ReductionError(
            f"Partials must be nodes of the tree over {shards} shards, however {_name(*nodes.values())} "
            "came beside others that cover them; report this"
        )
    sums = _checked(_sum(_map(tree, lambda partial: partial.sums)))
    touched = _touched(tree)
    for table in touched:
        _checked(table.values)
    return Partial(0, shards, _vector(_map(tree, lambda partial: partial.vector), each, code), sums, touched)


def _tree(start: int, stop: int, nodes: dict[Node, Partial]) -> Tree[Partial]:
    """Return nested pairs of the partials that make up node [start, stop)."""
    if (start, stop) in nodes:
        return nodes.pop((start, stop))
    if stop - start == 1:
        raise ReductionError(f"Every shard must be summed, however shard {start} is missing; report this")
    middle = split(start, stop)
    return _tree(start, middle, nodes), _tree(middle, stop, nodes)


def _map(tree: Tree[T], function: Callable[[T], S]) -> Tree[S]:
    return tuple(_map(side, function) for side in tree) if isinstance(tree, tuple) else function(tree)


def _leaves(tree: Tree[T]) -> Iterator[T]:
    if isinstance(tree, tuple):
        for side in tree:
            yield from _leaves(side)
    else:
        yield tree


def _vector(tree: Tree[Vector | None], each: Each, code: Code | None) -> Vector | None:
    """Sum vectors block by block, into the first of them."""
    vectors = [vector for vector in _leaves(tree) if vector is not None]
    if len({len(vector) for vector in vectors}) > 1:
        raise ReductionError(_of_lengths(*vectors))
    if not vectors:
        return None
    total = vectors[0] if vectors[0].flags.writeable else vectors[0].copy()
    size = len(total)

    def summed(start: int) -> None:
        place = slice(start, start + BLOCK)
        parts = _map(
            tree, lambda vector: None if vector is None else total[place] if vector is vectors[0] else vector[place]
        )
        _checked(_sum(parts, code))

    for _ in each(summed, range(0, size, BLOCK)):
        pass
    return total


def _touched(tree: Tree[Partial]) -> tuple[Touched, ...]:
    """Sum the rows of tables."""
    return plus_each(*map(_touched, tree)) if isinstance(tree, tuple) else tree.touched


def _sum(tree: Tree[Vector | None], code: Code | None = None) -> Vector | None:
    """Sum arrays, in place where that can be done."""
    if not isinstance(tree, tuple):
        return tree
    left, right = (_sum(side, code) for side in tree)
    if left is None or right is None:
        return right if left is None else left
    if left.shape != right.shape:  # or NumPy would stretch the shorter
        raise ReductionError(_of_lengths(left, right))
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused once, at the root
        added: Vector = np.add(left, right, out=left if left.flags.writeable else None)
    if code is not None:
        added[:] = rounded(code, added)
    return added


def _of_lengths(*vectors: Vector) -> str:
    lengths = sorted({len(vector) for vector in vectors})
    return f"Sums must be of one length to be added, however they have {lengths} numbers; report this"


def _checked(part: Vector | None) -> Vector | None:
    """Raise NonFinite if a sum is not finite."""
    if part is not None and not is_finite(part):
        raise NonFinite(NOT_FINITE)
    return part


def is_finite(part: Vector) -> bool:
    """Return whether all numbers are finite."""
    # One pass in place of two: a sum is finite only if all of its terms are, though not the reverse.
    return bool(np.isfinite(_quiet_sum(part)) or np.isfinite(part).all())


def _quiet_sum(part: np.ndarray) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(part.sum())


def _name(*partials: Partial) -> str:
    return ", ".join(f"[{partial.start}, {partial.stop})" for partial in partials)
