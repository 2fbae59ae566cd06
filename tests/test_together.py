"""wire/together.py: one worker adds for others of its host, and nobody is waited for without an end."""

import gc
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import replace
from threading import Event
from typing import Any

import numpy as np
import pytest

from dasktrain import cut
from dasktrain.buckets import Incoming
from dasktrain.cut import Cut
from dasktrain.messages import (
    Answer,
    Bucket,
    Failure,
    Partial,
    Reply,
    Stream,
    Task,
    decode_mark,
    decode_reply,
    encode_mark,
    encode_reply,
)
from dasktrain.reduce import Node, subtrees
from dasktrain.wire import adding, passing
from dasktrain.wire.channel import Channel
from dasktrain.wire.shared import POSSIBLE, SharedChannel, Store, connected, lead
from dasktrain.wire.together import Meeting, Together
from dasktrain.wire.ways import Joint, Via
from tests.processes import mapped, named_sockets, opened
from tests.test_buckets import leaves, summed

pytestmark = pytest.mark.skipif(not POSSIBLE, reason="This system must have anonymous memory that can be sealed")

SHARDS, SIZE, NUMBERS = 8, 5, 13
STREAM = Stream(SHARDS, Cut(NUMBERS, SIZE), "float32")
TASK = Task("r", "train", 0, 0, 0, SHARDS)
PARAMETERS = np.arange(NUMBERS, dtype=np.float32)
VECTORS = leaves(SHARDS, NUMBERS, seed=3, empty=0.0)
#: seconds for whatever must come
PATIENCE = 20.0


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have buckets of a few numbers, and nobody late because this machine has other things to do."""
    monkeypatch.setattr(cut, "SIZE", SIZE)
    monkeypatch.setattr(adding, "LEAST", PATIENCE)
    monkeypatch.setattr(passing, "SILENCE", PATIENCE)
    monkeypatch.setattr(passing, "SIGN", 0.05)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody wait for long."""
    monkeypatch.setattr(adding, "LEAST", 0.2)
    monkeypatch.setattr(passing, "SILENCE", 0.4)


class Peer:
    """A worker, and the driver's end of its connection."""

    def __init__(self) -> None:
        driver, worker = socket.socketpair()
        self.driver, self.channel, self.store = Channel(driver), Channel(worker), Store()
        self.together = Together(self.channel, self.store, STREAM)
        self.marks: list[tuple[str, Task]] = []
        self._ends = ExitStack()
        self._ends.callback(self.together.close)

    def die(self) -> None:
        """End what there is between this worker and others, and send to the driver alone from now on."""
        self._ends.close()
        self.take = lambda reply: self.channel.send(*encode_reply(reply))

    def close(self) -> None:
        self._ends.close()
        self.channel.close()
        self.driver.close()

    def begin(self, start: int, stop: int, way: Via | Joint) -> None:
        """Take a task, and its parameters if they are not to come from another."""
        self.task = replace(TASK, start=start, stop=stop)
        sent = PARAMETERS[:0] if isinstance(way, Via) and way.given else PARAMETERS
        self.take, self.parameters = self.together.begin(self.task, way, sent, None)

    def compute(self) -> None:
        """Send the sums of the task's shards, as a lease does, and its answer."""
        nodes = list(subtrees(self.task.start, self.task.stop, SHARDS))
        for node in nodes:
            self.send(node)
        self.take(answer(self.task, *nodes))

    def send(self, node: Node) -> None:
        """Send a node's sum."""
        vector = np.frombuffer(self.store(NUMBERS * 4), dtype=np.float32, count=NUMBERS)
        vector[:] = summed(VECTORS, *node)
        for offset in reversed(range(0, NUMBERS, SIZE)):
            self.take(Bucket(self.task, *node, offset, vector[offset : offset + SIZE]))

    def sent(self) -> list[Reply]:
        """Return what has come to the driver, in its own memory."""
        replies, self.driver._free = list[Reply](), []
        while self.driver.readable(0):
            message: Any = self.driver.poll()
            if "mark" in message[0]:
                self.marks.append(decode_mark(message[0]))
                continue
            reply = decode_reply(*message)
            replies.append(replace(reply, values=reply.values.copy()) if isinstance(reply, Bucket) else reply)
        return replies


def answer(task: Task, *nodes: Node) -> Answer:
    """Return an answer whose vectors came in buckets."""
    return Answer(task, tuple(Partial(*node, None, np.ones(1)) for node in nodes), 0.01)


@pytest.fixture
def peers() -> Iterator[Callable[..., list[Peer]]]:
    """Return what makes workers of which the first adds for the others, each with some shards."""
    with ExitStack() as ends:

        def make(*shares: Node) -> list[Peer]:
            found = [ends.enter_context(closing(Peer())) for _ in shares]
            begin(found, shares)
            return found

        yield make
    gc.collect()
    assert (mapped(os.getpid()), opened(os.getpid()), named_sockets(os.getpid())) == ([], 0, set())


