"""wire/member.py: peers pass parameters on and add buckets up, and nobody is waited for without an end."""

import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from threading import Event, Lock
from typing import Any

import numpy as np
import pytest

from dasktrain import cut
from dasktrain.errors import WireError
from dasktrain.messages import (
    Answer,
    Bucket,
    Failure,
    Partial,
    Reply,
    Vector,
    decode_places,
    decode_reply,
    encode_end,
    encode_part,
    encode_reply,
)
from dasktrain.reduce import Node, subtrees
from dasktrain.topology import AMONG, Reduction
from dasktrain.wire import member
from dasktrain.wire.channel import Channel
from dasktrain.wire.handout import over
from dasktrain.wire.holding import UNLIKE
from dasktrain.wire.lines import Lines
from dasktrain.wire.member import LACKS, MISSED, SENT_AGAIN, WAITS, Member
from dasktrain.wire.routes import routes_along
from dasktrain.wire.ways import Among, decode_way, encode_way
from tests.test_buckets import summed
from tests.test_together import (
    NUMBERS,
    PATIENCE,
    SHARDS,
    SIZE,
    STREAM,
    TASK,
    VECTORS,
    all_at_once,
    answer,
    of_answers,
    total,
    wanted,
)

PARAMETERS = np.arange(NUMBERS, dtype=np.float32)
OFFSETS = range(0, NUMBERS, SIZE)
SHARES: tuple[Node, ...] = ((0, 3), (3, 5), (5, 8))
WHOLE = replace(TASK, start=0, stop=SHARDS)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have buckets of a few numbers, and nobody late because this machine has other things to do."""
    monkeypatch.setattr(cut, "SIZE", SIZE)
    monkeypatch.setattr(member, "SILENCE", PATIENCE)
    monkeypatch.setattr(member, "LOOK", 0.05)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody wait for long."""
    monkeypatch.setattr(member, "SILENCE", 0.3)


class Meshes:
    """Connections between peers, made when the first of them asks."""

    def __init__(self) -> None:
        self._ends: dict[tuple[str, int, int], Channel] = {}
        self._lock = Lock()

    def meet(self, way: Among, places: Iterable[int], lines: Lines, meanwhile: Callable[[], None]) -> None:
        """Add a peer's lines to some others."""
        for place in places:
            lines.add(place, self.end(way.mesh, way.place, place))

    def end(self, mesh: str, place: int, other: int) -> Channel:
        """Return one end of a connection, once."""
        with self._lock:
            if (mesh, place, other) not in self._ends:
                one, two = socket.socketpair()
                self._ends |= {(mesh, place, other): Channel(one), (mesh, other, place): Channel(two)}
            return self._ends[mesh, place, other]

    def close(self) -> None:
        for channel in self._ends.values():
            channel.close()


class Peer:
    """A worker, and the driver's end of its connection."""

    def __init__(self, meshes: Meshes) -> None:
        driver, worker = socket.socketpair()
        self.driver, self.channel = Channel(driver), Channel(worker)
        self.member = Member(self.channel, meshes.meet, STREAM)
        self.parameters: Any = None
        self.headers: list[dict[str, Any]] = []

    def close(self) -> None:
        self.member.close()
        self.channel.close()
        self.driver.close()

    def asked(self, way: Among) -> None:
        """Be sent what belongs to a round."""
        self.task = way.tasks[way.place]
        self.way: Any = decode_way(encode_way(way), self.task)
        for part in given(way):
            self.driver.send(*part)

    def begin(self) -> None:
        self.parameters = self.member.begin(self.task, self.way)

    def compute(self) -> None:
        """Take the sums of the task's shards, as a lease does, and its answer."""
        nodes = list(subtrees(self.task.start, self.task.stop, SHARDS))
        for node in nodes:
            self.give(node)
        self.member.take(answer(self.task, *nodes))

    def give(self, node: Node) -> None:
        """Take a node's sum."""
        vector = summed(VECTORS, *node)
        assert vector is not None
        for offset in reversed(OFFSETS):
            self.member.take(Bucket(self.task, *node, offset, vector[offset : offset + SIZE].copy()))

    def round(self) -> None:
        self.begin()
        self.compute()

    def sent(self) -> list[Reply]:
        """Return what has come to the driver, and keep the headers of what is no bucket."""
        replies, self.headers = list[Reply](), []
        while self.driver.readable(0):
            self.driver._free = []
            header, frames = self.driver.poll()  # type: ignore[misc]
            if "bucket" not in header:
                self.headers.append(header)
            if "mark" not in header:
                replies.append(decode_reply(header, frames))
        return replies

    @property
    def missed(self) -> frozenset[int]:
        """Whom it missed, as the last answer says that was seen."""
        assert MISSED in self.headers[-1]
        return decode_places(self.headers[-1], MISSED)


