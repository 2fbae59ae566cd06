"""wire/outbox.py: hosts of several workers reduce among themselves, one worker of each for all that it adds up."""

import gc
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from dasktrain.messages import (
    Answer,
    Bucket,
    Failure,
    Partial,
    Reply,
    State,
    Task,
    Vector,
    decode_mark,
    decode_places,
    decode_reply,
)
from dasktrain.reduce import Node, subtrees
from dasktrain.topology import AMONG, Reduction
from dasktrain.wire import adding, member, passing
from dasktrain.wire.adding import PASSED
from dasktrain.wire.channel import Channel
from dasktrain.wire.member import LACKS, MISSED, WAITS
from dasktrain.wire.outbox import Outbox
from dasktrain.wire.shared import POSSIBLE, Store
from dasktrain.wire.ways import Among, Joint, Via, Way, among, decode_way, encode_way, from_driver, without_peers
from tests import test_together
from tests.processes import mapped, named_sockets, opened
from tests.test_buckets import summed
from tests.test_member import Meshes, given
from tests.test_together import (
    NUMBERS,
    PARAMETERS,
    PATIENCE,
    SHARDS,
    SIZE,
    STREAM,
    TASK,
    VECTORS,
    all_at_once,
    answer,
    of_answers,
    of_buckets,
    total,
    wanted,
)

pytestmark = pytest.mark.skipif(not POSSIBLE, reason="This system must have anonymous memory that can be sealed")

EMPTY = np.empty(0, np.uint8)
OFFSETS = range(0, NUMBERS, SIZE)
#: shards of the workers of each host
Shares = Sequence[Sequence[Node]]
HOSTS: tuple[Shares, ...] = (
    (((0, 2), (2, 4)), ((4, 6), (6, 8))),
    (((0, 1), (1, 2), (2, 5)), ((5, 7),), ((7, 8),)),
    (((0, 3),), ((3, 4), (4, 6)), ((6, 7), (7, 8))),
)

small = test_together.small


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no peer late because this machine has other things to do."""
    monkeypatch.setattr(member, "SILENCE", PATIENCE)
    monkeypatch.setattr(member, "LOOK", 0.05)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody wait for long."""
    monkeypatch.setattr(adding, "LEAST", 0.2)
    monkeypatch.setattr(passing, "SILENCE", 0.6)
    monkeypatch.setattr(member, "SILENCE", 0.4)


class Worker:
    """A worker, and the driver's end of its connection."""

    def __init__(self, meshes: Meshes) -> None:
        driver, worker = socket.socketpair()
        self.driver, self.store = Channel(driver), Store()
        self.channel = Channel(worker)
        self.outbox = Outbox(self.channel)
        self.outbox.join(meshes.meet, STREAM)
        self.gate = self.outbox.meet(self.store, STREAM).gate
        self.parameters: bytes | None = None
        self.marks: list[tuple[str, Task, frozenset[int]]] = []
        self.missed: list[frozenset[int]] = []
        self.passed: list[Node] = []

    def close(self) -> None:
        """End it as its death does."""
        self.outbox.close()
        self.channel.close()
        self.driver.close()

    def asked(self, task: Task, way: Way, parameters: Vector = PARAMETERS) -> None:
        """Be sent what belongs to a round."""
        self.task, self.way = task, decode_way(encode_way(way), task)
        for part in given(among(way), parameters):
            self.driver.send(*part)

    def begin(self) -> None:
        sent = PARAMETERS if from_driver(self.way) else PARAMETERS[:0]
        state = self.outbox.begin(self.task, self.way, State(sent, EMPTY))
        self.parameters = None if state is None else state.parameters.tobytes()

    def compute(self) -> None:
        """Send the sums of the task's shards, as a lease does, and its answer."""
        nodes = list(subtrees(self.task.start, self.task.stop, SHARDS))
        for node in nodes:
            self.send(node)
        self.end(answer(self.task, *nodes))

    def send(self, node: Node) -> None:
        """Send a node's sum."""
        vector = np.frombuffer(self.store(NUMBERS * 4), dtype=np.float32, count=NUMBERS)
        vector[:] = summed(VECTORS, *node)
        for offset in reversed(OFFSETS):
            self.outbox.put(Bucket(self.task, *node, offset, vector[offset : offset + SIZE]))

    def end(self, reply: Answer | Failure) -> None:
        self.outbox.end(reply)
        self.outbox.wait()

    def round(self) -> None:
        self.begin()
        assert self.parameters == PARAMETERS.tobytes()
        self.compute()

    def sent(self) -> list[Reply]:
        """Return what has come to the driver, in its own memory, and keep what else it was told."""
        replies, self.driver._free = list[Reply](), []
        self.marks, self.missed, self.passed = [], [], []
        while self.driver.readable(0):
            message: Any = self.driver.poll()
            if "mark" in message[0]:
                self.marks.append((*decode_mark(message[0]), decode_places(message[0])))
                continue
            reply = decode_reply(*message)
            if MISSED in message[0]:
                self.missed.append(decode_places(message[0], MISSED))
            if PASSED in message[0]:
                self.passed.append((reply.task.start, reply.task.stop))  # type: ignore[union-attr]
            replies.append(replace(reply, values=reply.values.copy()) if isinstance(reply, Bucket) else reply)
        return replies

    def lacks(self) -> list[frozenset[int]]:
        """Return the places of owners whose parameters it lacks, each time that it has told so."""
        self.sent()
        return [places for mark, task, places in self.marks if (mark, task) == (LACKS, self.task)]


