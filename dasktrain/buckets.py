"""A gradient in parts, so that sending it, and adding it up, begins before all of it is known."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from dasktrain.accumulate import Accumulator, Gradients, Sum, add, parts, put
from dasktrain.cut import Cut
from dasktrain.errors import NonFinite, ReductionError
from dasktrain.messages import Bucket, Partial, Task, Vector
from dasktrain.reduce import NOT_FINITE, Each, Node, holds, is_finite, siblings
from dasktrain.vector import Layout


class Outgoing:
    """On a worker: sends a node's sum bucket by bucket, as a rule while the last gradients of it are being computed.

    Backward goes from the last layer to the first, and so do buckets (Li et al., PyTorch Distributed, 2020,
    https://arxiv.org/abs/2006.15704, section 3.2.3).

    Parameters
    ----------
    parameters
        In the order of `layout`.
    layout
        Of a flat vector of gradients.
    bucket
        Numbers of a bucket.
    accumulator
        Whose memory sums lie in, until it is reclaimed.
    send
        Called with each bucket; its values stay as they are until the accumulator is reclaimed.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        layout: Layout,
        bucket: int,
        accumulator: Accumulator,
        send: Callable[[Bucket], None],
    ) -> None:
        self._parameters, self._layout, self._accumulator, self._send = parameters, layout, accumulator, send
        self.cut = Cut(layout.size, 0)
        self.recut(bucket)

    def recut(self, bucket: int) -> None:
        """Have buckets of so many numbers from the next node on."""
        if bucket == self.cut.bucket:
            return
        self.cut = cut = Cut(self._layout.size, bucket)
        self._places = [cut.place(offset) for offset in cut.offsets]
        #: buckets that each parameter lies in
        self._within = [
            range(place.start // bucket, -(-place.stop // bucket)) for place in self._layout.places.values()
        ]

    @property
    def worthwhile(self) -> bool:
        """Whether there is more than one bucket."""
        return len(self._places) > 1

    def sent(self, task: Task, partial: Partial) -> Partial:
        """Send the sum of a node that is known, the last bucket first as well; return what is left of it."""
        if partial.vector is not None:
            for bucket in reversed(self._places):
                self._send(Bucket(task, partial.start, partial.stop, bucket.start, partial.vector[bucket]))
        return replace(partial, vector=None)

    def begin(self, task: Task, node: Node, lefts: Sequence[Sum]) -> None:
        """Begin with a node: the sum of `lefts`, each to be added to all that is right of it, and a last shard."""
        self._task, self._node = task, node
        self._lefts = list(lefts)
        self._into = self._accumulator.lend()
        self._unknown = set(range(len(self._parameters)))
        self._missing = [0] * len(self._places)  # how many parameters of each bucket are not summed
        for within in self._within:
            for bucket in within:
                self._missing[bucket] += 1

    @contextmanager
    def watching(self, before: Sum | None) -> Iterator[None]:
        """Add each gradient, as soon as backward has computed it, to `before`, and that to what is left of it."""
        lefts = self._gradients([*self._lefts, before] if before is not None else self._lefts)
        with ExitStack() as hooks:
            for place, parameter in enumerate(self._parameters):
                handle = parameter.register_hook(partial(self._settle, lefts, place))  # type: ignore[no-untyped-call]
                hooks.callback(handle.remove)
            yield
        for place in sorted(self._unknown):  # took no part
            self._settle(lefts, place, None)
        if before is not None:
            self._accumulator.free(before)

    def end(self, scalars: np.ndarray | None) -> np.ndarray | None:
        """Return the node's scalars, given those of its last shard; None for a shard without rows, or such a node."""
        if scalars is None and self._lefts:  # there was nothing to watch, so nothing is sent
            last = self._lefts.pop()
            lefts = self._gradients(self._lefts)
            for place, gradient in enumerate(self._gradients([last])[0]):
                self._settle(lefts, place, gradient)
            self._accumulator.free(last)
            scalars = last.scalars
        for left in reversed(self._lefts):
            scalars = left.scalars + scalars
            self._accumulator.free(left)
        return scalars

    @staticmethod
    def _gradients(sums: Sequence[Sum]) -> list[Gradients]:
        """Return each parameter's gradient of each sum, the last first."""
        return [parts(each.gradients) for each in reversed(sums) if each.gradients is not None]

    def _settle(self, lefts: Sequence[Gradients], place: int, gradient: Tensor | None) -> None:
        """Sum one parameter's gradients, from the right, and send the buckets that are complete with it."""
        out = self._into.views[place]
        if lefts:
            add(out, lefts[0][place], gradient)
            for left in lefts[1:]:
                add(out, left[place], out)
        else:
            put(out, gradient)
        self._unknown.remove(place)
        for number in self._within[place]:
            self._missing[number] -= 1
            if not self._missing[number]:
                bucket = self._places[number]
                self._send(Bucket(self._task, *self._node, bucket.start, self._into.vector[bucket].numpy()))


class Rising:
    """Parts of sums of nodes, each added as far up the tree as that can be done, in whatever order they come.

    So memory is needed for what is under way and for what waits for workers that are late, not for every answer. A
    bucket that comes twice counts once, whichever worker it is from; of one that is lost with its worker the others
    stay.

    Parameters
    ----------
    shards
        Leaves of the tree.
    done
        Called with each part that goes no further: its first number, its node and its values, None if it is the sum of
        nothing; they may change afterwards.
    """

    def __init__(self, shards: int, done: Callable[[int, Node, Vector | None], None]) -> None:
        self._shards, self._done = shards, done
        self.cut, self._dtype = Cut(0, 1), np.dtype(np.float32)
        self._tops: set[Node] = set()
        self._sums: dict[int, dict[Node, Vector | None]] = {}  # of each bucket, by its first number
        self._free: list[Vector] = []

    def __bool__(self) -> bool:
        """Whether a part of the gradient under way has come."""
        return bool(self._sums)

    def start(self, cut: Cut, dtype: np.dtype[Any], tops: Iterable[Node]) -> None:
        """Begin with a gradient, whose parts rise as far as `tops`."""
        for nodes in self._sums.values():
            for values in nodes.values():
                self._forget(values)
        if (self.cut, self._dtype) != (cut, dtype):
            self.cut, self._dtype, self._free = cut, dtype, []
        self._sums, self._tops = {}, set(tops)

    def add(self, bucket: Bucket) -> None:
        """Add a bucket, whose values may change afterwards.

        Raises
        ------
        ReductionError
            It is no part of the gradient, or of no node.
        """
        values, place = bucket.values, self.cut.place(bucket.offset)
        if bucket.offset not in self.cut.offsets or len(values) != place.stop - place.start:
            raise ReductionError(
                f"Buckets must be those of {self.cut}, however {len(values)} begin at {bucket.offset}; report this"
            )
        if values.dtype != self._dtype:
            raise ReductionError(f"Buckets must be {self._dtype}, however one is {values.dtype}; report this")
        self.put(bucket.offset, (bucket.start, bucket.stop), values)

    def put(self, offset: int, node: Node, values: Vector | None) -> None:
        """Take a part of the sum of a node, None if it is that of nothing, and go up while the sibling is here."""
        above = siblings(*node, self._shards)
        nodes = self._sums.setdefault(offset, {})
        if any(holds(other, node) for other in nodes):
            return
        for inner in [other for other in nodes if holds(node, other)]:
            self._forget(nodes.pop(inner))
        ours = False
        for sibling, parent in above:
            if sibling not in nodes:
                break
            other = nodes.pop(sibling)
            if values is None:
                values, ours = other, True
            elif other is not None:
                added = self._plus(other, values)
                if ours:
                    self._forget(values)
                values, ours = added, True
            node = parent
        if node in self._tops:
            self._done(offset, node, values)
            if ours:
                self._forget(values)
            nodes[node] = None
        else:
            nodes[node] = values if values is None or ours else self._copied(values)

    def rest(self) -> Iterator[tuple[int, Node, Vector]]:
        """Yield what waits for a sibling: the first number of a part, its node and its values."""
        for offset, nodes in self._sums.items():
            yield from ((offset, node, values) for node, values in nodes.items() if values is not None)

    @staticmethod
    def _plus(ours: Vector, other: Vector) -> Vector:
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused once, at the root
            added: Vector = np.add(ours, other, out=ours)
        return added

    def _copied(self, values: Vector) -> Vector:
        memory = self._memory()
        memory[: len(values)] = values
        return memory[: len(values)]

    def _memory(self) -> Vector:
        with suppress(IndexError):  # rather than look first, since another thread may take the last
            return self._free.pop()
        return np.empty(self.cut.bucket, dtype=self._dtype)

    def _forget(self, values: Vector | None) -> None:
        """Use memory of ours again."""
        if values is not None and values.base is not None:
            self._free.append(values.base)


class Incoming(Rising):
    """On the driver: what has come of a round's gradient, which rises to the sum over all shards.

    Parameters
    ----------
    shards
        Leaves of the tree.
    """

    def __init__(self, shards: int) -> None:
        super().__init__(shards, self._arrive)
        self._total: Vector = np.empty(0, dtype=np.float32)
        self._finite = True

    def begin(self, like: Vector, bucket: int) -> None:
        """Begin with a round, whose gradient has the shape and dtype of `like` and buckets of so many numbers."""
        if (self._total.shape, self._total.dtype) != (like.shape, like.dtype):
            self._total = np.empty_like(like)
        self._finite = True
        self.start(Cut(len(like), bucket), like.dtype, [(0, self._shards)])

    def complete(self, partials: Sequence[Partial], each: Each = map) -> Vector:
        """Add the vectors of those partials that came in one piece; return the sum over all shards.

        Raises
        ------
        ReductionError
            A part is missing.
        NonFinite
            The sum holds NaN or infinity.
        """

        def finish(offset: int) -> None:
            for sent in partials:
                node = sent.start, sent.stop
                if sent.vector is not None:
                    self.put(offset, node, sent.vector[self.cut.place(offset)])
                elif sent.sums is None:  # without: it came in buckets
                    self.put(offset, node, None)
            if (0, self._shards) not in self._sums[offset]:
                raise ReductionError(f"All of a gradient must come, however not all at {offset} did; report this")

        for offset in self.cut.offsets:
            self._sums.setdefault(offset, {})
        for _ in each(finish, self.cut.offsets):
            pass
        if not self._finite:
            raise NonFinite(NOT_FINITE)
        return self._total

    def _arrive(self, offset: int, node: Node, values: Vector | None) -> None:
        """Have the sum over all shards lie where it belongs."""
        place = self._total[self.cut.place(offset)]
        place[:] = 0 if values is None else values
        if not is_finite(place):  # never the other way round: another thread may have found that
            self._finite = False