@pytest.fixture
def meshes() -> Iterator[Meshes]:
    with closing(Meshes()) as found:
        yield found


@pytest.fixture
def peers(meshes: Meshes) -> Iterator[Callable[..., list[Peer]]]:
    """Return what makes peers, each with some shards."""
    with ExitStack() as ends:

        def make(*shares: Node, mesh: str = "mesh", reduction: Reduction = "sharded") -> list[Peer]:
            found = [ends.enter_context(closing(Peer(meshes))) for _ in shares]
            ask(found, shares, mesh, reduction=reduction)
            return found

        yield make


def given(way: Among | None, parameters: Vector = PARAMETERS) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """Yield the parameters that the driver gives a peer, if it is one."""
    if way is None:
        return
    routes = routes_along(way.reduction, [(task.start, task.stop) for task in way.tasks], SHARDS, STREAM.cut)
    for offset in routes.given(way.place):
        whole = replace(way.tasks[way.place], start=0, stop=SHARDS)
        yield encode_part(whole, offset, parameters[STREAM.cut.place(offset)])


def ask(
    peers: Sequence[Peer],
    shares: Sequence[Node],
    mesh: str = "mesh",
    round: int = 0,
    is_new: bool = True,
    reduction: Reduction = "sharded",
) -> None:
    tasks = tuple(replace(TASK, start=start, stop=stop, round=round) for start, stop in shares)
    addresses = tuple(f"tcp://{place}" for place in range(len(peers)))
    for place, peer in enumerate(peers):
        peer.asked(Among(mesh, place, addresses, tasks, reduction, is_new))


def nodes_of(replies: Sequence[Reply]) -> list[tuple[int, Node]]:
    """Return the buckets that came: their first numbers and nodes."""
    return sorted((reply.offset, (reply.start, reply.stop)) for reply in replies if isinstance(reply, Bucket))


@pytest.mark.parametrize("shares", [SHARES, ((0, 4), (4, 8)), ((5, 8), (0, 1), (2, 5), (1, 2))])
def test_the_driver_sends_parameters_once_and_gets_each_sum_once(
    peers: Callable[..., list[Peer]], shares: Sequence[Node]
) -> None:
    workers = peers(*shares)
    for round in range(3):  # over the same lines
        all_at_once(*(worker.round for worker in workers))
        replies: list[Reply] = []
        for place, worker in enumerate(workers):
            assert worker.parameters.tobytes() == PARAMETERS.tobytes()
            sent = worker.sent()
            assert nodes_of(sent) == [
                (at, (0, SHARDS)) for at in OFFSETS if STREAM.cut.owner(at, len(workers)) == place
            ]
            assert of_answers(sent) == [shares[place]]
            assert isinstance(sent[-1], Answer)
            assert worker.missed == set()
            replies += sent
        assert total(replies) == wanted()
        ask(workers, shares, round=round + 1, is_new=round == 1)  # told once, and told again


def test_peers_must_be_told_of_each_other_once(peers: Callable[..., list[Peer]]) -> None:
    (worker, *_) = peers(*SHARES)
    ask([worker], SHARES[:1], is_new=False)
    with pytest.raises(WireError, match="told"):
        worker.begin()


def test_of_another_round_nothing_is_sent_again(peers: Callable[..., list[Peer]]) -> None:
    workers = peers(*SHARES)
    all_at_once(*(worker.round for worker in workers))
    assert workers[0].sent()
    workers[0].member.send_again(replace(workers[0].task, round=1), [0, 1, 2])
    assert (workers[0].sent(), [header["mark"] for header in workers[0].headers]) == ([], [SENT_AGAIN])