def ask(
    hosts: Sequence[Sequence[Worker]],
    shares: Shares,
    round: int = 0,
    parameters: Vector = PARAMETERS,
    reduction: Reduction = "sharded",
) -> None:
    """Give workers their tasks, as a driver does."""
    peers = tuple(f"tcp://{place}" for place in range(len(hosts)))
    tasks = [[replace(TASK, start=start, stop=stop, round=round) for start, stop in of_host] for of_host in shares]
    wholes = tuple(replace(first, stop=rest[-1].stop if rest else first.stop) for first, *rest in tasks)
    for place, (workers, (task, *rest)) in enumerate(zip(hosts, tasks, strict=True)):
        way = Among("mesh", place, peers, wholes, reduction, is_new=not round)
        workers[0].asked(task, Joint(tuple(rest), gives=True, among=way) if rest else way, parameters)
        for worker, other in zip(workers[1:], rest, strict=True):
            worker.asked(other, Via(workers[0].gate, given=True))


Make = Callable[..., list[list[Worker]]]


@pytest.fixture
def hosts() -> Iterator[Make]:
    """Return what makes workers of several hosts that have their tasks."""
    with closing(Meshes()) as meshes, ExitStack() as ends:

        def make(shares: Shares, reduction: Reduction = "sharded") -> list[list[Worker]]:
            found = [[ends.enter_context(closing(Worker(meshes))) for _ in of_host] for of_host in shares]
            ask(found, shares, reduction=reduction)
            return found

        yield make
    gc.collect()
    assert (mapped(os.getpid()), opened(os.getpid()), named_sockets(os.getpid())) == ([], 0, set())


def all_of(hosts: Sequence[Sequence[Worker]]) -> list[Worker]:
    return [worker for of_host in hosts for worker in of_host]


@pytest.mark.parametrize("reduction", AMONG)
@pytest.mark.parametrize("shares", HOSTS)
def test_each_sum_comes_once_and_each_answer_from_its_host(hosts: Make, shares: Shares, reduction: Reduction) -> None:
    workers = hosts(shares, reduction)
    for round in range(3):  # over the same lines
        all_at_once(*(worker.round for worker in all_of(workers)))
        replies: list[Reply] = []
        for place, (first, *rest) in enumerate(workers):
            sent = first.sent()
            assert of_buckets(sent) <= {(0, SHARDS)}
            assert sorted(of_answers(sent)) == list(shares[place])
            assert (first.missed, sorted(first.passed)) == (
                [frozenset()],
                list(shares[place][1:]),
            )
            assert [other.sent() for other in rest] == [[]] * len(rest)
            replies += sent
        assert sorted(reply.offset for reply in replies if isinstance(reply, Bucket)) == list(OFFSETS)
        assert total(replies) == wanted()
        ask(workers, shares, round + 1, reduction=reduction)


