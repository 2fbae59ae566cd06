"""The canonical reduction tree: a fixed binary tree over shards decides which floats are added to which.

Node [start, stop) splits at `start` + the largest power of two below its length. Floating-point addition
commutes but does not associate, so who computes a node, and by which route it travels, cannot change a bit,
as long as every node is its left sum plus its right sum.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

import numpy as np

from dasktrain.errors import NonFinite, ReductionError
from dasktrain.messages import Partial

T = TypeVar("T")


class Leaf(Protocol[T]):
    """Compute one shard and add it to `into`; a shard without rows returns `into` as it is."""

    def __call__(self, shard: int, into: T | None) -> T | None: ...


def split(start: int, stop: int) -> int:
    """Return where node [start, stop) splits, stop - start >= 2."""
    return start + (1 << (stop - start - 1).bit_length() - 1)


def subtrees(start: int, stop: int, shards: int) -> Iterator[tuple[int, int]]:
    """Yield the fewest nodes of the tree over `shards` leaves that cover [start, stop), in order."""

    def within(first: int, last: int) -> Iterator[tuple[int, int]]:
        if start <= first and last <= stop:
            yield first, last
        elif first < stop and start < last:
            middle = split(first, last)
            yield from within(first, middle)
            yield from within(middle, last)

    if start < stop:
        yield from within(0, shards)


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


def reduce(partials: Iterable[Partial], shards: int) -> Partial:
    """Complete the tree from the partials of all workers.

    Parameters
    ----------
    partials
        Any order; together they must cover [0, shards) exactly once, each of them a node of the tree.
    shards
        Leaves of the tree.

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
    nodes: dict[tuple[int, int], Partial] = {}
    for partial in partials:
        if (partial.start, partial.stop) in nodes:
            raise ReductionError(f"Shards must be summed once, however {_name(partial)} came twice; report this")
        nodes[partial.start, partial.stop] = partial
    total = _complete(0, shards, nodes)
    if nodes:
        raise ReductionError(
            f"Partials must be nodes of the tree over {shards} shards, however {_name(*nodes.values())} "
            "came beside others that cover them; report this"
        )
    for part in (total.vector, total.sums):
        # One pass in place of two: a sum is finite only if all of its terms are, though not the reverse.
        if part is not None and not np.isfinite(_quiet_sum(part)) and not np.isfinite(part).all():
            raise NonFinite("A round's sums must be finite, however they hold NaN or infinity; lower the learning rate")
    return total


def _complete(start: int, stop: int, nodes: dict[tuple[int, int], Partial]) -> Partial:
    if (start, stop) in nodes:
        return nodes.pop((start, stop))
    if stop - start == 1:
        raise ReductionError(f"Every shard must be summed, however shard {start} is missing; report this")
    middle = split(start, stop)
    left, right = _complete(start, middle, nodes), _complete(middle, stop, nodes)
    return Partial(start, stop, _plus(left.vector, right.vector), _plus(left.sums, right.sums))


def _plus(left: np.ndarray | None, right: np.ndarray | None) -> np.ndarray | None:
    if left is None or right is None:
        return right if left is None else left
    if left.shape != right.shape:  # NumPy would stretch the one to the other
        raise ReductionError(
            f"Partials must have as many numbers, however one has {len(left)} and another {len(right)}; report this"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused once, at the root
        added: np.ndarray = np.add(left, right, out=left if left.flags.writeable else None)
    return added


def _quiet_sum(part: np.ndarray) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(part.sum())


def _name(*partials: Partial) -> str:
    return ", ".join(f"[{partial.start}, {partial.stop})" for partial in partials)