def test_only_what_belongs_to_a_node_is_added(peers: Callable[..., list[Peer]]) -> None:
    """The others' shards are of workers on the driver's host."""
    shares = ((1, 3), (3, 4), (6, 8))
    workers = peers(*shares)
    all_at_once(*(worker.round for worker in workers))
    for place, worker in enumerate(workers):
        owned = [offset for offset in OFFSETS if STREAM.cut.owner(offset, 3) == place]
        alone = ([(1, 2)], [], [(6, 8)])[place]  # there is nothing to add to these
        assert nodes_of(worker.sent()) == sorted(
            [(at, (2, 4)) for at in owned] + [(at, node) for at in OFFSETS for node in alone]
        )


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_shards_without_rows_do_not_hold_others_up(peers: Callable[..., list[Peer]], empty: int) -> None:
    workers = peers((0, 2), (2, 4), (4, 8))
    lacks = workers[empty]
    nothing = Answer(lacks.task, (Partial(lacks.task.start, lacks.task.stop, None, None),), 0.01)

    def without_rows() -> None:
        lacks.begin()
        lacks.member.take(nothing)

    all_at_once(without_rows, *(worker.round for worker in workers if worker is not lacks))
    assert {node for worker in workers for _, node in nodes_of(worker.sent())} == {(0, SHARDS)}


def test_validation_gets_its_parameters_likewise_and_sums_nothing(peers: Callable[..., list[Peer]]) -> None:
    workers = peers(*SHARES)
    for worker in workers:
        worker.sent()
        worker.member.close()
    tasks = tuple(replace(worker.task, kind="evaluate") for worker in workers)

    def evaluate(worker: Peer) -> Callable[[], None]:
        worker.driver.close()
        driver, channel = socket.socketpair()
        worker.channel.close()
        worker.driver, worker.channel = Channel(driver), Channel(channel)
        worker.member._channel = worker.channel
        worker.asked(replace(worker.way, mesh="other", tasks=tasks))

        def run() -> None:
            worker.begin()
            worker.member.take(Answer(worker.task, (), 0.01))

        return run

    all_at_once(*[evaluate(worker) for worker in workers])
    for worker in workers:
        assert worker.parameters.tobytes() == PARAMETERS.tobytes()
        assert of_answers(worker.sent()) == [(worker.task.start, worker.task.stop)]


# -- who is late, or dies ---------------------------------------------------------------------------------------------


def silent(meshes: Meshes, peer: Peer) -> None:
    """Say nothing."""


def dead(meshes: Meshes, peer: Peer) -> None:
    """End all connections with peers."""
    for place in range(len(peer.way.peers)):
        if place != peer.way.place:
            meshes.end(peer.way.mesh, peer.way.place, place).close()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("lost", [silent, dead])
def test_whoever_lacks_parameters_tells_whose(
    peers: Callable[..., list[Peer]], meshes: Meshes, lost: Callable[[Meshes, Peer], None]
) -> None:
    *others, gone = peers(*SHARES)
    lost(meshes, gone)
    all_at_once(*(other.begin for other in others))
    for other in others:
        assert other.parameters is None
        assert other.sent() == []
        assert {header["mark"] for header in other.headers[:-1]} <= {WAITS}
        assert (other.headers[-1]["mark"], other.headers[-1]["places"]) == (LACKS, [2])


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("lost", [silent, dead])
def test_what_an_owner_does_not_deliver_is_sent_again(
    peers: Callable[..., list[Peer]], meshes: Meshes, lost: Callable[[Meshes, Peer], None]
) -> None:
    workers = peers(*SHARES)
    all_at_once(*(worker.begin for worker in workers))
    *others, gone = workers
    gone.give((5, 6))  # a part, before it is gone
    lost(meshes, gone)
    all_at_once(*(other.compute for other in others))
    replies = [reply for other in others for reply in other.sent()]
    assert [other.missed for other in others] == [{2}, {2}]
    for other in others:
        other.member.send_again(other.task, {2})
        replies += other.sent()
        assert [(header["mark"], header["places"]) for header in other.headers] == [(SENT_AGAIN, [2])]
    late = Peer(meshes)  # whoever is asked for what the one that is gone had
    with closing(late):
        late.task = gone.task
        late.member.take = lambda reply: late.channel.send(*encode_reply(reply))  # type: ignore[method-assign]
        late.compute()
        replies += late.sent()
    assert total(replies) == wanted()


