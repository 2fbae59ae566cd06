"""Who is here and who computes which shards: events in, instructions out, no clock and no network.

The wire turns what it sees into events, the driver's clock adds who is slow, and the driver carries the
instructions out. Results never depend on anything decided here, only how long they take.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import pairwise

from dasktrain.events import (
    Abort,
    Answered,
    Assign,
    BackUp,
    Domain,
    Event,
    Failed,
    Instruction,
    Joined,
    Lease,
    Left,
    Notice,
    Ready,
    ReAsk,
    Received,
    Refused,
    Release,
    Slow,
    Wait,
    Waits,
)
from dasktrain.messages import Failure, Task

#: failures that another worker may not have; all others are the data's or the model's
ELSEWHERE = ("ReplicaError", "AttachError")
#: answers that came late before a worker gets work only if nobody else can
STRIKES = 3


@dataclass
class Fleet:
    """The members of a run and the round under way.

    Parameters
    ----------
    shards
        Logical ranks of the run. Members beyond them are spares for deaths and backups.
    domain
        Determinism domain of the run; None: the one most of the first members are in.
    strict
        Whether workers of another domain are refused, or admitted with a notice.
    """

    shards: int
    domain: Domain | None = None
    strict: bool = True
    #: members in seats; a seat that was left is kept for the next who joins, so that the others keep their shards
    _seats: list[str | None] = field(default_factory=list)
    _domains: dict[str, Domain] = field(default_factory=dict)  # of members, until the run's domain is known
    _leasing: dict[str, None] = field(default_factory=dict)  # in order of joining
    _barred: dict[str, str] = field(default_factory=dict)  # worker -> why it may not come back
    _busy: dict[str, Task] = field(default_factory=dict)  # member -> what it has not answered, maybe an older round's
    _slow: set[str] = field(default_factory=set)  # busy members that are late
    _strikes: Counter[str] = field(default_factory=Counter)
    _round: Task | None = None  # all shards of the round under way
    _open: set[int] = field(default_factory=set)  # shards that nobody has answered
    _queue: list[Task] = field(default_factory=list)  # what somebody must be asked for
    _shares: dict[str, tuple[int, int]] = field(default_factory=dict)  # of the round under way, when it began
    _failed: set[int] = field(default_factory=set)  # shards of this round a worker raised for

    # -- what the driver asks ---------------------------------------------------------------------------------

    @property
    def members(self) -> list[str]:
        """Workers with a replica, in order of their seats."""
        return [worker for worker in self._seats if worker is not None]

    @property
    def pending(self) -> set[str]:
        """Workers that were leased and are not ready."""
        return set(self._leasing)

    @property
    def busy(self) -> Mapping[str, Task]:
        """What each member was asked and has not answered."""
        return self._busy

    @property
    def complete(self) -> bool:
        """Whether every shard of the round has been answered."""
        return not self._open

    def lacks(self, task: Task) -> bool:
        """Return whether an answer to `task` is to be used: it is of this round and nobody else's came first."""
        return self._of_round(task) and self._open.issuperset(_shards(task))

    def lacks_some(self, task: Task) -> bool:
        """Return whether a part of an answer to `task` may be used: of its shards some are of this round and open."""
        return self._of_round(task) and not self._open.isdisjoint(_shards(task))

    def is_late(self, worker: str) -> bool:
        """Return whether a busy member is known to be slow, or has been since an older round."""
        return worker in self._slow or not self._of_round(self._busy[worker])

    def is_doubled(self, worker: str, task: Task) -> bool:
        """Return whether another member computes just what `worker` does; only what is late is asked for twice."""
        return bool(self._slow) and any(other == task and name != worker for name, other in self._busy.items())

    # -- what happens -------------------------------------------------------------------------------------------

    def begin(self, round: Task, as_before: bool = False) -> list[Instruction]:
        """Start a round, `round` being all its shards, with the members that are not busy with an older one.

        `as_before`: whoever has joined since the last round has to wait, as long as all others are there.
        """
        out = self._found()
        self._round, self._open, self._failed = round, set(range(self.shards)), set()
        idle = self._idle()
        if not as_before or not self._shares or not self._shares.keys() <= set(idle):
            self._shares = {worker: (start, stop) for worker, start, stop in shares(idle, self.shards)}
        given = [(worker, replace(round, start=a, stop=b)) for worker, (a, b) in self._shares.items()]
        self._busy |= dict(given)
        self._queue = self._loose()  # all, if nobody is idle
        return out + [Assign(*each) for each in given] + self._alone("no worker is attached")

    def take(self, event: Event) -> list[Instruction]:
        """Take an event in; return what must be done about it, in order."""
        match event:
            case Joined(worker):
                return self._joined(worker)
            case Ready(worker, domain):
                return self._ready(worker, domain)
            case Refused(worker, reason):
                return self._refused(worker, reason)
            case Left(worker, reason):
                return self._left(worker, reason)
            case Received() | Waits():
                return []  # what counts is the answer
            case Answered(worker, answer):
                return self._answered(worker, answer.task)
            case Failed(worker, failure):
                return self._raised(worker, failure)
            case Slow(worker):
                return self._late(worker)

    def _joined(self, worker: str) -> list[Instruction]:
        if worker in self._leasing or worker in self._seats or worker in self._barred:
            return []
        self._leasing[worker] = None
        # The share it would have if it and all others that were leased before it were ready by the next round.
        expected = copy(self._seats)
        for each in self._leasing:
            _sit(expected, each)
        given = shares([seat for seat in expected if seat is not None], self.shards)
        return [Lease(*next((share for share in given if share[0] == worker), (worker, 0, 0)))]

    def _ready(self, worker: str, domain: Domain) -> list[Instruction]:
        self._leasing.pop(worker, None)
        if worker in self._seats or worker in self._barred:
            return []
        _sit(self._seats, worker)
        if self.domain is None and self._round is not None:  # nobody was there when the run began
            self.domain = domain
        if self.domain is None:
            self._domains[worker] = domain
            return self._dispatch()
        joined: list[Instruction] = [Notice(f"worker {worker} joined")] * (self._round is not None)
        return (self._admit(worker, domain) or joined) + self._dispatch()

    def _admit(self, worker: str, domain: Domain) -> list[Instruction]:
        """Have a member go, or tell of it, if its bits are not the run's."""
        assert self.domain is not None
        if domain == self.domain:
            return []
        reason = difference(worker, domain, self.domain)
        if not self.strict:
            return [Notice(f"{reason}; it computes all the same, and this run's bits cannot be had again")]
        return self._bar(worker, f"{reason}; it is left to predictions and other work")

    def _found(self) -> list[Instruction]:
        """Settle seats and domain with the first members: by name, and the domain that most of them share."""
        if self._round is None:
            self._seats[:] = sorted(self.members)
        if self.domain is not None or not self._domains:
            return []
        kinds = Counter(str(sorted(domain.items())) for domain in self._domains.values())
        most = min(kinds, key=lambda kind: (-kinds[kind], kind))
        self.domain = next(each for each in self._domains.values() if str(sorted(each.items())) == most)
        founders, self._domains = self._domains, {}
        return [each for worker in sorted(founders) for each in self._admit(worker, founders[worker])]

    def _refused(self, worker: str, reason: str) -> list[Instruction]:
        return self._bar(worker, reason) if worker in self._leasing or worker in self._seats else []

    def _bar(self, worker: str, reason: str) -> list[Instruction]:
        self._stand(worker)
        self._barred[worker] = reason
        out: list[Instruction] = [Release(worker, reason), *self._dispatch()]
        if self.members or self._leasing:
            return out
        return [*out, Wait(reason) if self._round is not None else Abort("; ".join(self._barred.values()))]

    def _left(self, worker: str, reason: str) -> list[Instruction]:
        if worker not in self._leasing and worker not in self._seats:
            return []
        self._stand(worker)
        gone = f"worker {worker} went away: {reason}"
        return [Notice(gone), *self._dispatch(), *self._alone(gone)]

    def _alone(self, reason: str) -> list[Instruction]:
        return [] if self.members or self._leasing else [Wait(reason)]

    def _stand(self, worker: str) -> Task | None:
        """Take a worker off its seat, if it has one; return what it was asked for and nobody has answered."""
        self._leasing.pop(worker, None)
        if worker in self._seats:
            self._seats[self._seats.index(worker)] = None
        self._domains.pop(worker, None)
        self._slow.discard(worker)
        task = self._busy.pop(worker, None)
        if task is None or not self.lacks(task):
            return None
        self._queue += self._loose()
        return task

    def _answered(self, worker: str, task: Task) -> list[Instruction]:
        if self._busy.get(worker) == task:
            del self._busy[worker]
            self._slow.discard(worker)
        if self.lacks(task):
            self._open.difference_update(_shards(task))
        return self._dispatch()

    def _raised(self, worker: str, failure: Failure) -> list[Instruction]:
        """Ask somebody else, unless the failure would be the same there, or was."""
        if worker not in self._seats:
            return []
        lost = self._stand(worker)
        shards = set(_shards(lost)) if lost else set()
        if failure.error not in ELSEWHERE or self._failed & shards or not (self.members or self._leasing):
            return [Abort(failure.text, worker, failure)]
        self._failed |= shards
        self._barred[worker] = failure.text
        return [Release(worker, f"it failed: {failure.text}"), *self._dispatch()]

    def _late(self, worker: str) -> list[Instruction]:
        task = self._busy.get(worker)
        if task is None or worker in self._slow:
            return []
        self._slow.add(worker)
        self._strikes[worker] += 1
        self._queue += self._loose()
        spare = f"worker {worker} was late {STRIKES} times and now gets work only if nobody else can do it"
        return [Notice(spare)] * (self._strikes[worker] == STRIKES) + self._dispatch()

    # -- who is asked -------------------------------------------------------------------------------------------

    def _dispatch(self) -> list[Instruction]:
        """Give idle members what is queued and still lacking."""
        out: list[Instruction] = []
        self._queue = [task for task in self._queue if self.lacks(task)]
        for worker in self._idle() if self._queue else []:
            if not self._queue:
                break
            task = self._queue.pop(0)
            out.append(BackUp(worker, task) if task in self._busy.values() else ReAsk(worker, task))
            self._busy[worker] = task
        return out

    def _loose(self) -> list[Task]:
        """Return what is neither queued nor computed in time: what late members have, as it is, and the rest cut."""
        late = [task for worker, task in self._busy.items() if self.is_late(worker) and self.lacks(task)]
        timely = [task for worker, task in self._busy.items() if not self.is_late(worker)]
        loose, found = self._open.difference(*map(_shards, self._queue + timely)), list[Task]()
        for task in late:
            if loose.issuperset(_shards(task)):
                loose.difference_update(_shards(task))
                found.append(task)
        for start, stop in _runs(loose):
            assert self._round is not None
            cuts = _cuts(start, stop, len(self.members))
            found += [replace(self._round, start=start, stop=stop) for start, stop in cuts]
        return found

    def _idle(self) -> list[str]:
        """Members without a task; those that were late too often only if all others are late again."""
        late = {worker for worker in self._busy if self.is_late(worker)}
        steady = [worker for worker in self.members if self._strikes[worker] < STRIKES and worker not in late]
        return [worker for worker in steady or self.members if worker not in self._busy]

    def _of_round(self, task: Task) -> bool:
        latest = self._round
        return latest is not None and (task.turn, task.round, task.epoch, task.kind, task.run) == (
            latest.turn,
            latest.round,
            latest.epoch,
            latest.kind,
            latest.run,
        )


