"""A cluster on which everything goes wrong, in this process and in time that passes only while somebody waits."""

import heapq
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from math import ceil, floor
from random import Random
from unittest import mock

import dasktrain.coordinator
from dasktrain.events import Answered, Event, Failed, Joined, Left, Ready, Received, Refused
from dasktrain.messages import Answer, Bucket, Failure, State, Task
from dasktrain.shipping import run_packed
from dasktrain.vector import plain_memory
from dasktrain.wire import Respond
from dasktrain.wire.local import LocalWire

#: things happen at multiples of these seconds, so that some happen at once
TICK = 0.05


class Clock:
    """Seconds, moved by whoever waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """Be the coordinator's clock."""
        with mock.patch.object(dasktrain.coordinator, "monotonic", self):
            yield


class Agenda:
    """Events to come."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, float, int, Event]] = []
        self._count = 0

    def __iter__(self) -> Iterator[Event]:
        """Yield what is to come, in no order."""
        return (event for *_, event in self._heap)

    def add(self, after: float, event: Event, turn: float = 0.0) -> None:
        """Have an event happen in so many seconds; of those at the same time the least `turn` comes first."""
        self._count += 1
        heapq.heappush(self._heap, (self._clock.now + after, turn, self._count, event))

    def forget(self, worker: str) -> None:
        """Have nothing more come from a worker."""
        self._heap = [each for each in self._heap if each[-1].worker != worker]
        heapq.heapify(self._heap)

    def keep(self) -> None:
        """Copy what is to come, before its memory is used for something else."""
        self._heap = [(*when, deepcopy(event)) for *when, event in self._heap]

    def due(self) -> Iterator[Event]:
        """Take what has happened by now, one after another."""
        while self._heap and self._heap[0][0] <= self._clock.now:
            yield heapq.heappop(self._heap)[-1]

    def wait(self, timeout: float) -> None:
        """Let time pass until something happens."""
        until = self._clock.now + max(timeout, TICK / 1000)
        self._clock.now = min(until, max(self._clock.now, self._heap[0][0])) if self._heap else until


class ChaosWire(LocalWire):
    """Workers that die, hang, come late, come back, answer twice, fail once, cannot be leased, or give other bits.

    A worker is always there in the end, and from when `faults` have happened on all goes well.

    Parameters
    ----------
    random
        Decides what happens, and when.
    workers
        How many there are at first.
    clock
        Moves while somebody waits for events.
    faults
        How many at most.
    """

    def __init__(self, random: Random, workers: int, clock: Clock, faults: int = 40) -> None:
        super().__init__(workers)
        self.happened: Counter[str] = Counter()
        self._random, self._faults = random, faults
        self._agenda = Agenda(clock)
        self._names = iter(f"late-{number:03d}" for number in range(10_000))
        self._present: set[str] = set()  # on the cluster, whether we know or not
        self._usable: set[str] = set()  # of these, and of those to come, what a run can compute on
        self._foreign: set[str] = set()
        self._leased: set[str] = set()
        self._mute: set[str] = set()  # dying and deaf
        self._asked: dict[str, Task] = {}
        self._buckets: list[Received] = []  # of the answer that was computed last
        self._rounds: list[Task] = []  # all tasks of the round under way
        self._begun = self._failed = False

    # -- chance -------------------------------------------------------------------------------------------

    def _chance(self, fault: str, probability: float) -> bool:
        """Decide whether something goes wrong, and take note of it."""
        happens = self._faults > 0 and self._random.random() < probability
        if happens:
            self._faults -= 1
            self.happened[fault] += 1
        return happens

    def _soon(self, event: Event, least: float = 0.0, most: float = 0.4) -> None:
        seconds = self._random.uniform(least, most)
        self._agenda.add(ceil(seconds / TICK) * TICK, event, self._random.random())

    # -- workers come and go ------------------------------------------------------------------------------

    def attach(self, replica: bytes) -> None:
        """Have the first workers join at once."""
        self._replica = replica
        for worker in self.workers:
            self._join(worker, 0.0)

    def _join(self, worker: str, within: float) -> None:
        self._usable.add(worker)
        self._soon(Joined(worker), most=within)
        if self._chance("told twice of a join", 0.1):
            self._soon(Joined(worker), within, within + 0.5)

    def _kill(self, worker: str, within: float = 0.4) -> None:
        """Have a worker leave; until that is known it may be deaf or still answer."""
        if self._random.random() < 0.5:
            self._mute.add(worker)
        self._soon(Left(worker, "it was killed"), most=within)

    def _unexpected(self) -> None:
        """Let workers die and join as a round begins."""
        if self._chance("all killed", 0.02):
            for worker in sorted(self._present):
                self._kill(worker)
        elif self._present and self._chance("killed", 0.1):
            self._kill(self._random.choice(sorted(self._present)), self._random.choice([0.0, 0.4]))
        if len(self._present) < 8 and self._chance("joined", 0.2):
            self._join(next(self._names), 0.5)

    def lease(self, worker: str, task: Task) -> None:
        """Build a replica and get it ready, if nothing comes in between."""
        if worker not in self._present:
            self._soon(Left(worker, "it was gone before it could be leased"))
            return
        first = worker == self.workers[0] and not self._begun  # it is there in any case, or the run could not begin
        if not first and self._chance("refused", 0.1):
            self._soon(Refused(worker, f"Worker {worker} must have memory, however it has none"))
            self._usable.discard(worker)
            return
        if not first and self._chance("killed while leased", 0.05):
            self._kill(worker, 2.0)
        replica: Respond = run_packed(self._replica, self._read, plain_memory, partial(self._received, worker))
        self._replicas[worker] = replica
        replica.stage(task)
        domain = dict(replica.domain())
        if worker in self._foreign or (self._begun and self._chance("foreign", 0.15)):
            self._foreign.add(worker)
            domain["canary"] = "other bits"
            self._usable.discard(worker)
        self._leased.add(worker)
        self._soon(Ready(worker, domain), most=self._random.choice([0.1, 3.0, 20.0]))

    def release(self, worker: str) -> None:
        """Let go of a worker; nothing more comes from it but news of its end."""
        super().release(worker)
        self._usable.discard(worker)
        self._leased.discard(worker)
        self._asked.pop(worker, None)

    # -- rounds -------------------------------------------------------------------------------------------

    @contextmanager
    def round(self, state: State) -> Iterator[None]:
        """Begin with some bad news."""
        self._rounds, self._failed = [], False
        self._unexpected()
        with super().round(state):
            yield
            self._agenda.keep()  # replicas use their memory again in the next round

    def send(self, worker: str, task: Task) -> None:
        """Have a worker answer, sooner or later, once or twice, or never."""
        assert worker in self._usable or worker not in self._present, f"{worker} gives other bits or was let go"
        assert worker not in self._asked, f"{worker} was asked and has not answered"
        self._count(task)
        self._begun = True
        if worker not in self._present or worker in self._mute:
            return  # its end is in the news, or will be
        self._asked[worker] = task
        assert self._state is not None
        self._buckets = []
        answer = self._replicas[worker](task, self._state)
        assert isinstance(answer, Answer), answer
        if self._chance("killed while it computed", 0.04):
            self._mute.add(worker)
            after = self._random.choice([0.1, 60.0])
            self._in_parts(after, self._random.randint(0, len(self._buckets)))
            self._soon(Left(worker, "it was killed"), after, after)
            return
        if self._random.random() < 0.7:
            self._replicas[worker].ahead(task)
        after = self._random.uniform(*((3.0, 60.0) if self._chance("slow", 0.08) else (0.0, 0.3)))
        self._in_parts(after, len(self._buckets))
        self._soon(Answered(worker, answer), after, after)
        if self._chance("answered twice", 0.08):
            least = after if self._buckets else 0.0  # an answer comes after its parts
            self._soon(Answered(worker, deepcopy(answer)), least, least + self._random.choice([0.2, 30.0]))

    def _received(self, worker: str, bucket: Bucket) -> None:
        """Keep a part of an answer."""
        self._buckets.append(Received(worker, deepcopy(bucket)))

    def _in_parts(self, within: float, count: int) -> None:
        """Have the first so many parts of an answer come before it, in order."""
        times = sorted(self._random.uniform(0, within) for _ in range(count))
        for after, received in zip(times, self._buckets, strict=False):
            self.happened["came in parts"] += 1
            self._agenda.add(floor(after / TICK) * TICK, received, -1.0)

    def _count(self, task: Task) -> None:
        """Take note of what is asked again."""
        if task in self._asked.values():
            self.happened["backed up"] += 1
        elif any(task.start < other.stop and other.start < task.stop for other in self._rounds):
            self.happened["asked again"] += 1
        self._rounds.append(task)

    # -- news ---------------------------------------------------------------------------------------------

    def events(self, timeout: float) -> list[Event]:
        """Return what happened; if nothing has, pass the time until something does."""
        news = self._news()
        if not news and timeout > 0:
            self._agenda.wait(timeout)
            news = self._news()
        if not self._usable:
            self.happened["nobody there"] += 1
            self._join(next(self._names), self._random.choice([0.5, 40.0]))
        return news

    def _news(self) -> list[Event]:
        return [event for due in self._agenda.due() if (event := self._delivered(due)) is not None]

    def _delivered(self, event: Event) -> Event | None:
        """Have an event take effect; return it as it reaches the driver."""
        worker = event.worker
        match event:
            case Joined():
                self._present.add(worker)
            case Left():
                return self._gone(worker, event)
            case Answered() | Received() if worker not in self._replicas:
                return None
            case Answered(_, answer):
                self.happened["answers to an older round"] += answer.task not in self._rounds
                if self._asked.get(worker) == answer.task:
                    del self._asked[worker]
                    if not self._failed and self._others(worker) and self._chance("failed", 0.03):
                        self._failed = True
                        return Failed(worker, Failure("ReplicaError", "a disk was full", task=answer.task))
        return event

    def _gone(self, worker: str, event: Left) -> Left:
        self._agenda.forget(worker)
        known, usable = worker in self._present, worker in self._usable
        for kept in (self._present, self._usable, self._leased, self._mute):
            kept.discard(worker)
        self._asked.pop(worker, None)
        self._replicas.pop(worker, None)
        if known and self._chance("told twice of a death", 0.1):
            self._soon(event, most=0.1)
        elif known and self._chance("came back", 0.1):
            self._soon(Joined(worker), 1.0, 5.0)
            if usable:
                self._usable.add(worker)
        return event

    def _others(self, worker: str) -> bool:
        """Return whether the run can go on without a worker."""
        return bool((self._usable & self._leased) - {worker})