@pytest.mark.usefixtures("hasty")
def test_whoever_is_late_sends_what_it_has(peers: Callable[..., list[Peer]]) -> None:
    workers = peers(*SHARES)
    all_at_once(*(worker.begin for worker in workers))
    *others, late = workers
    all_at_once(*(other.compute for other in others))
    replies = [reply for other in others for reply in other.sent()]
    late.compute()
    replies += late.sent()
    assert late.missed == set()  # the others had sent it theirs
    late.member.send_again(late.task, {0, 1})
    assert total([*replies, *late.sent()]) == wanted()


@pytest.mark.usefixtures("hasty")
def test_whoever_cannot_send_says_to_whom(peers: Callable[..., list[Peer]], meshes: Meshes) -> None:
    """Along a tree the first of two awaits nothing of the second, which adds up what both sum, and reads no more."""
    first, second = peers((0, 4), (4, 8), reduction="tree")
    all_at_once(first.begin, second.begin)
    line = meshes.end("mesh", 0, 1)
    while not line._out:  # until the system takes no more
        line.post({"mark": WAITS}, [bytes(1 << 16)])
        line.flush()
    first.compute()
    assert (first.sent()[-1], first.missed) == (answer(first.task, (0, 4)), {1})


def test_whoever_cannot_be_met_is_not_waited_for(peers: Callable[..., list[Peer]]) -> None:
    first, *_ = peers(*SHARES)
    meet = first.member._meet

    def missing(way: Among, places: Iterable[int], lines: Lines, meanwhile: Callable[[], None]) -> None:
        meet(way, set(places) - {2}, lines, meanwhile)

    first.member._meet = missing
    first.begin()  # others would be waited for until this test is late
    first.sent()
    assert (first.headers[-1]["mark"], first.headers[-1]["places"]) == (LACKS, [2])


def test_what_one_raises_is_told_and_the_others_go_on(peers: Callable[..., list[Peer]]) -> None:
    *others, failing = workers = peers(*SHARES)
    all_at_once(*(worker.begin for worker in workers))
    failure = Failure("ReplicaError", "no", task=failing.task)
    all_at_once(lambda: failing.member.take(failure), *(other.compute for other in others))
    assert failing.sent() == [failure]
    for other in others:
        assert of_answers(other.sent()) == [(other.task.start, other.task.stop)]
        assert other.missed == {2}