def begin(peers: Sequence[Peer], shares: Sequence[Node]) -> None:
    """Give workers their tasks."""
    joint = Joint(tuple(replace(TASK, start=start, stop=stop) for start, stop in shares[1:]))
    for peer, share in zip(peers, shares, strict=True):
        peer.begin(*share, joint if peer is peers[0] else Via(peers[0].together.meeting.gate))


def all_at_once(*calls: Callable[[], None]) -> None:
    """Call functions in threads."""
    with ThreadPoolExecutor(len(calls)) as threads:
        for done in [threads.submit(call) for call in calls]:
            done.result(PATIENCE)


def of_buckets(replies: Sequence[Reply]) -> set[Node]:
    return {(reply.start, reply.stop) for reply in replies if isinstance(reply, Bucket)}


def of_answers(replies: Sequence[Reply]) -> list[Node]:
    return [(reply.task.start, reply.task.stop) for reply in replies if isinstance(reply, Answer)]


def total(replies: Sequence[Reply]) -> bytes:
    """Return the driver's sum of what came, as far as it came before its answer."""
    incoming, partials = Incoming(SHARDS), []
    incoming.begin(np.zeros(NUMBERS, dtype=np.float32), SIZE)
    for reply in replies:
        if isinstance(reply, Bucket):
            assert reply.task.start <= reply.start < reply.stop <= reply.task.stop
            incoming.add(reply)
        elif isinstance(reply, Answer):
            partials += reply.partials
    return incoming.complete(partials).tobytes()


def wanted() -> bytes:
    found = summed(VECTORS, 0, SHARDS)
    assert found is not None
    return found.tobytes()


SHARES: tuple[tuple[Node, ...], ...] = (
    ((0, 4), (4, 8)),
    ((0, 3), (3, 5), (5, 8)),
    ((0, 1), (1, 2), (2, 3), (3, 8)),
)


@pytest.mark.parametrize("shares", SHARES)
def test_one_sends_the_sum_of_all_and_then_the_answers_of_all(
    peers: Callable[..., list[Peer]], shares: Sequence[Node]
) -> None:
    workers = peers(*shares)
    for _ in range(3):  # the second time over the same lines
        all_at_once(*(worker.compute for worker in workers))
        first, *others = (worker.sent() for worker in workers)
        assert of_buckets(first) == {(0, SHARDS)}
        assert sorted(of_answers(first)) == list(shares)
        assert total(first) == wanted()
        assert others == [[]] * (len(shares) - 1)
        begin(workers, shares)


def test_only_what_belongs_to_a_node_is_added(peers: Callable[..., list[Peer]]) -> None:
    first, second, third = peers((1, 3), (3, 4), (4, 6))
    all_at_once(first.compute, second.compute, third.compute)
    assert of_buckets(first.sent()) == {(1, 2), (2, 4), (4, 6)}


@pytest.mark.parametrize("empty", [0, 1])
def test_shards_without_rows_do_not_hold_others_up(peers: Callable[..., list[Peer]], empty: int) -> None:
    workers = peers((0, 4), (4, 8))
    lacks = workers[empty]
    nothing = Answer(lacks.task, (Partial(lacks.task.start, lacks.task.stop, None, None),), 0.01)
    all_at_once(workers[1 - empty].compute, lambda: lacks.take(nothing))
    assert of_buckets(workers[0].sent()) == {(0, SHARDS)}


# -- who is late, or dies ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hasty")
def test_whoever_does_not_come_is_not_waited_for(peers: Callable[..., list[Peer]]) -> None:
    first, late = peers((0, 4), (4, 8))
    first.compute()
    early = first.sent()
    assert of_buckets(early) == {(0, 4)}
    assert of_answers(early) == [(0, 4)]
    late.compute()  # and sends for itself
    assert total(early + late.sent()) == wanted()
    begin([first, late], [(0, 4), (4, 8)])
    late.send((4, 8))
    first.compute()  # with what it was given
    assert of_buckets(first.sent()) == {(0, SHARDS)}


def test_whoever_dies_leaves_what_it_had_given(peers: Callable[..., list[Peer]]) -> None:
    first, dies = peers((0, 4), (4, 8))
    for node in ((4, 6), (6, 8)):
        dies.send(node)
    dies.die()
    first.compute()
    replies = first.sent()
    assert of_answers(replies) == [(0, 4)]
    again = [Bucket(TASK, *node, offset, summed(VECTORS, *node)[offset : offset + SIZE])  # type: ignore[index]
             for node in ((4, 6), (6, 8)) for offset in range(0, NUMBERS, SIZE)]  # fmt: skip
    assert total([*replies, *again, answer(replace(TASK, start=4), (4, 6), (6, 8))]) == wanted()


def test_all_send_for_themselves_when_the_first_dies(peers: Callable[..., list[Peer]]) -> None:
    first, *others = peers((0, 2), (2, 4), (4, 8))
    for other in others:
        other.send((other.task.start, other.task.start + 1))  # a part, before it dies
    first.die()
    all_at_once(*(worker.compute for worker in (first, *others)))
    assert total([reply for worker in (first, *others) for reply in worker.sent()]) == wanted()


