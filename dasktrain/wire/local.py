"""The whole cluster in this process: for tests, for a first try, and for data that fits."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import dask
import numpy as np
from dask.delayed import Delayed

from dasktrain import cut
from dasktrain.errors import BadInput
from dasktrain.events import Answered, Event, Failed, Joined, Ready, Received
from dasktrain.messages import Bucket, Failure, Kind, State, Task
from dasktrain.shipping import run_packed
from dasktrain.topology import Reduction
from dasktrain.vector import plain_memory
from dasktrain.wire import Respond


class LocalWire:
    """Workers that are replicas in this process, asked in turn.

    Gives the same bits as any Dask cluster whose workers use as many threads.

    Parameters
    ----------
    workers
        How many.
    threads
        torch threads of each.
    """

    def __init__(self, workers: int = 1, threads: int = 1) -> None:
        if workers < 1 or threads < 1:
            raise BadInput(f"workers and threads must be at least 1, however they are {workers} and {threads}")
        self.workers: Sequence[str] = [f"local-{number:03d}" for number in range(workers)]
        self.threads = threads
        self.run = "local"
        self._blocks: dict[Kind, list[Any]] = {}
        self._replica = b""
        self._replicas: dict[str, Respond] = {}
        self._state: State | None = None
        self._states: dict[str, State] = {}
        self._events: deque[Event] = deque()

    def open(self) -> None:
        """Nothing to check: the workers are here."""

    def memory(self, size: int) -> Any:
        """Return memory like any other."""
        return plain_memory(size)

    def persist(self, tasks: Sequence[Delayed]) -> list[Delayed]:
        """Run tasks one after another in this thread, and keep the results."""
        return list(dask.persist(*tasks, scheduler="synchronous"))

    def compute(self, tasks: Sequence[Delayed]) -> list[Any]:
        """Run tasks one after another in this thread."""
        return list(dask.compute(*tasks, scheduler="synchronous"))

    def place(self, kind: Kind, tasks: Sequence[Delayed], owners: Sequence[str]) -> list[str]:
        """Keep all partitions in this process; owners do not matter."""
        self._blocks[kind] = self.compute(tasks)
        return [block.fingerprint for block in self._blocks[kind]]

    def attach(self, replica: bytes) -> None:
        """Have every worker join."""
        self._replica = replica
        self._events.extend(Joined(worker) for worker in self.workers)

    def choose(self, reduction: Reduction, state: State, shards: int) -> None:
        """Nothing travels."""

    @property
    def bucket(self) -> int:
        """Numbers of each bucket of a gradient."""
        return cut.SIZE

    def chosen(self) -> str:
        """There is nothing to tell."""
        return ""

    def lease(self, worker: str, task: Task) -> None:
        """Build a worker's replica."""
        send = partial(self._received, worker)
        replica: Respond = run_packed(self._replica, self._read, plain_memory, send)
        self._replicas[worker] = replica
        self._events.append(Ready(worker, replica.domain()))

    def release(self, worker: str) -> None:
        """Forget a worker's replica."""
        self._replicas.pop(worker, None)

    def _received(self, worker: str, bucket: Bucket) -> None:
        """Pass on a part of an answer that is being made; a replica leaves it alone until the next round."""
        self._events.append(Received(worker, bucket))

    def _read(self, kind: Kind, partition: int) -> Any:
        return self._blocks[kind][partition]

    @contextmanager
    def round(self, state: State) -> Iterator[None]:
        """Start from `state`."""
        self._state = state
        yield
        self._state = None

    def send(self, worker: str, task: Task) -> None:
        """Have the worker's replica answer at once."""
        assert self._state is not None
        reply = self._replicas[worker](task, self._copied(worker, self._state))
        self._events.append(Failed(worker, reply) if isinstance(reply, Failure) else Answered(worker, reply))

    def _copied(self, worker: str, state: State) -> State:
        """Return the state in memory of the worker's own, as if it had been sent."""
        copy = self._states.get(worker)
        if copy is None or copy.parameters.shape != state.parameters.shape:
            copy = self._states[worker] = State(np.empty_like(state.parameters), np.empty_like(state.buffers))
        copy.parameters[:] = state.parameters
        copy.buffers[:] = state.buffers
        return copy

    def events(self, timeout: float) -> list[Event]:
        """Return what happened; there is nothing to wait for."""
        events = list(self._events)
        self._events.clear()
        return events

    def close(self) -> None:
        """Forget replicas and partitions."""
        self._replicas, self._blocks, self._states, self._replica = {}, {}, {}, b""
        self._events.clear()
