"""A wire whose workers do what a test says, and a coordinator on it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np

from dasktrain import cut
from dasktrain.coordinator import Coordinator
from dasktrain.events import Answered, Event, Failed, Joined, Ready, Received, Refused
from dasktrain.fleet import Fleet
from dasktrain.messages import Answer, Bucket, Failure, Partial, State, Task
from dasktrain.reduce import subtrees
from dasktrain.topology import Reduction
from tests.chaos_wire import Agenda, Clock

SHARDS = 4
STATE = State(np.zeros(2, np.float32), np.zeros(0, np.uint8))
#: seconds an answer takes, or what is raised instead, at once
Takes = float | Failure


class Scripted:
    """Workers that do what a test says, in time that passes only while somebody waits.

    Parameters
    ----------
    workers
        One letter each.
    ready
        Worker -> seconds until it is ready, or why it cannot be used; 0 if it is not named.
    takes
        Worker -> what becomes of each task it is asked for; those beyond take 0.1 s.
    odd
        Worker -> what of its answers has other bits: "vector" or "sums".
    parts
        Workers whose gradients come in buckets.
    """

    run, threads = "r", 1

    def __init__(
        self,
        workers: str = "ab",
        ready: dict[str, float | str] | None = None,
        takes: dict[str, list[Takes]] | None = None,
        odd: dict[str, str] | None = None,
        parts: str = "",
    ) -> None:
        self.clock = Clock()
        self.agenda = Agenda(self.clock)
        self.workers, self.ready, self.takes, self.odd = workers, ready or {}, takes or {}, odd or {}
        self.parts = parts
        self.leased: dict[str, Task] = {}
        self.released: list[str] = []
        self.sent: list[tuple[float, str, tuple[int, int]]] = []
        self.asked: list[Task] = []
        self.waits: list[float] = []

    def attach(self, replica: bytes) -> None:
        for worker in self.workers:
            self.agenda.add(0.0, Joined(worker))

    def choose(self, reduction: Reduction, state: State, shards: int) -> None:
        pass

    bucket = cut.SIZE

    def chosen(self) -> str:
        return ""

    def lease(self, worker: str, task: Task) -> None:
        self.leased[worker] = task
        ready = self.ready.get(worker, 0.0)
        if isinstance(ready, str):
            self.agenda.add(0.0, Refused(worker, ready))
        elif ready < inf:
            self.agenda.add(ready, Ready(worker, {"canary": "here"}))

    def release(self, worker: str) -> None:
        self.released.append(worker)

    @contextmanager
    def round(self, state: State) -> Iterator[None]:
        yield

    def send(self, worker: str, task: Task) -> None:
        self.sent.append((round(self.clock.now, 6), worker, (task.start, task.stop)))
        self.asked.append(task)
        script = self.takes.get(worker, [])
        takes = script.pop(0) if script else 0.1
        if isinstance(takes, Failure):
            self.agenda.add(0.0, Failed(worker, takes))
        elif takes < inf:
            answer = self.answer(worker, task)
            if worker in self.parts:
                for partial in answer.partials:
                    assert partial.vector is not None
                    bucket = Bucket(task, partial.start, partial.stop, 0, partial.vector)
                    self.agenda.add(takes, Received(worker, bucket))
                answer = replace(answer, partials=tuple(replace(each, vector=None) for each in answer.partials))
            self.agenda.add(takes, Answered(worker, answer))

    def answer(self, worker: str, task: Task) -> Answer:
        odd = self.odd.get(worker)
        vector, sums = 1 + (odd == "vector") / 1024, 1 + (odd == "sums") / 1024
        partials = [
            Partial(start, stop, np.full(2, vector * (stop - start), np.float32), np.full(3, sums * (stop - start)))
            for start, stop in subtrees(task.start, task.stop, SHARDS)
        ]
        return Answer(task, tuple(partials), 0.1)

    def events(self, timeout: float) -> list[Event]:
        self.waits.append(timeout)
        news = list(self.agenda.due())
        if not news and timeout > 0:
            self.agenda.wait(timeout)
            news = list(self.agenda.due())
        return news


class Running:
    """A coordinator on a scripted wire, and what it told."""

    def __init__(self, wire: Scripted, **settings: Any) -> None:
        self.wire, self.told, self.stop = wire, list[str](), threading.Event()
        self.fleet = Fleet(SHARDS, **settings)
        self.coordinator = Coordinator(wire, self.fleet, self.told.append, self.stop)  # type: ignore[arg-type]

    def attach(self, epoch: int = 0, round: int = 0) -> "Running":
        with self.wire.clock.ticking():
            self.coordinator.attach(b"", epoch, round)
        return self

    def ask(self, round: int = 0, kind: Any = "train") -> Partial:
        with self.wire.clock.ticking():
            return self.coordinator.ask(kind, 0, round, 0, 1, STATE)