def test_whoever_waits_gives_signs(peers: Callable[..., list[Peer]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "SILENCE", 1.0)
    first, *_ = peers(*SHARES)
    first.begin()
    first.sent()
    assert len([header for header in first.headers if header["mark"] == WAITS]) > 2


@pytest.mark.parametrize("reduction", AMONG)
def test_whoever_still_meets_others_has_those_wait_that_it_met(
    peers: Callable[..., list[Peer]], reduction: Reduction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than they would without a sign."""
    monkeypatch.setattr(member, "SILENCE", 0.4)
    workers = peers(*SHARES, reduction=reduction)
    giver = workers[1]  # of parameters, by both ways
    meet = giver.member._meet

    def slowly(way: Among, places: Iterable[int], lines: Lines, meanwhile: Callable[[], None]) -> None:
        meet(way, places, lines, meanwhile)
        for _ in range(20):
            meanwhile()
            Event().wait(0.05)

    giver.member._meet = slowly
    all_at_once(*(worker.round for worker in workers))
    for worker in workers:
        worker.sent()
        assert (worker.parameters.tobytes(), worker.missed) == (PARAMETERS.tobytes(), set())
        assert worker is giver or worker.member.patience > 0.8, "sums may take as long as parameters did"


def test_whoever_waits_ends_with_the_driver(peers: Callable[..., list[Peer]]) -> None:
    first, *_ = peers(*SHARES)
    first.driver.close()
    with pytest.raises(ConnectionResetError):
        first.begin()


# -- who makes no sense -----------------------------------------------------------------------------------------------

OTHER = replace(TASK, start=3, stop=5)
ONES = np.ones(SIZE, dtype=np.float32)
#: of the first of three peers, who owns the bucket at 0: what the second says in place of sums
NONSENSE: dict[str, tuple[dict[str, Any], Sequence[Any]]] = {
    "is of another round": encode_reply(Bucket(replace(OTHER, round=1), 3, 4, 0, ONES)),
    "is of another's shards": encode_reply(Bucket(OTHER, 0, 2, 0, ONES)),
    "is of no node": encode_reply(Bucket(OTHER, 3, 5, 0, ONES)),
    "is another owner's": encode_reply(Bucket(OTHER, 3, 4, SIZE, ONES)),
    "is too little": encode_reply(Bucket(OTHER, 3, 4, 0, ONES[1:])),
    "is of another dtype": encode_reply(Bucket(OTHER, 3, 4, 0, ONES.astype(np.float64))),
    "is a failure": encode_reply(Failure("ReplicaError", "no", task=OTHER)),
    "is an answer": encode_reply(Answer(OTHER, (), 0.01)),
    "ends another's node": (encode_end(WHOLE, [(0, 2)], []), []),
    "ends another round's": (encode_end(replace(WHOLE, round=1), [(3, 4)], []), []),
    "is nothing of no node": (encode_end(WHOLE, [], [(3, 5)]), []),
    "is parameters that are here": encode_part(WHOLE, SIZE, ONES),
    "is parameters of nowhere": encode_part(WHOLE, SIZE + 1, ONES),
    "makes no sense": ({"abc": 1}, []),
}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("what", NONSENSE)
def test_whoever_makes_no_sense_is_not_listened_to(peers: Callable[..., list[Peer]], meshes: Meshes, what: str) -> None:
    first, second, third = peers(*SHARES)
    all_at_once(first.begin, second.begin, third.begin)
    meshes.end("mesh", 1, 0).block()
    meshes.end("mesh", 1, 0).send(*NONSENSE[what])
    first.compute()
    replies = first.sent()
    assert first.missed == {1, 2}
    assert all(reply.start < 3 for reply in replies if isinstance(reply, Bucket))


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "part",
    [
        encode_part(WHOLE, 0, ONES),
        encode_part(WHOLE, SIZE, ONES[1:]),
        encode_part(WHOLE, SIZE, ONES.astype(np.float64)),
        encode_part(replace(WHOLE, round=1), SIZE, ONES),
    ],
    ids=["another owner's", "too few", "of another dtype", "of another round"],
)
def test_parameters_that_make_no_sense_are_not_taken(
    peers: Callable[..., list[Peer]], meshes: Meshes, part: tuple[dict[str, Any], list[Any]]
) -> None:
    first, *_ = peers(*SHARES)
    meshes.end("mesh", 1, 0).send(*part)
    first.begin()
    assert first.parameters is None


def test_nobody_is_met_twice_in_a_mesh_and_all_anew_in_another(peers: Callable[..., list[Peer]]) -> None:
    workers = peers(*SHARES)
    met: list[str] = []
    for worker in workers:
        meet = worker.member._meet
        worker.member._meet = lambda way, *rest, meet=meet: met.append(way.mesh) or meet(way, *rest)  # type: ignore[misc]
    for round, mesh in enumerate(("mesh", "mesh", "other")):
        all_at_once(*(worker.round for worker in workers))
        assert all(worker.missed == set() for worker in workers if worker.sent())
        ask(workers, SHARES, ("mesh", "other", "none")[round], round + 1)
        assert met.count(mesh) == 3


def test_whoever_cannot_make_what_it_owns_says_so_and_gives_up_when_the_round_is_over(meshes: Meshes) -> None:
    tasks = tuple(replace(TASK, start=start, stop=stop) for start, stop in ((0, 4), (4, 8)))
    way = Among("mesh", 0, ("tcp://0", "tcp://1"), tasks)
    with closing(Peer(meshes)) as first:
        first.task, first.way = tasks[0], decode_way(encode_way(way), tasks[0])
        owned = list(OFFSETS[::2])
        for header, (values,) in given(way):
            first.driver.send(header | {"made": 1}, [values[:0]])
        for message in over(WHOLE, owned[:1]):
            first.driver.send(*message)
        first.begin()
        assert first.parameters is None
        first.sent()
        told = [(header["mark"], decode_places(header)) for header in first.headers]
    assert told == [*((UNLIKE, {offset}) for offset in owned), (LACKS, {0})]
