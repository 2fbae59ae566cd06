"""The module on a worker: parameters and rows in, partial sums out. A pure function of its task."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

from dasktrain.data.block import Batch, Block, gather
from dasktrain.domain import pinned
from dasktrain.errors import DasktrainError, NonFinite
from dasktrain.messages import Answer, Failure, Kind, Partial, State, Task
from dasktrain.objective import Measure, Objective, measure
from dasktrain.plan import Plan, Rows, shard_seed
from dasktrain.reduce import fold, subtrees
from dasktrain.strategies import Strategy, Sums
from dasktrain.vector import FlatBuffers, FlatParameters, as_tensor


@dataclass(frozen=True)
class Job:
    """Everything a replica must know; shipped once, as bytes.

    Attributes
    ----------
    plans : mapping
        ``"train"``, and ``"evaluate"`` if there is validation data.
    threads : int
        torch threads of a replica; another number may give other bits.
    """

    module: nn.Module
    loss: Measure
    metrics: Mapping[str, Measure]
    strategy: Strategy
    plans: Mapping[Kind, Plan]
    seed: int
    threads: int


#: (data set, partition number) -> block; what a lease must provide
ReadBlocks = Callable[[Kind, int], Block]


class Sum:
    """A sum under way: (parameters,) gradient, None without one; (scalars,) float64."""

    __slots__ = ("scalars", "vector")

    def __init__(self, vector: Tensor | None, scalars: np.ndarray) -> None:
        self.vector = vector
        self.scalars = scalars


class Replica:
    """One module and the memory it sums in.

    Parameters
    ----------
    job
        What to compute.
    read
        ``read(kind, partition)`` returns a block.
    """

    def __init__(self, job: Job, read: ReadBlocks) -> None:
        self.job = job
        self._read = read
        self._module = job.module
        self._objective = Objective(job.loss)
        self._parameters = FlatParameters(self._module)
        self._buffers = FlatBuffers(self._module)
        self._trainable = list(self._parameters.parameters.values())
        self.sums = Sums(list(job.metrics), len(self._trainable), self._buffers.layout.size)
        # Vectors to sum in. One that was answered with is free again when the next task arrives: the driver
        # asks only after it has the last answer.
        self._free: list[Tensor] = []
        self._lent: list[Tensor] = []

    def __call__(self, task: Task, state: State) -> Answer | Failure:
        """Answer a task; whatever the user's code raises comes back as a Failure."""
        started = perf_counter()
        try:
            with pinned(self.job.threads):
                partials = self._partials(task, state)
            return Answer(task, partials, perf_counter() - started)
        except Exception as error:
            name = type(error).__name__ if isinstance(error, DasktrainError) else "ReplicaError"
            text = str(error) if isinstance(error, DasktrainError) else f"{type(error).__name__}: {error}"
            return Failure(name, text, traceback.format_exc(), task)

    def _partials(self, task: Task, state: State) -> tuple[Partial, ...]:
        self._free += self._lent
        self._lent = []
        self._parameters.vector.copy_(as_tensor(state.parameters))
        self._parameters.load()
        self._buffers.vector.copy_(as_tensor(state.buffers))
        self._module.train(task.kind == "train")
        contribute = self._train if task.kind == "train" else self._evaluate
        partials = []
        for start, stop in subtrees(task.start, task.stop, self.job.plans[task.kind].shards):
            node = fold(start, stop, lambda shard, into: contribute(task, shard, into), self._add)
            vector = node.vector.numpy() if node is not None and node.vector is not None else None
            if node is not None and node.vector is not None:
                self._lent.append(node.vector)
            partials.append(Partial(start, stop, vector, node.scalars if node is not None else None))
        return tuple(partials)

    # -- leaves -------------------------------------------------------------------------------------------

    def _train(self, task: Task, shard: int, into: Sum | None) -> Sum | None:
        """Add one shard's gradient to `into`."""
        rows = self.job.plans["train"].rows(task.epoch, task.round, shard)
        if not len(rows):
            return into
        batch = gather(lambda partition: self._read("train", partition), rows)
        self._buffers.load()  # every shard starts from the round's buffers
        torch.default_generator.manual_seed(shard_seed(self.job.seed, task.epoch, task.round, shard))
        output = self._module(*batch.inputs)
        loss, weight = self._objective(output, batch.target, batch.weight)
        scalars = self._scalars(output, batch, loss, weight)
        self._check_finite(float(scalars[0]), task, shard, rows)
        gradients = self.job.strategy.contribute(loss, self._trainable)
        view = self.sums.layout.views(scalars)
        view["used"][:] = [gradient is not None for gradient in gradients]
        if self._buffers.layout.size:
            self._take_buffers(view["buffers"], len(batch.target))
        return self._leaf(gradients, scalars, into)

    def _evaluate(self, task: Task, shard: int, into: Sum | None) -> Sum | None:
        """Add the sums of one shard's rows, a round's worth at a time, to `into`."""
        plan = self.job.plans["evaluate"]
        self._buffers.load()
        total: np.ndarray | None = None
        with torch.no_grad():
            for round in range(plan.rounds):
                rows = plan.rows(0, round, shard)
                if not len(rows):
                    continue
                batch = gather(lambda partition: self._read("evaluate", partition), rows)
                output = self._module(*batch.inputs)
                scalars = self._scalars(output, batch, *self._objective(output, batch.target, batch.weight))
                total = scalars if total is None else total + scalars
        if total is None:
            return into
        return Sum(None, total) if into is None else Sum(None, into.scalars + total)

    def _scalars(self, output: Tensor, batch: Batch, loss: Tensor, weight: Tensor) -> np.ndarray:
        scalars = np.zeros(self.sums.layout.size, dtype=np.float64)
        view = self.sums.layout.views(scalars)
        scalars[:3] = float(loss.detach()), float(weight), len(batch.target)
        with torch.no_grad():
            for row, metric in zip(view["metrics"], self.job.metrics.values(), strict=True):
                row[:] = measure(metric, output.detach(), batch.target)
        return scalars

    def _take_buffers(self, out: np.ndarray, rows: int) -> None:
        """Write buffers x rows, so that the sum over shards divided by all rows is their weighted mean."""
        start = 0
        for buffer in self._buffers.buffers.values():
            stop = start + buffer.numel()
            out[start:stop] = buffer.detach().reshape(-1).double().numpy()
            start = stop
        out *= rows

    def _check_finite(self, loss: float, task: Task, shard: int, rows: Rows) -> None:
        if not np.isfinite(loss):
            partitions = ", ".join(map(str, np.unique(rows.partition)))
            raise NonFinite(
                f"A loss must be finite, however it is {loss} in epoch {task.epoch}, round {task.round}, shard "
                f"{shard}, with rows of partition {partitions}; look for extreme values there, or lower the "
                "learning rate"
            )

    # -- sums ---------------------------------------------------------------------------------------------

    def _leaf(self, gradients: list[Tensor | None], scalars: np.ndarray, into: Sum | None) -> Sum:
        vector = self._vector() if into is None or into.vector is None else into.vector
        views = self._parameters.layout.views(vector).values()
        if into is None:
            for view, gradient in zip(views, gradients, strict=True):
                view.zero_() if gradient is None else view.copy_(gradient)
            return Sum(vector, scalars)
        for view, gradient in zip(views, gradients, strict=True):
            view.add_(0.0 if gradient is None else gradient)  # adding 0 matters: -0.0 + 0 is +0.0
        into.scalars += scalars
        return into

    def _add(self, left: Sum, right: Sum) -> Sum:
        left.scalars += right.scalars
        if left.vector is not None and right.vector is not None:
            left.vector.add_(right.vector)
            self._free.append(right.vector)
        return left

    def _vector(self) -> Tensor:
        return self._free.pop() if self._free else torch.empty_like(self._parameters.vector)
