"""The module on a worker: parameters and rows in, partial sums out. A pure function of its task."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dasktrain.accumulate import Accumulator, Sum
from dasktrain.blame import check_gradient, check_scalars
from dasktrain.buckets import Outgoing
from dasktrain.buffers import FlatBuffers
from dasktrain.compute import Device
from dasktrain.data.block import Batch, Block, gather, lengths
from dasktrain.data.synthesis import Synthesiser
from dasktrain.domain import canary, digest_of_bits, make_up
from dasktrain.errors import DataError
from dasktrain.events import Domain
from dasktrain.inner import Walk
from dasktrain.job import Job
from dasktrain.messages import Answer, Bucket, Failure, Kind, Partial, State, Stream, Task, Vector
from dasktrain.objective import Objective, detached
from dasktrain.packer import Packer
from dasktrain.plan import Rows, shard_seed
from dasktrain.reduce import fold, spine, subtrees
from dasktrain.shipping import failure_of
from dasktrain.sparse import split
from dasktrain.strategies import Sums, contributed
from dasktrain.touched import Touched, plus_each
from dasktrain.vector import FlatParameters, Memory, as_tensor, plain_memory

#: (data set, partition number) -> block; what a lease must provide
ReadBlocks = Callable[[Kind, int], Block]
#: returns what adds gradients to a sum while they are computed
Watching = Callable[[Sum | None], AbstractContextManager[None]]


class Replica:
    """One module and the memory it sums in.

    Parameters
    ----------
    job
        What to compute.
    read
        ``read(kind, partition)`` returns a block.
    memory
        Where answers lie.
    send
        Takes parts of gradients as soon as they are known, which then are not in the answer; None: send all at once.
    """

    def __init__(
        self,
        job: Job,
        read: ReadBlocks,
        memory: Memory = plain_memory,
        send: Callable[[Bucket], None] | None = None,
    ) -> None:
        self.job = job
        self._read_block = read
        self._device = Device(job.compute.device)
        self._module = self._device.takes(job.module)
        if job.compute.compile:
            self._module.compile(dynamic=True)  # rounds differ in their rows
        self._objectives = [
            Objective(self._device.takes(loss) if isinstance(loss, nn.Module) else loss)
            for loss in job.players.losses.values()
        ]
        self._mine = job.players.parameters(self._module)
        self._parameters = FlatParameters(self._module)
        self._buffers = FlatBuffers(self._module)
        self._trainable = list(self._parameters.parameters.values())
        self.sums = Sums(job.metrics, len(self._trainable), self._buffers.layout.size, job.players.figures)
        self._accumulator = Accumulator(self._parameters.gradient, self._parameters.vector, memory)
        self._outgoing = self._sending(send) if send is not None else None
        self._inner = None
        if job.inner is not None:
            rounds = job.plans["train"].rounds
            self._inner = Walk(job.inner, self._module, self._parameters, rounds, self.sums.layout, self._accumulator)
        self._packer = None
        if (stretches := job.stretches(self._parameters.gradient)) is not None:
            self._packer = Packer(stretches, self._parameters.gradient, self.sums.layout, job.plans["train"])
        self._synthesiser = None
        if job.synthesis is not None:
            self._synthesiser = Synthesiser(job.synthesis, job.plans["train"], job.collate)
        self._mode: Kind | None = None
        #: seconds of the task under way in which data were gathered
        self.waited = 0.0
        self._latest: tuple[Kind, int, int, int] | None = None  # the round that the accumulator's memory is lent to
        self._answered: Task | None = None  # the latest
        #: (epoch, round, shard) -> its rows and their batch, gathered before they are asked for
        self._ahead: dict[tuple[int, int, int], tuple[Rows, Batch | None]] = {}

    def __call__(self, task: Task, state: State) -> Answer | Failure:
        """Answer a task; whatever the user's code raises comes back as a Failure."""
        started = perf_counter()
        try:
            with self.pinned():
                partials = self.answer(task, state)
            return Answer(task, partials, perf_counter() - started, self.waited)
        except Exception as raised:
            return failure_of(raised, task)

    def pinned(self) -> AbstractContextManager[None]:
        """Compute in a way that gives the same bits again."""
        return self._device.pinned(self.job.threads)

    def _sending(self, send: Callable[[Bucket], None]) -> Outgoing | None:
        """Return what sends gradients in buckets, if there can be several."""
        layout = self._parameters.gradient
        outgoing = Outgoing(self._trainable[: len(layout.shapes)], layout, self.job.bucket, self._accumulator, send)
        return outgoing if outgoing.worthwhile and self.job.compression is None else None

    @property
    def stream(self) -> Stream | None:
        """What gradients are like, if they are sent in buckets."""
        if self._outgoing is None:
            return None
        dtype = str(self._parameters.vector.dtype).removeprefix("torch.")
        return Stream(self.job.plans["train"].shards, self._outgoing.cut, dtype)

    def recut(self, bucket: int) -> Stream | None:
        """Have buckets of so many numbers, if gradients are sent in any; return what gradients are like then."""
        if self._outgoing is not None:
            self._outgoing.recut(bucket)
        return self.stream

    def ahead(self, task: Task) -> None:
        """Gather the rows of the training round after `task`, as if the same shards will be asked for."""
        if task.kind == "train" and self.job.players.is_last(task.turn):
            rounds = self.job.plans["train"].rounds
            epoch, round = divmod(task.epoch * rounds + task.round + task.rounds, rounds)
            self.stage(replace(task, epoch=epoch, round=round, turn=0))

    def stage(self, task: Task) -> None:
        """Gather the rows of a training round before it is asked for."""
        self._ahead.clear()  # of what has been asked for nothing is left
        with suppress(Exception):  # what is wrong is told by the round that needs it
            for shard in range(task.start, task.stop):
                place = task.epoch, task.round, shard
                self._ahead[place] = self._gathered("train", *place)

    def forget(self, task: Task) -> None:
        """Keep nothing of a task that was answered while its parameters changed."""
        if self._packer is not None:
            self._packer.forget(task)

    def domain(self) -> Domain:
        """Compute a gradient of the user's module, and a little more, on numbers that are the same everywhere.

        Workers whose digests are equal give equal bits, as far as these computations show it.
        """
        with self._device.pinned(self.job.threads):
            found = canary(self._device.place)
            with suppress(Exception):  # what the module raises is told by the round that calls it
                found += self._trial()
            return {**self._device.facts(), "canary": digest_of_bits(found)}

    def _trial(self) -> list[Tensor]:
        """Return the loss and gradients of made-up rows."""
        self._device.seed(self.job.seed)
        self._buffers.load()  # copies, which may be written to
        make_up([*self._trainable, *self._module.buffers()])
        self._set_mode("train")
        sample = self._device.batch(self.job.sample)
        found: list[Tensor] = []
        for player, objective in enumerate(self._objectives):
            loss, _ = objective(self._call(sample), sample)
            gradients, touched = self._divided(
                contributed(self.job.strategy, loss, self._trainable, self._mine[player])
            )
            rows = (as_tensor(part) for each in touched for part in (each.rows, each.values))
            found += [loss, *(gradient for gradient in gradients if gradient is not None), *rows]
        if self._packer is not None:
            found.append(self._packer.trial())
        return found

    def _divided(self, gradients: list[Tensor | None]) -> tuple[list[Tensor | None], tuple[Touched, ...]]:
        """Return the gradients of parameters, and the rows of tables."""
        return split(gradients, self._parameters.tables, self._parameters.vector.dtype)

    def _read(self, kind: Kind, partition: int) -> Block:
        """Read a partition and see that it is the one the run began with."""
        block, wanted = self._read_block(kind, partition), self.job.fingerprints[kind][partition]
        if block.fingerprint != wanted:
            raise DataError(
                f"A partition that is computed again must be the same again, however partition {partition} of the "
                f"{kind} data now has fingerprint {block.fingerprint[:16]} and had {wanted[:16]}; make what it is read "
                "from reproducible, or persist the data"
            )
        return block

    def _gathered(self, kind: Kind, epoch: int, round: int, shard: int) -> tuple[Rows, Batch | None]:
        """Return a shard's rows and, if there are any, what they hold."""

        def read(partition: int) -> Block:
            return self._read(kind, partition)

        pieces = self.job.plans[kind].pieces(epoch, round, shard, lambda rows: lengths(read, rows))
        rows = Rows.joined([piece.rows.at(piece.read) for piece in pieces])
        if not len(rows):
            return rows, None
        batch = gather(read, rows, self.job.collate)
        if self._synthesiser is not None and kind == "train":
            batch = self._synthesiser(batch, read, epoch, shard, pieces)
        return rows, self._device.batch(batch)

    def _waited_for(self, kind: Kind, epoch: int, round: int, shard: int) -> tuple[Rows, Batch | None]:
        """Gather what is needed now."""
        started = perf_counter()
        try:
            return self._gathered(kind, epoch, round, shard)
        finally:
            self.waited += perf_counter() - started

    def answer(self, task: Task, state: State) -> tuple[Partial, ...]:
        """Return the sums of a task's nodes, none if what its shards kept is not here; call it pinned."""
        self.waited = 0.0
        if self._latest != (latest := (task.kind, task.epoch, task.round, task.turn)):
            self._latest = latest
            self._accumulator.reclaim()  # of an earlier round nobody needs the answers
        self._take(state.parameters)
        self._device.fill(self._buffers.vector, as_tensor(state.buffers))
        self._set_mode(task.kind)
        if task == self._answered and task.kind == "train":  # a sum was not finite: whose?
            for shard in range(task.start, task.stop):
                self._leaf(task, shard, suspicious=True)
        self._answered = task
        if task.kind == "train" and self._packer is not None:
            known = self._packer.begin(task)
            return tuple(self._packed(task, *place) for place in self._packer.nodes(task)) if known else ()
        node = self._in_buckets if task.kind == "train" and self._outgoing is not None else self._at_once
        return tuple(node(task, *place) for place in subtrees(task.start, task.stop, self.job.plans[task.kind].shards))

    def _at_once(self, task: Task, start: int, stop: int) -> Partial:
        """Sum a node of the tree."""
        contribute = self._train if task.kind == "train" else self._evaluate
        node = fold(start, stop, partial(contribute, task), self._accumulator.add)
        if node is None:
            return Partial(start, stop, None, None)
        vector = self._accumulator.flat(node)
        return Partial(start, stop, None if vector is None else vector.numpy(), node.scalars, node.touched)

    def _packed(self, task: Task, start: int, stop: int) -> Partial:
        """Sum a node of the tree in a form that takes fewer bytes."""
        packer = self._packer
        assert packer is not None

        def leaf(shard: int, into: Sum | None) -> Sum | None:
            gradient = self._leaf(task, shard)
            found = packer.leaf(shard, gradient)
            if gradient is not None:
                self._accumulator.free(gradient)  # a copy is sent
            return packer.add(into, found) if into is not None and found is not None else into or found

        return packer.partial(start, stop, fold(start, stop, leaf, packer.add))

    def _in_buckets(self, task: Task, start: int, stop: int) -> Partial:
        """Sum a node of the tree, and send its gradient, meanwhile if it can; tables' rows come with the answer."""
        assert self._outgoing is not None
        if self._device.is_gpu or not self.job.strategy.is_gradient:
            return self._outgoing.sent(task, self._at_once(task, start, stop))
        found = [fold(*left, partial(self._train, task), self._accumulator.add) for left in spine(start, stop)]
        lefts = [left for left in found if left is not None]
        self._outgoing.begin(task, (start, stop), lefts)
        last = self._leaf(task, stop - 1, self._outgoing.watching)
        touched = () if last is None else last.touched
        for left in reversed(lefts):
            touched = plus_each(left.touched, touched)
        return Partial(start, stop, None, self._outgoing.end(None if last is None else last.scalars), touched)

    def _set_mode(self, kind: Kind) -> None:
        """Switch layers between training and evaluation, if they are not there already."""
        if kind != self._mode:
            self._module.train(kind == "train")
            self._mode = kind

    def _take(self, parameters: Vector) -> None:
        """Compute with these from now on: on the CPU where they lie."""
        if self._device.is_gpu:
            self._device.fill(self._parameters.vector, as_tensor(parameters))
            self._parameters.load()
        else:
            self._parameters.adopt(as_tensor(parameters))

    # -- leaves -------------------------------------------------------------------------------------------

    def _train(self, task: Task, shard: int, into: Sum | None) -> Sum | None:
        """Add what one shard contributes to `into`."""
        found = self._leaf(task, shard)
        return into if found is None else self._accumulator.plus(into, found)

    def _leaf(self, task: Task, shard: int, watching: Watching | None = None, suspicious: bool = False) -> Sum | None:
        """Return what one shard contributes, or only its scalars if somebody watches the gradient being computed."""
        self._buffers.load()  # every shard starts from the round's buffers
        if self._inner is None:
            total = self._shard(task, shard, watching, suspicious)
        else:
            total = self._inner.over(task, lambda each: self._shard(each, shard, suspicious=suspicious))
        if total is not None and self._buffers.layout.size:
            changes = torch.from_numpy(total.scalars[self.sums.layout.places["buffers"]])
            self._buffers.changes(changes, int(total.scalars[self.sums.layout.places["rows"]].item()))
        return total

    def _shard(self, task: Task, shard: int, watching: Watching | None = None, suspicious: bool = False) -> Sum | None:
        """Return one shard's gradient, or only its scalars if somebody watches the gradient being computed."""
        rows, batch = self._at_hand(task, shard)
        if batch is None:
            return None
        turns = len(self.job.players.turns)
        self._device.seed(shard_seed(self.job.seed, task.epoch, task.round * turns + task.turn, shard))
        total: Sum | None = None
        *firsts, last = self.job.compute.pieces(batch)
        for piece in firsts:
            total = self._accumulator.plus(total, self._gradients(piece, task.turn))
        if watching is None:
            total = self._accumulator.plus(total, self._gradients(last, task.turn))
        else:
            with watching(total):
                found = self._gradients(last, task.turn)
            before = None if total is None else Sum(None, total.scalars, total.touched)
            total = self._accumulator.plus(before, Sum(None, found.scalars, found.touched))
        where = f"epoch {task.epoch}, round {task.round}, shard {shard}"
        check_scalars(self.sums, total.scalars, where, rows)
        if suspicious:
            check_gradient(total, where, rows)
        return total

    def _at_hand(self, task: Task, shard: int) -> tuple[Rows, Batch | None]:
        """Return a shard's rows, which all turns of a round share."""
        place = task.epoch, task.round, shard
        found = self._ahead.pop(place) if place in self._ahead else self._waited_for("train", *place)
        if not self.job.players.is_last(task.turn):
            self._ahead[place] = found
        return found

    def _gradients(self, batch: Batch, turn: int) -> Sum:
        """Return the gradient of the sum of losses for each parameter of whose turn it is, and the sums over rows."""
        output = self._call(batch)
        player = self.job.players.number(turn)
        loss, weight = self._objectives[player](output, batch)
        scalars = self._scalars(output, batch, {player: (loss, weight)}, self.job.players.is_last(turn))
        gradients = contributed(self.job.strategy, loss, self._trainable, self._mine[player])
        scalars[self.sums.layout.places["used"]] = [gradient is not None for gradient in gradients]
        dense, touched = self._divided(gradients)
        return Sum(dense, scalars, touched)

    def _call(self, batch: Batch) -> Any:
        return self.job.compute.call(self._module, batch, self._device.place)

    def _evaluate(self, task: Task, shard: int, into: Sum | None) -> Sum | None:
        """Add the sums of one shard's rows, a round's worth at a time, to `into`."""
        plan = self.job.plans["evaluate"]
        self._buffers.load()
        total: np.ndarray | None = None
        with torch.no_grad():
            for round in range(plan.rounds):
                rows, batch = self._waited_for("evaluate", 0, round, shard)
                if batch is None:
                    continue
                output = self._call(batch)
                losses = {player: objective(output, batch) for player, objective in enumerate(self._objectives)}
                scalars = self._scalars(output, batch, losses, measured=True)
                check_scalars(self.sums, scalars, f"validation after epoch {task.epoch}, shard {shard}", rows)
                total = scalars if total is None else total + scalars
        if total is None:
            return into
        return self._accumulator.leaf(None, total, into)

    def _scalars(
        self, output: Any, batch: Batch, losses: Mapping[int, tuple[Tensor, Tensor]], measured: bool
    ) -> np.ndarray:
        """Return the sums of some players' losses and, if they are `measured`, of metrics."""
        scalars = np.zeros(self.sums.layout.size, dtype=np.float64)
        places, players = self.sums.layout.places, len(self._objectives)
        for player, (loss, weight) in losses.items():
            scalars[player], scalars[players + player] = float(loss.detach()), float(weight)
        scalars[places["rows"]] = batch.rows
        if measured and self.job.metrics:
            with torch.no_grad():
                found = [metric.sums(detached(output), batch) for metric in self.job.metrics.values()]
            scalars[places["metrics"]] = np.concatenate(found)
        return scalars