@pytest.mark.usefixtures("hasty")
def test_all_send_for_themselves_when_the_first_is_not_heard(peers: Callable[..., list[Peer]]) -> None:
    first, *others = peers((0, 2), (2, 4), (4, 8))
    all_at_once(*(other.compute for other in others))
    replies = [reply for other in others for reply in other.sent()]
    assert of_answers(replies) == [(2, 4), (4, 8)]
    first.compute()  # it wakes
    assert total(replies + first.sent()) == wanted()


def test_whoever_waits_ends_with_the_drivers_next_message(
    peers: Callable[..., list[Peer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passing, "SILENCE", 10 * PATIENCE)  # it would not end in time by itself
    _, waits = peers((0, 4), (4, 8))
    waits.driver.send({"task": "the next"})
    all_at_once(waits.compute)
    assert waits.sent() == []


def test_others_wait_on_while_the_driver_takes_nothing(
    peers: Callable[..., list[Peer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For three times as long as they wait for any sign, as on a slow link."""
    first, other = peers((0, 4), (4, 8))
    monkeypatch.setattr(passing, "SILENCE", 0.4)
    opened, flush = Event(), first.channel.flush
    monkeypatch.setattr(first.channel, "flush", lambda: opened.is_set() and flush())
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(worker.compute) for worker in (first, other)]
        assert not wait(waiting, 3 * passing.SILENCE).done
        opened.set()
        for each in waiting:
            each.result(PATIENCE)
    assert total(first.sent()) == wanted()
    assert other.sent() == []


@pytest.mark.parametrize("fails", [0, 1])
def test_what_one_raises_is_told_by_itself_and_the_others_go_on(peers: Callable[..., list[Peer]], fails: int) -> None:
    workers = peers((0, 4), (4, 8))
    failing, other = workers[fails], workers[1 - fails]
    failure = Failure("ReplicaError", "no", task=failing.task)
    failing.send((failing.task.start, failing.task.start + 2))
    all_at_once(lambda: failing.take(failure), other.compute)
    told, others = failing.sent(), other.sent()
    assert [reply for reply in told if isinstance(reply, Failure)] == [failure]
    assert [(other.task.start, other.task.stop)] == of_answers([*told, *others])


# -- who makes no sense -----------------------------------------------------------------------------------------------


def spoken(first: Peer, *messages: tuple[dict[str, Any], Sequence[Any]]) -> SharedChannel:
    """Come through a worker's gate and say something."""
    descriptors = connected(first.together.meeting.gate)
    assert descriptors is not None
    line = lead(descriptors, Store(), writable=False)
    for message in messages:
        line.send(*message)
    return line


OTHER = replace(TASK, start=4, stop=8)
COMES = (encode_mark("comes", OTHER), [])
ONES = np.ones(SIZE, dtype=np.float32)
NONSENSE: dict[str, list[tuple[dict[str, Any], Sequence[Any]]]] = {
    "is not awaited": [(encode_mark("comes", replace(TASK, start=5)), [])],
    "is of another round": [(encode_mark("comes", replace(OTHER, round=1)), [])],
    "comes twice": [COMES, COMES],
    "says something else": [(encode_mark("goes", OTHER), [])],
    "does not introduce itself": [encode_reply(Bucket(OTHER, 4, 8, 0, ONES))],
    "sends of another task": [COMES, encode_reply(Bucket(replace(OTHER, start=5), 4, 8, 0, ONES))],
    "sends of another's shards": [COMES, encode_reply(Bucket(OTHER, 0, 4, 0, ONES))],
    "sends of no node": [COMES, encode_reply(Bucket(OTHER, 5, 7, 0, ONES))],
    "sends too little": [COMES, encode_reply(Bucket(OTHER, 4, 8, 0, ONES[1:]))],
    "sends another dtype": [COMES, encode_reply(Bucket(OTHER, 4, 8, 0, ONES.astype(np.float64)))],
    "tells of a failure": [COMES, encode_reply(Failure("ReplicaError", "no", task=OTHER))],
    "answers of no node": [COMES, encode_reply(Answer(OTHER, (Partial(5, 7, None, None),), 0.01))],
    "speaks no sense": [({"abc": 1}, [])],
}


@pytest.mark.parametrize("what", NONSENSE)
@pytest.mark.usefixtures("hasty")
def test_whoever_makes_no_sense_is_not_listened_to(peers: Callable[..., list[Peer]], what: str) -> None:
    (first, _) = peers((0, 4), (4, 8))
    first.together._passing.close()
    with closing(spoken(first, *NONSENSE[what])) as line:
        first.compute()
        with pytest.raises(ConnectionResetError):
            line.receive(PATIENCE)
    replies = first.sent()
    assert of_answers(replies) == [(0, 4)]
    assert of_buckets(replies) == {(0, 4)}


def test_workers_that_can_meet_are_of_one_host() -> None:
    with closing(Peer()) as one, closing(Peer()) as other:
        assert one.together.meeting.host == other.together.meeting.host
        assert one.together.meeting != other.together.meeting
        assert isinstance(one.together.meeting, Meeting)
