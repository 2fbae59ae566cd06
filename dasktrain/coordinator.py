"""Have every shard of a round computed, whatever becomes of the workers: the fleet decides, this carries it out."""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import monotonic

from dask.system import CPU_COUNT

from dasktrain import buckets
from dasktrain.compression import Sent
from dasktrain.config import seconds
from dasktrain.doubles import Doubles
from dasktrain.errors import AttachError, NonFinite, ReductionError, RestLost, RunError, WorkerLost
from dasktrain.events import (
    Abort,
    Answered,
    Assign,
    BackUp,
    Event,
    Instruction,
    Lease,
    Notice,
    ReAsk,
    Received,
    Release,
    Slow,
    Wait,
    Waits,
)
from dasktrain.fleet import Fleet
from dasktrain.messages import Kind, Partial, State, Task
from dasktrain.pace import Pace
from dasktrain.reduce import NOT_FINITE, reduce
from dasktrain.unpacker import unpacked
from dasktrain.wire import Wire, failed

#: seconds between looks at whether the run was asked to stop while no worker is there
LOOK = 0.5
#: seconds that workers have more than the first to get ready before the first round starts without them
GRACE = 5.0
#: threads that add, and blocks of numbers from which on it is worth it
CORES, PARALLEL = CPU_COUNT, 4
#: answers whose times are remembered
REMEMBERED = 10_000
#: part of a round -> seconds
Parts = dict[str, float]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that a worker took to answer, `waited` of them to gather data that were not at hand.

    It was there `ended` seconds after the coordinator began.
    """

    kind: Kind
    epoch: int
    round: int
    worker: str
    seconds: float
    waited: float
    ended: float = 0.0


class Coordinator:
    """Wire, fleet and clock of one run.

    Parameters
    ----------
    wire
        Open, with the data in place.
    fleet
        Without members.
    tell
        Called with what the user should know of workers.
    stop
        If it is set while no worker is there, nobody is waited for.
    """

    def __init__(self, wire: Wire, fleet: Fleet, tell: Callable[[str], None], stop: threading.Event) -> None:
        self._wire, self._fleet, self._told, self._stop = wire, fleet, tell, stop
        self._begun = monotonic()
        #: what the user was told of workers, and how many seconds after the beginning
        self.happened: deque[tuple[float, str]] = deque(maxlen=REMEMBERED)
        self._paces: dict[Kind, Pace] = {"train": Pace(), "evaluate": Pace()}
        self._next = Task(wire.run, "train", 0, 0, 0, fleet.shards)  # what joiners get ready for
        self._since: dict[str, float] = {}  # worker -> when it was sent what it has not answered
        self._alone: tuple[float, str] | None = None  # since when there is no worker, and why
        self._adders = ThreadPoolExecutor(CORES, thread_name_prefix="dasktrain-add")
        #: how long each worker took for what it was asked last; of the round that was asked for last, seconds by part
        self.timings: deque[Timing] = deque(maxlen=REMEMBERED)
        self.parts: Parts = {}
        self._incoming = buckets.Incoming(fleet.shards)
        self._doubles = Doubles(fleet)
        self._sent: Sent | None = None  # what vectors of the round under way are like, if they are packed
        self._lacks_rests = False

    def _tell(self, text: str) -> None:
        """Tell the user, and remember."""
        self.happened.append((monotonic() - self._begun, text))
        self._told(text)

    def attach(self, replica: bytes, epoch: int, round: int) -> None:
        """Lease the workers that are there and wait until they are ready, or clearly slower than the others.

        Raises
        ------
        AttachError
            No worker can be used.
        """
        self._next = replace(self._next, epoch=epoch, round=round)
        self._wire.attach(replica)
        started = monotonic()
        deadline = started + seconds("timeouts.attach") + GRACE
        for event in self._wire.events(0):
            self._take(event)
        if not self._fleet.members and not self._fleet.pending:
            self._alone = started, "the data was in place"
        while self._fleet.pending or not self._fleet.members:
            for event in self._events(max(LOOK, deadline - monotonic())):
                self._take(event)
            now = monotonic()
            if self._fleet.members:
                deadline = min(deadline, now + GRACE + 2 * (now - started))
                if now >= deadline:
                    return

    def ask(
        self,
        kind: Kind,
        epoch: int,
        round: int,
        turn: int,
        rounds: int,
        state: State,
        dense: int | None = None,
        whose: str = "",
        sent: Sent | None = None,
    ) -> Partial:
        """Return the sum over all shards of one round, or of one turn of it.

        Parameters
        ----------
        rounds
            How many rounds, from this one on, each shard does by itself.
        dense
            How many of the parameters, the first, have their gradients in vectors; None: all.
        whose
            Tells apart rounds of one number that are asked for several times, each for others: an answer to one of
            them that comes late is none to another.
        sent
            What vectors are like if they are packed.

        Raises
        ------
        WorkerLost
            No worker was left and none appeared in time.
        Diverged
            Two workers gave different bits for the same shards.
        RestLost
            Workers that have kept something of earlier rounds are not there any more.
        NonFinite
            The sum is not, and which shard is to blame, if it is one.
        RunError
            Whatever a replica raised.
        """
        for event in self._wire.events(0):
            if isinstance(event, Answered | Received):
                self._doubles.compare(event, self._wire.bucket)  # to a round that is over
            self._take(event)
        self._sent, self._lacks_rests = sent, False
        self._next = Task(self._wire.run + whose, kind, epoch, round, 0, self._fleet.shards, turn, rounds)
        try:
            return self._total(state, dense)
        except NonFinite as error:
            if str(error) == NOT_FINITE:
                self._find_blame(state, dense)
            raise

    def _find_blame(self, state: State, dense: int | None) -> None:
        """Ask for the round again: replicas that are asked the same twice look at each shard's gradient."""
        if state.change is not None:  # a change must not be added twice
            state = replace(state, change=state.change[:0])
        try:
            self._total(state, dense)
        except NonFinite as found:
            raise found from None
        except RunError:
            pass  # a worker lost meanwhile is not what ended the run

    def _total(self, state: State, dense: int | None) -> Partial:
        """Have all shards of a round computed, and sum them."""
        self._incoming.begin(state.parameters[:dense], self._wire.bucket)
        started, kind = monotonic(), self._next.kind
        with self._wire.round(state):
            partials = self._collect(started)
            answered = monotonic()
            self._paces[kind].add(answered - started)
            total = self._reduce(partials)
            self.parts = self._parts(answered - started, monotonic() - answered)
            return total

    def _reduce(self, partials: list[Partial]) -> Partial:
        """Return the sum over all shards."""
        if self._sent is not None:
            return unpacked(partials, self._fleet.shards, self._sent, self._each)
        if not self._incoming:
            return reduce(partials, self._fleet.shards, self._each)
        total = reduce([replace(partial, vector=None) for partial in partials], self._fleet.shards)
        return replace(total, vector=self._incoming.complete(partials, self._each))

    def _parts(self, waited: float, reduced: float) -> Parts:
        """Divide the seconds of a round, of which the worker that was last decided."""
        last = self.timings[-1]
        compute = last.seconds - last.waited
        return {"wait_data": last.waited, "compute": compute, "wire": waited - last.seconds, "reduce": reduced}

    def close(self) -> None:
        """End the threads that add."""
        self._adders.shutdown()

    def _each(self, function: Callable[[int], None], starts: Sequence[int]) -> Iterable[object]:
        """Call a function on each start of a block: on all cores, which workers of this host leave idle meanwhile."""
        if len(starts) < PARALLEL:
            return map(function, starts)
        return self._adders.map(lambda mine: [*map(function, mine)], [starts[core::CORES] for core in range(CORES)])

    def _collect(self, started: float) -> list[Partial]:
        partials: list[Partial] = []
        first_answer: float | None = None
        deadline = started + seconds("timeouts.round")
        kept = 0 if self._sent is None else self._sent.kept
        self._carry_out(self._fleet.begin(self._next, as_before=kept > 0))
        while not self._fleet.complete:
            pace = self._paces[self._next.kind]
            patience = pace.patience(first_answer)
            if patience is not None:
                patience += kept * pace.usual  # as long as it takes somebody else to do again what has been kept
            for event in self._events(min(self._until_late(patience), deadline - monotonic())):
                if isinstance(event, Received):
                    self._receive(event)
                elif isinstance(event, Answered):
                    partials += self._used(event)
                    first_answer = first_answer or monotonic() - started
                elif isinstance(event, Waits):
                    self._since[event.worker] = monotonic()  # it is not this one that is late
                self._take(event)
            if not self._fleet.complete and monotonic() >= deadline:
                late = ", ".join(sorted(self._fleet.busy))
                raise WorkerLost(
                    f"Every round must be answered within dasktrain.timeouts.round, {seconds('timeouts.round'):g} s, "
                    f"however {late} did not; raise it, or see what those workers do"
                )
            for worker in self._late(patience):
                self._take(Slow(worker))
        if self._lacks_rests:
            raise RestLost("What shards keep must stay with workers, however some of it went away with one")
        return partials

    # -- time -----------------------------------------------------------------------------------------------------

    def _events(self, timeout: float) -> list[Event]:
        """Wait for events; while nobody is there, see to it that this ends."""
        if self._fleet.members or self._fleet.pending:
            self._alone = None
        if self._alone is None:
            return self._wire.events(max(0.0, timeout))
        since, reason = self._alone
        rest = since + seconds("timeouts.workers") - monotonic()
        if rest <= 0 or self._stop.is_set():
            raise WorkerLost(
                f"A worker must appear within dasktrain.timeouts.workers, {seconds('timeouts.workers'):g} s, "
                f"however none did after {reason}; start workers and resume from a checkpoint"
            )
        return self._wire.events(max(0.0, min(timeout, rest, LOOK)))

    def _until_late(self, patience: float | None) -> float:
        """Return the seconds until the next worker is late."""
        waited = [monotonic() - self._since[worker] for worker in self._awaited()]
        if patience is None or not waited:
            return math.inf
        return max(0.0, patience - max(waited))

    def _late(self, patience: float | None) -> list[str]:
        now = monotonic()
        return [w for w in self._awaited() if patience is not None and now - self._since[w] >= patience]

    def _awaited(self) -> list[str]:
        """Members that have something of this round to answer and are not known to be late."""
        return [worker for worker in self._fleet.busy if worker in self._since and not self._fleet.is_late(worker)]

    # -- events in, instructions out ------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        self._carry_out(self._fleet.take(event))
        self._doubles.forget()

    def _carry_out(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Lease(worker, start, stop):
                    self._wire.lease(worker, replace(self._next, kind="train", start=start, stop=stop))
                case Assign(worker, task) | ReAsk(worker, task) | BackUp(worker, task):
                    if isinstance(instruction, BackUp):
                        self._tell(f"worker {worker} backs up shards {task.start} to {task.stop - 1}, which are late")
                    self._since[worker] = monotonic()
                    self._wire.send(worker, task)
                case Release(worker, reason):
                    self._tell(f"worker {worker} is let go: {reason}")
                    self._wire.release(worker)
                case Notice(text):
                    self._tell(text)
                case Wait(reason):
                    self._alone = self._alone or (monotonic(), reason)  # the first reason, and since then
                    self._tell(f"waiting for a worker, since {reason}")
                case Abort(reason, worker, failure):
                    raise failed(failure, worker) if failure is not None else AttachError(reason)

    # -- answers --------------------------------------------------------------------------------------------------

    def _used(self, answered: Answered) -> list[Partial]:
        """Return what is to be summed of an answer: nothing if another worker's came first, or of an old round."""
        answer = answered.answer
        task = answer.task
        self._doubles.compare(answered, self._wire.bucket)
        if not self._fleet.lacks(task):
            return []
        if not answer.partials:
            if self._sent is None or not self._sent.kept:
                raise ReductionError(
                    f"Worker {answered.worker} must send sums of shards {task.start} to {task.stop - 1}, however it "
                    "sent none; report this"
                )
            self._lacks_rests = True
            return []
        ended = monotonic() - self._begun
        self.timings.append(
            Timing(task.kind, task.epoch, task.round, answered.worker, answer.seconds, answer.waited, ended)
        )
        return list(answer.partials)

    def _receive(self, received: Received) -> None:
        """Add a part of an answer, or of several, unless all came from other workers, or it is of an old round."""
        self._doubles.compare(received, self._wire.bucket)
        bucket = received.bucket
        task = bucket.task
        if not self._fleet.lacks_some(task):
            return
        if not task.start <= bucket.start < bucket.stop <= task.stop:
            raise ReductionError(
                f"Worker {received.worker} must send sums of shards {task.start} to {task.stop - 1}, however it sent "
                f"one of [{bucket.start}, {bucket.stop}); report this"
            )
        self._incoming.add(bucket)
