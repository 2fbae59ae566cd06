"""The whole cluster in this process: for tests, for a first try, and for data that fits."""

from collections.abc import Mapping, Sequence
from typing import Any

import dask
from dask.delayed import Delayed

from dasktrain.errors import BadInput
from dasktrain.fleet import Event, Joined
from dasktrain.messages import Answer, Failure, Kind, State, Task
from dasktrain.shipping import run_packed
from dasktrain.wire import Respond, failed


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
        self._replicas: dict[str, Respond] = {}
        self._events: list[Event] = []

    def open(self) -> None:
        """Nothing to check: the workers are here."""

    def compute(self, tasks: Sequence[Delayed]) -> list[Any]:
        """Run tasks one after another in this thread."""
        return list(dask.compute(*tasks, scheduler="synchronous"))

    def place(self, kind: Kind, tasks: Sequence[Delayed], owners: Sequence[str]) -> None:
        """Keep all partitions in this process; owners do not matter."""
        self._blocks[kind] = self.compute(tasks)

    def attach(self, replica: bytes) -> None:
        """Build one replica a worker."""
        for worker in self.workers:
            self._replicas[worker] = run_packed(replica, self._read)
            self._events.append(Joined(worker))

    def _read(self, kind: Kind, partition: int) -> Any:
        return self._blocks[kind][partition]

    def ask(self, tasks: Mapping[str, Task], state: State) -> list[Answer]:
        """Ask one replica after another."""
        answers = []
        for worker, task in tasks.items():
            reply = self._replicas[worker](task, state)
            if isinstance(reply, Failure):
                raise failed(reply, worker)
            answers.append(reply)
        return answers

    def changes(self) -> list[Event]:
        """Return who joined; nobody leaves."""
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Forget replicas and partitions."""
        self._replicas, self._blocks, self._events = {}, {}, []
