"""What holds for the fleet whatever a cluster does."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

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
    Ready,
    ReAsk,
    Refused,
    Release,
    Slow,
    Wait,
)
from dasktrain.fleet import STRIKES, Fleet, shares
from dasktrain.messages import Answer, Failure, Task

HERE: Domain = {"threads": 1, "canary": "here"}
THERE: Domain = {"threads": 1, "canary": "there"}
#: what a worker may raise, and whether another may not
ELSEWHERE = {"ReplicaError": True, "AttachError": True, "NonFinite": False, "DataError": False}


def whole(number: int, shards: int = 8) -> Task:
    return Task("r", "train", 0, number, 0, shards)


def part(number: int, start: int, stop: int) -> Task:
    return Task("r", "train", 0, number, start, stop)


def answered(worker: str, task: Task) -> Answered:
    return Answered(worker, Answer(task, (), 0.1))


def failed(worker: str, task: Task, error: str = "ReplicaError") -> Failed:
    return Failed(worker, Failure(error, "too much", task=task))


@given(st.lists(st.text("abc", min_size=1), max_size=9, unique=True), st.integers(1, 40))
def test_shares_cover_the_shards_once_evenly_and_in_order(workers: list[str], shards: int) -> None:
    found = shares(workers, shards)
    sizes = [stop - start for _, start, stop in found]
    assert [worker for worker, *_ in found] == workers[:shards]
    if workers:
        assert [shard for _, start, stop in found for shard in range(start, stop)] == list(range(shards))
        assert max(sizes) - min(sizes) <= 1


class Cluster(RuleBasedStateMachine):
    """Workers that join, leave, come late and fail as they like, and what must hold whatever they do."""

    def __init__(self) -> None:
        super().__init__()
        self.begins_anew(8, strict=True)

    @precondition(lambda self: self.ended)
    @rule(shards=st.integers(1, 12), strict=st.booleans())
    def begins_anew(self, shards: int, strict: bool) -> None:
        self.fleet, self.shards = Fleet(shards, HERE, strict), shards
        self.number = -1  # of the round under way
        self.open: set[int] = set()  # shards nobody has answered
        self.members: set[str] = set()
        self.leasing: set[str] = set()
        self.barred: set[str] = set()
        self.asked: dict[str, Task] = {}  # member -> what it has not answered
        self.late: set[str] = set()  # members whose answer is overdue
        self.strikes: dict[str, int] = {}
        self.past: list[tuple[str, Task]] = []  # what may still be, or be again, on its way
        self.failures: set[int] = set()  # shards of this round that a worker raised for
        self.ended = False

    running = precondition(lambda self: not self.ended)

    # -- what the driver does with instructions -------------------------------------------------------------------

    def carry_out(self, instructions: list[Instruction]) -> None:
        for each in instructions:
            match each:
                case Lease(worker, start, stop):
                    assert worker in self.leasing
                    assert 0 <= start <= stop <= self.shards
                case Assign(worker, task) | ReAsk(worker, task) | BackUp(worker, task):
                    self.sent(worker, task, each)
                case Release(worker):
                    assert worker in self.members | self.leasing | self.barred
                    self.gone(worker)
                    self.barred.add(worker)
                case Wait():
                    assert not self.members | self.leasing
                case Abort():
                    self.ended = True
        if not self.ended:
            waits = [each for each in instructions if isinstance(each, Wait)]
            assert len(waits) <= 1

    def sent(self, worker: str, task: Task, instruction: Instruction) -> None:
        assert worker in self.members
        assert worker not in self.asked
        assert task.start < task.stop
        assert replace(task, start=0, stop=self.shards) == whole(self.number, self.shards)
        assert self.open.issuperset(range(task.start, task.stop))
        assert isinstance(instruction, BackUp) == (task in self.asked.values())
        self.asked[worker] = task

    def gone(self, worker: str) -> None:
        self.members.discard(worker)
        self.leasing.discard(worker)
        self.late.discard(worker)
        if worker in self.asked:
            self.past.append((worker, self.asked.pop(worker)))

    def take(self, event: Event) -> list[Instruction]:
        somebody = bool(self.members | self.leasing)
        out = self.fleet.take(event)
        self.carry_out(out)
        waits = any(isinstance(each, Wait) for each in out)
        if not self.ended:
            assert waits == (somebody and not self.members | self.leasing)
        return out

    # -- what happens ---------------------------------------------------------------------------------------------

    @running
    @rule(worker=st.sampled_from("abcdefg"))
    def joins(self, worker: str) -> None:
        known = worker in self.members | self.leasing | self.barred
        if not known:
            self.leasing.add(worker)
        out = self.take(Joined(worker))
        assert [type(each) for each in out] == ([] if known else [Lease])

    @running
    @precondition(lambda self: self.leasing)
    @rule(data=st.data(), foreign=st.integers(0, 4).map(lambda number: number == 0))
    def gets_ready(self, data: st.DataObject, foreign: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(self.leasing)))
        self.leasing.discard(worker)
        if foreign and self.fleet.strict:
            self.barred.add(worker)
        else:
            self.members.add(worker)
            self.strikes.setdefault(worker, 0)
        nobody = not self.members | self.leasing
        out = self.fleet.take(Ready(worker, THERE if foreign else HERE))
        self.carry_out(out)
        assert (Release in map(type, out)) == (foreign and self.fleet.strict)
        assert nobody == any(isinstance(each, Wait | Abort) for each in out)

    @running
    @precondition(lambda self: self.leasing | self.members)
    @rule(data=st.data())
    def cannot_be_used(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.leasing | self.members)))
        self.gone(worker)
        self.barred.add(worker)
        nobody = not self.members | self.leasing
        out = self.fleet.take(Refused(worker, "no memory"))
        self.carry_out(out)
        assert nobody == any(isinstance(each, Wait | Abort) for each in out)
        assert self.ended == (nobody and self.number < 0)

    @running
    @rule(worker=st.sampled_from("abcdefg"))
    def leaves(self, worker: str) -> None:
        somebody = worker in self.members | self.leasing
        self.gone(worker)
        nobody = not self.members | self.leasing
        out = self.fleet.take(Left(worker, "it stopped"))
        self.carry_out(out)
        assert (Wait in map(type, out)) == (somebody and nobody)

    def has(self, worker: str, task: Task) -> None:
        """Have an answer arrive and use it as the coordinator does."""
        lacks = replace(task, start=0, stop=self.shards) == whole(self.number, self.shards) and self.open.issuperset(
            range(task.start, task.stop)
        )
        assert self.fleet.lacks(task) == lacks
        if lacks:
            self.open -= set(range(task.start, task.stop))
        if self.asked.get(worker) == task:
            del self.asked[worker]
            self.late.discard(worker)
        self.past.append((worker, task))
        self.take(answered(worker, task))

    @running
    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def answers(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.asked)))
        self.has(worker, self.asked[worker])

    @running
    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def answers_again_or_after_it_left(self, data: st.DataObject) -> None:
        self.has(*data.draw(st.sampled_from(self.past)))

    @running
    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def is_slow(self, data: st.DataObject) -> None:
        self.passes_its_time(data.draw(st.sampled_from(sorted(self.asked))))

    def passes_its_time(self, worker: str) -> None:
        if worker not in self.late:
            self.strikes[worker] += 1
        self.late.add(worker)
        self.take(Slow(worker))

    @running
    @precondition(lambda self: self.asked)
    @rule(data=st.data(), error=st.sampled_from([*ELSEWHERE]))
    def fails(self, data: st.DataObject, error: str) -> None:
        worker = data.draw(st.sampled_from(sorted(self.asked)))
        task = self.asked[worker]
        lost = set(range(task.start, task.stop)) if self.fleet.lacks(task) else set()
        self.gone(worker)
        final = not ELSEWHERE[error] or lost & self.failures or not (self.members | self.leasing)
        self.failures |= lost
        self.barred.add(worker)
        out = self.fleet.take(failed(worker, task, error))
        self.carry_out(out)
        assert self.ended == bool(final)

    @running
    @precondition(lambda self: not self.open)
    @rule()
    def begins_a_round(self) -> None:
        self.number += 1
        self.open, self.failures = set(range(self.shards)), set()
        self.late |= set(self.asked)  # with an older round's
        idle = self.members - set(self.asked)
        out = self.fleet.begin(whole(self.number, self.shards))
        self.carry_out(out)
        assert (Wait in map(type, out)) == (not self.members | self.leasing)
        assert any(isinstance(each, Assign) for each in out) == bool(idle)

    @running
    @precondition(lambda self: self.open and self.members)
    @rule(data=st.data())
    def all_but_one_hang(self, data: st.DataObject) -> None:
        """The round is completed as long as one member stays and answers."""
        survivor = data.draw(st.sampled_from(sorted(self.members)))
        while self.open:
            while others := sorted(set(self.asked) - self.late - {survivor}):
                self.passes_its_time(others[0])
            assert survivor in self.asked
            self.has(survivor, self.asked[survivor])

    # -- what must hold -------------------------------------------------------------------------------------------

    @running
    @invariant()
    def fleet_knows_who_is_there_and_what_they_were_asked(self) -> None:
        assert set(self.fleet.members) == self.members
        assert len(self.fleet.members) == len(self.members)
        assert self.fleet.pending == self.leasing
        assert self.fleet.busy == self.asked
        assert self.fleet.complete == (not self.open)
        assert {worker for worker in self.asked if self.fleet.is_late(worker)} == self.late

    @running
    @invariant()
    def what_nobody_computes_in_time_has_been_given_to_whoever_is_idle(self) -> None:
        in_time = {worker: task for worker, task in self.asked.items() if worker not in self.late}
        covered = {
            shard
            for task in in_time.values()
            if self.open.issuperset(range(task.start, task.stop))
            for shard in range(task.start, task.stop)
        }
        steady = {worker for worker in self.members if self.strikes[worker] < STRIKES}
        idle = self.members - set(self.asked)
        may = idle if not (steady & set(in_time)) else idle & steady
        assert not (may and self.open - covered)


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