@pytest.mark.parametrize("reduction", AMONG)
@pytest.mark.parametrize("empty", [[0], [1], [3], [0, 1], [2, 3]])
def test_shards_without_rows_do_not_hold_others_up(hosts: Make, empty: Sequence[int], reduction: Reduction) -> None:
    workers = hosts(HOSTS[0], reduction)

    def without_rows(worker: Worker) -> None:
        worker.begin()
        worker.end(Answer(worker.task, (Partial(worker.task.start, worker.task.stop, None, None),), 0.01))

    rounds = [worker.round for worker in all_of(workers)]
    for place in empty:
        rounds[place] = partial(without_rows, all_of(workers)[place])
    all_at_once(*rounds)
    assert of_buckets([reply for worker in all_of(workers) for reply in worker.sent()]) == {(0, SHARDS)}


def test_what_went_to_owners_stays_as_it_was(hosts: Make) -> None:
    """Memory of what was added is used again for what comes next."""
    (first, other), others = workers = hosts(HOSTS[0])
    all_at_once(*(worker.begin for worker in all_of(workers)))
    for worker, offset in ((first, 10), (other, 10), (first, 5), (first, 0), (other, 5), (other, 0)):
        node = worker.task.start, worker.task.stop
        vector = summed(VECTORS, *node)
        assert vector is not None
        worker.outbox.put(Bucket(worker.task, *node, offset, kept(worker, vector[offset : offset + SIZE])))
        worker.outbox.wait()
    ends = [
        partial(worker.end, answer(worker.task, (worker.task.start, worker.task.stop))) for worker in (first, other)
    ]
    all_at_once(*ends, *(worker.compute for worker in others))
    first.sent()
    again = sums(first, owned_by=1)
    expected = summed(VECTORS, 0, 4)
    assert expected is not None
    assert {bucket.offset: bucket.values.tobytes() for bucket in again} == {
        offset: expected[offset : offset + SIZE].tobytes() for offset in STREAM.cut.owned(1, 2)
    }


def kept(worker: Worker, values: Any) -> Any:
    """Return a copy that others may read."""
    vector = np.frombuffer(worker.store(values.nbytes), dtype=np.float32, count=len(values))
    vector[:] = values
    return vector


# -- who is late, or dies ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hasty")
def test_whoever_is_late_is_not_waited_for_and_sends_for_itself(hosts: Make) -> None:
    workers = hosts(HOSTS[0])
    (first, late), others = workers
    all_at_once(*(worker.round for worker in (first, *others)))
    replies = [reply for worker in (first, *others) for reply in worker.sent()]
    assert of_answers(replies) == [(0, 2), (6, 8), (4, 6)]
    assert (0, SHARDS) not in of_buckets(replies)
    late.begin()
    assert late.lacks() == [frozenset()], "whom it was to get parameters from has gone on"
    late.asked(late.task, None)
    late.round()
    assert total(replies + late.sent()) == wanted()


@pytest.mark.usefixtures("hasty")
def test_whoever_lost_the_one_that_adds_sends_for_itself(hosts: Make) -> None:
    """The others' parameters have come; of the lost one's shards another worker sends the sums."""
    (dies, left), others = hosts(HOSTS[0])
    all_at_once(*(worker.begin for worker in (dies, left, *others)))
    spare = Worker(Meshes())
    with closing(spare):
        dies.close()
        all_at_once(left.compute, *(worker.compute for worker in others))
        spare.asked(dies.task, None)
        spare.round()
        found = [worker.sent() for worker in (left, *others, spare)]
    assert of_answers(found[0]) == [(2, 4)]
    assert (others[0].missed, of_answers(found[1])) == ([frozenset({0})], [(6, 8), (4, 6)])
    again = sums(others[0], owned_by=0)  # as the driver asks for
    assert total([reply for replies in (again, *found) for reply in replies]) == wanted()


def sums(worker: Worker, owned_by: int) -> list[Bucket]:
    """Return what a worker sends when it is asked for what an owner has not delivered."""
    worker.outbox.send_again(worker.task, [owned_by])
    return [reply for reply in worker.sent() if isinstance(reply, Bucket)]


