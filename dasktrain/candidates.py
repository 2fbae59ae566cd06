"""Several models trained in step on the same data: on a worker a replica of each, and one message for all of them.

What is a candidate's lies side by side with that of the others. Parameters begin at multiples of a page, as they would
alone: kernels may take another path, and give other bits, in memory that begins elsewhere.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from time import perf_counter
from typing import Any

import numpy as np
import torch

from dasktrain.data.block import Batch
from dasktrain.domain import digest_of_bits
from dasktrain.errors import NonFinite
from dasktrain.events import Domain
from dasktrain.job import Job
from dasktrain.messages import Answer, Bucket, Failure, Kind, Partial, State, Task, Vector
from dasktrain.plan import Rows
from dasktrain.reduce import subtrees
from dasktrain.replica import ReadBlocks, Replica
from dasktrain.shipping import failure_of
from dasktrain.vector import Memory, plain_memory

PAGE = 4096
#: what a candidate is in a round: not there any more, not asked, asked
GONE, IDLE, ASKED = range(3)
#: the one number that leaves all others as they are when it is added: 0.0 would make +0.0 of -0.0
NOTHING = -0.0


@dataclass(frozen=True)
class Size:
    """How much of everything a candidate has: numbers of parameters and sums, bytes of buffers."""

    parameters: int
    buffers: int
    sums: int


class Places:
    """Where everything of each candidate lies, among those that are there.

    Parameters
    ----------
    sizes
        Of all candidates.
    there
        For each whether it is.
    itemsize
        Bytes of a parameter.

    Attributes
    ----------
    parameters, buffers, sums : mapping
        Candidate -> its slice. Before all buffers there is a byte a candidate, what it is in the round; before all
        sums a number a candidate, above 0 if it failed.
    totals : Size
        Of all that are there.
    """

    def __init__(self, sizes: Sequence[Size], there: Sequence[bool], itemsize: int) -> None:
        known = {number: size for number, size in enumerate(sizes) if there[number]}
        page = PAGE // itemsize
        self.parameters, parameters = _slices({n: size.parameters for n, size in known.items()}, 0, page)
        self.buffers, buffers = _slices({n: size.buffers for n, size in known.items()}, len(sizes), 1)
        self.sums, sums = _slices({n: size.sums for n, size in known.items()}, len(sizes), 1)
        self.totals = Size(parameters, buffers, sums)


def _slices(sizes: Mapping[int, int], start: int, step: int) -> tuple[dict[int, slice], int]:
    """Return where each lies, behind one another, at multiples of `step`; and where the last of them ends."""
    starts = list(accumulate((math.ceil(size / step) * step for size in sizes.values()), initial=start))
    places = zip(sizes.items(), starts, strict=False)
    return {number: slice(first, first + size) for (number, size), first in places}, starts[-1]


class Candidates:
    """The replicas of all candidates; answers for those that are asked.

    Parameters
    ----------
    jobs
        What to compute. Those with one and the same plan share what is gathered.
    read, memory
        As a :class:`dasktrain.replica.Replica` takes them.
    send
        Not used: what belongs to several is put together first.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        read: ReadBlocks,
        memory: Memory = plain_memory,
        send: Callable[[Bucket], None] | None = None,
    ) -> None:
        gathered: dict[int, _Gathered] = {}
        self._replicas = [_Sharing(job, read, gathered.setdefault(id(job.plans["train"]), {})) for job in jobs]
        self._gathered = list(gathered.values())
        self._sizes = [replica.size for replica in self._replicas]
        self._memory = memory
        self._vectors: list[Vector] = []  # that answers lie in
        self._lent = 0
        self._latest: tuple[Kind, int, int, int] | None = None  # the round they are lent to
        self._there: tuple[bool, ...] = ()
        self._asked = list(range(len(jobs)))

    def __call__(self, task: Task, state: State) -> Answer | Failure:
        """Answer a task for all that are asked."""
        started = perf_counter()
        try:
            with self._replicas[0].pinned():
                partials = self._partials(task, state)
            waited = sum(replica.waited for replica in self._replicas)
            return Answer(task, partials, perf_counter() - started, waited)
        except Exception as raised:
            return failure_of(raised, task)

    @property
    def stream(self) -> None:
        """Nothing: gradients of several are not sent in buckets."""

    def recut(self, bucket: int) -> None:
        """Return nothing."""

    def ahead(self, task: Task) -> None:
        """Gather the rows of the training round after `task`."""
        for gathered in self._gathered:
            gathered.clear()
        for number in self._asked:
            self._replicas[number].ahead(task)

    def forget(self, task: Task) -> None:
        """Nothing is kept."""

    def stage(self, task: Task) -> None:
        """Gather the rows of a training round before it is asked for."""
        for replica in self._replicas:
            replica.stage(task)

    def domain(self) -> Domain:
        """Compute a gradient of every module, on numbers that are the same everywhere."""
        domains = [replica.domain() for replica in self._replicas]
        bits = [torch.frombuffer(bytearray(str(domain["canary"]).encode()), dtype=torch.uint8) for domain in domains]
        return {**domains[0], "canary": digest_of_bits(bits)}

    def _partials(self, task: Task, state: State) -> tuple[Partial, ...]:
        roles = state.buffers[: len(self._replicas)]
        self._place(tuple(bool(role) for role in roles != GONE), state.parameters.itemsize)
        if self._latest != (latest := (task.kind, task.epoch, task.round, task.turn)):
            self._latest, self._lent = latest, 0
        self._asked = [int(number) for number in np.flatnonzero(roles == ASKED)]
        found: dict[int, tuple[Partial, ...]] = {}
        for number in self._asked:
            parameters = state.parameters[self._places.parameters[number]]
            buffers = state.buffers[self._places.buffers[number]]
            try:
                found[number] = self._replicas[number].answer(task, State(parameters, buffers))
            except NonFinite:
                found[number] = ()
        nodes = subtrees(task.start, task.stop, self._replicas[0].job.plans[task.kind].shards)
        return tuple(
            self._together(*node, {number: partials[place] if partials else None for number, partials in found.items()})
            for place, node in enumerate(nodes)
        )

    def _place(self, there: tuple[bool, ...], itemsize: int) -> None:
        """Settle what lies where, which changes only when candidates go."""
        if there != self._there:
            self._there, self._places = there, Places(self._sizes, there, itemsize)
            self._vectors, self._lent = [], 0

    def _together(self, start: int, stop: int, found: Mapping[int, Partial | None]) -> Partial:
        """Put the sums of one node side by side; None for those that failed."""
        partials = {number: partial for number, partial in found.items() if partial is not None}
        if len(partials) == len(found) and all(partial.sums is None for partial in partials.values()):
            return Partial(start, stop, None, None)
        sums = np.full(self._places.totals.sums, NOTHING)
        for number in found.keys() - partials.keys():
            sums[number] = 1.0
        vector = None
        for number, partial in partials.items():
            if partial.sums is not None:
                sums[self._places.sums[number]] = partial.sums
            if partial.vector is not None:
                vector = self._vector(partial.vector.dtype) if vector is None else vector
                vector[self._places.parameters[number]] = partial.vector
        return Partial(start, stop, vector, sums)

    def _vector(self, dtype: np.dtype[Any]) -> Vector:
        """Return memory for the gradients of all, which is none of any."""
        if self._lent == len(self._vectors):
            size = self._places.totals.parameters
            self._vectors.append(np.frombuffer(self._memory(size * dtype.itemsize), dtype=dtype, count=size))
        self._lent += 1
        vector = self._vectors[self._lent - 1]
        vector.fill(NOTHING)
        return vector


#: (epoch, round, shard) of the training data -> its rows and what they hold
_Gathered = dict[tuple[int, int, int], tuple[Rows, Batch | None]]


class _Sharing(Replica):
    """A replica that gathers what no other with the same plan has."""

    def __init__(self, job: Job, read: ReadBlocks, gathered: _Gathered) -> None:
        super().__init__(job, read)
        self._others = gathered

    @property
    def size(self) -> Size:
        """How much of everything it has."""
        return Size(self._parameters.layout.size, self._buffers.vector.nbytes, self.sums.layout.size)

    def _gathered(self, kind: Kind, epoch: int, round: int, shard: int) -> tuple[Rows, Batch | None]:
        if kind != "train":
            return super()._gathered(kind, epoch, round, shard)
        place = epoch, round, shard
        if place not in self._others:
            self._others[place] = super()._gathered(kind, *place)
        return self._others[place]
