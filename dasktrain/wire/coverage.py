"""Which buckets of which nodes have come: a bit for each bucket."""

from collections.abc import Iterable

from dasktrain.cut import Cut
from dasktrain.reduce import Node, lineage, siblings


class Coverage:
    """What has come of a gradient, whoever sent it, and in whatever nodes.

    Parameters
    ----------
    shards
        Leaves of the tree.
    cut
        Of the gradient.
    """

    def __init__(self, shards: int, cut: Cut) -> None:
        self._shards, self._cut = shards, cut
        self._came: dict[Node, int] = {}
        self.all = self.bits(cut.offsets)

    def bits(self, offsets: Iterable[int]) -> int:
        """Return what stands for the buckets that begin there."""
        return sum(1 << offset // self._cut.bucket for offset in offsets)

    def add(self, node: Node, bits: int) -> bool:
        """Take note of buckets of a node; return whether all of some node have come with them."""
        complete = self._note(node, bits)
        for sibling, above in siblings(*node, self._shards):
            bits &= self._came.get(sibling, 0)
            if not bits:
                break
            complete |= self._note(above, bits)
        return complete

    def _note(self, node: Node, bits: int) -> bool:
        before = self._came.get(node, 0)
        self._came[node] = before | bits
        return before != self.all == before | bits

    def lacks(self, node: Node) -> int:
        """Return the buckets of a node that have come neither with it nor with one above."""
        if self._came.get((0, self._shards)) == self.all:
            return 0
        came = 0
        for each in lineage(node, self._shards):
            came |= self._came.get(each, 0)
        return self.all & ~came