@pytest.mark.usefixtures("hasty")
def test_whoever_lacks_parameters_of_a_peer_gets_them_for_all_of_its_host(hosts: Make) -> None:
    (dead, alone), (first, second) = hosts(HOSTS[0])
    dead.close()
    all_at_once(first.begin, second.begin, alone.begin)
    assert (first.lacks(), alone.lacks()) == ([frozenset({0})], [frozenset()])
    first.asked(first.task, without_peers(first.way))
    if second.lacks():  # it has waited for as long
        second.asked(second.task, second.way)
    all_at_once(*(partial(again, worker) for worker in (first, second)))
    sent = first.sent()
    assert (of_buckets(sent), of_answers(sent), first.missed) == ({(4, 8)}, [(6, 8), (4, 6)], [])


def again(worker: Worker) -> None:
    """Begin once more if that is needed, and send."""
    if worker.parameters is None:
        worker.begin()
    assert worker.parameters == PARAMETERS.tobytes()
    worker.compute()


def test_others_wait_on_while_parameters_come_from_peers(hosts: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """For three times as long as they wait for any sign, and do not take those of the round before for them."""
    shares: Shares = (((0, 4),), ((4, 6), (6, 8)))
    (slow,), (first, other) = workers = hosts(shares)
    all_at_once(*(worker.round for worker in all_of(workers)))
    assert [len(of_answers(worker.sent())) for worker in all_of(workers)] == [1, 2, 0]
    monkeypatch.setattr(passing, "SILENCE", 0.5)
    ask(workers, shares, round=1, parameters=PARAMETERS + 1)
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(worker.begin) for worker in (first, other)]
        assert not wait(waiting, 3 * passing.SILENCE).done
        slow.begin()
        for each in waiting:
            each.result(PATIENCE)
    assert [worker.parameters for worker in all_of(workers)] == [(PARAMETERS + 1).tobytes()] * 3
    assert other.lacks() == []


def test_others_wait_on_while_sums_go_to_peers_and_tell_the_driver(
    hosts: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For three times as long as they wait for any sign."""
    monkeypatch.setattr(passing, "SILENCE", 0.5)
    (slow,), (first, other) = workers = hosts((((0, 4),), ((4, 6), (6, 8))))
    all_at_once(*(worker.begin for worker in all_of(workers)))
    assert [worker.sent() for worker in all_of(workers)] == [[], [], []]
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(worker.compute) for worker in (first, other)]
        assert not wait(waiting, 3 * passing.SILENCE).done
        slow.compute()
        for each in waiting:
            each.result(PATIENCE)
    assert other.sent() == []
    assert (WAITS, other.task) in {(mark, task) for mark, task, _ in other.marks}
    assert of_answers(first.sent()) == [(6, 8), (4, 6)]


def test_signs_that_nobody_reads_do_not_pile_up(hosts: Make) -> None:
    workers = hosts((((0, 4),), ((4, 6), (6, 8))))
    first = workers[1][0]
    all_at_once(*(worker.begin for worker in all_of(workers)))
    together = first.outbox._together
    assert together is not None
    for _ in range(2000):
        together._adding._signed = 0.0  # as if some time had passed
        together._adding._sign()
    all_at_once(*(worker.compute for worker in all_of(workers)))
    assert of_answers(first.sent()) == [(6, 8), (4, 6)]


@pytest.mark.parametrize("place", [0, 1], ids=["the one that adds", "another"])
def test_what_one_raises_is_told_by_itself_and_the_others_send(
    hosts: Make, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    monkeypatch.setattr(member, "SILENCE", 0.4)
    monkeypatch.setattr(adding, "LEAST", 0.2)
    workers = hosts(HOSTS[0])
    failing, other = workers[0][place], workers[0][1 - place]
    failure = Failure("ReplicaError", "no", task=failing.task)

    def fail() -> None:
        failing.begin()
        failing.send((failing.task.start, failing.task.stop))
        failing.end(failure)

    all_at_once(fail, other.round, *(worker.round for worker in workers[1]))
    told = {worker: worker.sent() for worker in all_of(workers)}
    assert [reply for reply in told[failing] if isinstance(reply, Failure)] == [failure]
    node = (other.task.start, other.task.stop)
    assert [answers for answers in map(of_answers, told.values()) if node in answers]
    assert of_answers(told[workers[1][0]]) == [(6, 8), (4, 6)]