def default_shards(workers: int) -> int:
    """Return into how many shards a run is cut unless it is told: the next power of two, and 8 at least."""
    return max(8, 1 << (workers - 1).bit_length())


def shares(workers: Sequence[str], shards: int) -> list[tuple[str, int, int]]:
    """Spread shards over workers: (worker, start, stop), contiguous, in their order, even to within one."""
    return [(worker, *cut) for worker, cut in zip(workers, _cuts(0, shards, len(workers)), strict=False)]


def _shards(task: Task) -> range:
    return range(task.start, task.stop)


def _runs(shards: set[int]) -> list[tuple[int, int]]:
    """Return the longest runs of consecutive shards, in order: [start, stop) of each."""
    starts = sorted(shard for shard in shards if shard - 1 not in shards)
    stops = sorted(shard + 1 for shard in shards if shard + 1 not in shards)
    return list(zip(starts, stops, strict=True))


def _sit(seats: list[str | None], worker: str) -> None:
    """Give a worker the first free seat."""
    if None in seats:
        seats[seats.index(None)] = worker
    else:
        seats.append(worker)


def _cuts(start: int, stop: int, pieces: int) -> list[tuple[int, int]]:
    """Cut [start, stop) into at most so many pieces, even to within one."""
    count = max(1, min(pieces, stop - start))
    edges = [start + (stop - start) * place // count for place in range(count + 1)]
    return list(pairwise(edges))


def difference(worker: str, domain: Domain, wanted: Domain) -> str:
    """Say in what a worker's domain differs from a run's."""
    names = [name for name in {**wanted, **domain} if domain.get(name) != wanted.get(name)]
    pairs = ((name, _short(domain.get(name)), _short(wanted.get(name))) for name in names)
    found = ", ".join(f"{name} is {its} and the run's {runs}" for name, its, runs in pairs)
    return f"Worker {worker} must be in the run's determinism domain, however its {found}"


def _short(value: object) -> str:
    return str(value)[:16]
