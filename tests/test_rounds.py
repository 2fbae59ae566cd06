"""A driver and peers that reduce among themselves, whoever dies or stops, and whenever: each sum comes, and once."""

import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import inf
from threading import Event
from time import monotonic
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from dasktrain import cut, topology
from dasktrain.messages import (
    Answer,
    Bucket,
    State,
    Task,
    decode_ask,
    decode_mark,
    decode_places,
    decode_reply,
    encode_ask,
    encode_mark,
    encode_reply,
)
from dasktrain.owned import Owned
from dasktrain.reduce import Node, subtrees
from dasktrain.state import TrainState
from dasktrain.steps import Mean
from dasktrain.topology import AMONG, USUAL, Reduction
from dasktrain.wire import holding, member, peers
from dasktrain.wire.channel import Channel, readable
from dasktrain.wire.holding import UNLIKE
from dasktrain.wire.member import LACKS, MISSED, SEND_AGAIN, SENT_AGAIN, WAITS, Member
from dasktrain.wire.peers import Peers
from dasktrain.wire.ways import Way, among, decode_way, encode_way
from tests.test_buckets import summed
from tests.test_member import PARAMETERS, SHARES, Meshes
from tests.test_together import PATIENCE, SHARDS, SIZE, STREAM, TASK, VECTORS, answer, total, wanted

EMPTY = np.empty(0, np.uint8)
#: what befalls a peer
Fate = Literal["dies", "stops", "slows"]
#: when: as it is asked, with its parameters, after some of its sums, when all are given
Phase = Literal["asked", "begun", "halfway", "computed"]
#: seconds after which whoever has not answered is taken to be late
LATE = 0.9
PHASES: tuple[Phase, ...] = ("asked", "begun", "halfway", "computed")


@pytest.fixture(autouse=True)
def hasty() -> Iterator[None]:
    """Have buckets of a few numbers, and nobody wait for long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cut, "SIZE", SIZE)
        patch.setattr(cut, "LEAST", SIZE)
        patch.setattr(member, "SILENCE", 0.3)
        patch.setattr(member, "LOOK", 0.05)
        patch.setattr(peers, "LEAST", 0.7)
        yield


class Stopped(Exception):
    """A peer does nothing any more."""


class Peer:
    """A worker with its lease, and the driver's end of its connection."""

    def __init__(self, meshes: Meshes, fate: tuple[Fate, Phase] | None, round: int = 0) -> None:
        driver, worker = socket.socketpair()
        self.driver, self.channel = Channel(driver), Channel(worker)
        self.driver.unblock()
        self.over = Event()
        self.parameters: list[tuple[int, bytes]] = []  # of rounds
        self._fate, self._when = fate, round
        self._member = Member(self.channel, meshes.meet, STREAM)

    def serve(self) -> None:
        """Answer until the driver ends the connection."""
        with suppress(OSError, Stopped), closing(self.channel), closing(self._member):
            while True:
                header, frames = self.channel.receive()
                if "mark" in header:
                    self._member.send_again(decode_mark(header)[1], decode_places(header))
                elif "part" not in header and "stepped" not in header:
                    self._respond(*decode_ask(header, frames), header)

    def _respond(self, task: Task, state: State, header: dict[str, Any]) -> None:
        way, self._round = among(decode_way(header, task)), task.round
        self._live("asked")
        parameters = state.parameters if way is None else self._member.begin(task, way)
        if parameters is None:
            return
        self.parameters.append((task.round, parameters.tobytes()))
        self._live("begun")
        send = self._member.take if way is not None else lambda reply: self.channel.send(*encode_reply(reply))
        nodes = list(subtrees(task.start, task.stop, SHARDS))
        for place, part in enumerate(parts(task)):
            if place == len(nodes) * len(STREAM.cut.offsets) // 2:
                self._live("halfway")
            send(part)
        self._live("computed")
        send(answer(task, *nodes))

    def _live(self, phase: Phase) -> None:
        """Go on, unless this is the end."""
        if self._round != self._when:
            return
        if self._fate == ("dies", phase):
            raise Stopped
        if self._fate == ("slows", phase):
            self.over.wait(0.2)
        if self._fate == ("stops", phase):
            self.over.wait(PATIENCE)
            raise Stopped


def parts(task: Task) -> Iterator[Bucket]:
    """Yield all sums of a task."""
    for node in subtrees(task.start, task.stop, SHARDS):
        vector = summed(VECTORS, *node)
        assert vector is not None
        for offset in reversed(STREAM.cut.offsets):
            yield Bucket(task, *node, offset, vector[STREAM.cut.place(offset)].copy())


class Driver:
    """Gives peers a round, as :class:`dasktrain.wire.dask.DaskWire` does, and computes itself what is lost."""

    def __init__(
        self, peers: Sequence[Peer], shares: Sequence[Node], reduction: Reduction, training: TrainState | None = None
    ) -> None:
        self._training = training
        self.states: list[bytes] = []
        self.given: list[list[str]] = []  # how, in each round
        self._peers = {f"tcp://10.0.0.{place}:9": peer for place, peer in enumerate(peers)}
        self._tasks = {
            worker: replace(TASK, start=start, stop=stop)
            for worker, (start, stop) in zip(self._peers, shares, strict=True)
        }
        self.replies: list[Any] = []
        self.resent: list[tuple[str, frozenset[int]]] = []
        self.among = Peers()
        for worker in self._peers:
            self.among.add(worker, USUAL)
        self.among.choose(reduction, self._state, SHARDS, list(self._peers))
        assert self.among.bucket == SIZE

    @property
    def _state(self) -> State:
        return State(PARAMETERS, EMPTY) if self._training is None else self._training.message()

    def round(self, number: int = 0) -> None:
        """Give a round, and take what comes until all of it is there and all answers of those that live count."""
        self._tasks = {worker: replace(task, round=number) for worker, task in self._tasks.items()}
        self._counts, self.replies, self.given = set[str](), [], [*self.given, []]
        self.states.append(self._state.parameters.tobytes())
        asked = [(worker, task) for worker, task in self._tasks.items() if worker in self._peers]
        ways = self.among.ways(asked, {})
        assert number or set(ways) == set(self._tasks)
        for worker in self._tasks:
            if worker in self._peers:
                self._ask(worker, ways.get(worker))
            else:
                self._compute(worker)
        late, deadline = monotonic() + LATE, monotonic() + PATIENCE
        while not self._complete():
            assert monotonic() < deadline, (self._counts, self.among.held, self.resent)
            if monotonic() > late:
                for worker in self._tasks.keys() - self._counts - set(self.among.held):
                    self._compute(worker)
            if self._peers:
                readable(0.02, *(peer.driver for peer in self._peers.values()))
            for worker in list(self._peers):
                self._serve(worker)
            for worker, _ in self.among.complete():
                self._counts.add(worker)
            for worker, task, places in self.among.to_send_again():
                self.resent.append((worker, frozenset(places)))
                self._peers[worker].driver.post(encode_mark(SEND_AGAIN, task, sorted(places)))
        self.among.end()

    def step(self) -> None:
        """Step the state of record."""
        assert self._training is not None
        parameters, mean = self._training.parameters, Mean(float(SHARDS), 1.0, (0, 1))
        sums = np.frombuffer(total([reply for reply in self.replies if isinstance(reply, Bucket)]), np.float32)
        gradient = torch.tensor(sums).div_(mean.divisor).mul_(mean.factor)
        for parameter, part in zip(parameters.parameters.values(), parameters.views_of(gradient), strict=True):
            parameter.grad = part
        self._training.step((), mean)

    def _complete(self) -> bool:
        return self._counts >= self._tasks.keys()

    def _ask(self, worker: str, way: Way) -> None:
        state = self._state
        with_it = state if way is None else replace(state, parameters=state.parameters[:0])
        header, arrays = encode_ask(self._tasks[worker], with_it)
        for message in ((header | encode_way(way), arrays), *self.among.parts(way, state)):
            self.given[-1] += [kind for kind in ("stepped", "made", "pieces") if kind in message[0]]
            self._peers[worker].driver.post(*message)

    def _serve(self, worker: str) -> None:
        channel = self._peers[worker].driver
        try:
            channel.flush()
            while (message := channel.poll()) is not None:
                self._take(worker, *message)
                channel.reuse(message[1])
        except OSError:
            self.among.forget(worker)
            del self._peers[worker]
            self._compute(worker)

    def _take(self, worker: str, header: dict[str, Any], frames: list[Any]) -> None:
        if "mark" in header:
            (mark, task), places = decode_mark(header), decode_places(header)
            if mark == LACKS and self.among.lacks(worker, task, places):
                self._ask(worker, None)
            elif mark == SENT_AGAIN:
                self.among.sent_again(worker, task, places)
            elif mark == UNLIKE:
                for message in self.among.unlike(worker, task, places, self._state):
                    self.given[-1].append("again")
                    self._peers[worker].driver.post(*message)
            else:
                assert mark == WAITS
            return
        reply = decode_reply(header, frames)
        if isinstance(reply, Answer):
            missed = decode_places(header, MISSED) if MISSED in header else None
            if self.among.answered(worker, reply, missed):
                self._counts.add(worker)
        else:
            assert isinstance(reply, Bucket)
            self._keep(worker, reply)

    def _keep(self, worker: str, part: Bucket) -> None:
        self.replies.append(replace(part, values=part.values.copy()))
        self.among.received(worker, part)

    def _compute(self, worker: str) -> None:
        """Have somebody else answer."""
        for part in parts(self._tasks[worker]):
            self._keep("tcp://spare:9", part)
        self._counts.add(worker)


def run(
    shares: Sequence[Node],
    reduction: Reduction,
    fates: dict[int, tuple[Fate, Phase]],
    training: TrainState | None = None,
    struck: int = 0,
    rounds: int = 1,
) -> Driver:
    """Run rounds of peers, of which some have a fate in one of them; return the driver when all is over."""
    with closing(Meshes()) as meshes, ThreadPoolExecutor(len(shares)) as threads, ExitStack() as ends:
        peers = [Peer(meshes, fates.get(place), struck) for place in range(len(shares))]
        for peer in peers:
            ends.callback(peer.channel.close)
            ends.callback(peer.driver.close)
            ends.callback(peer.over.set)
        leases = [threads.submit(peer.serve) for peer in peers]
        driver = Driver(peers, shares, reduction, training)
        for number in range(rounds):
            driver.round(number)
            checked(driver)
            if training is not None:
                driver.step()
        for peer in peers:
            peer.over.set()
            peer.driver.abort()
        for lease in leases:
            lease.result(PATIENCE)
    for place, peer in enumerate(peers):
        assert all(parameters == driver.states[number] for number, parameters in peer.parameters)
        assert place in fates or peer.parameters
    return driver


def checked(driver: Driver) -> None:
    """See that all that is to come has, with the bits of the tree."""
    assert total([reply for reply in driver.replies if isinstance(reply, Bucket)]) == wanted()


EACH: tuple[Node, ...] = tuple((shard, shard + 1) for shard in range(SHARDS))


@pytest.mark.parametrize("reduction", AMONG)
@pytest.mark.parametrize("shares", [SHARES, EACH, ((0, 4), (4, 8)), ((3, 5), (0, 1), (5, 8), (1, 3))])
def test_where_nobody_fails_the_driver_gets_each_sum_once(shares: Sequence[Node], reduction: Reduction) -> None:
    driver = run(shares, reduction, {})
    checked(driver)
    assert sorted(reply.offset for reply in driver.replies) == list(STREAM.cut.offsets)
    assert driver.resent == []


@pytest.mark.parametrize("reduction", AMONG)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("place", "fate"), [(0, "dies"), (2, "dies"), (4, "dies"), (7, "dies"), (4, "stops"), (6, "stops")]
)
def test_whoever_fails_whenever_nothing_is_lost(place: int, fate: Fate, phase: Phase, reduction: Reduction) -> None:
    """Of eight peers that sum a shard each: one that adds nothing, and hubs of a quarter, of all and of two."""
    driver = run(EACH, reduction, {place: (fate, phase)})
    checked(driver)
    assert len(driver.resent) <= (7 if reduction == "sharded" else 2), "from those that sent it something"
    assert driver.among._alone <= {f"tcp://10.0.0.{place}:9"}


@pytest.mark.parametrize("reduction", AMONG)
@pytest.mark.parametrize("place", [0, 3, 5])
def test_whoever_is_a_little_late_costs_nothing_else(place: int, reduction: Reduction) -> None:
    driver = run(EACH, reduction, {place: ("slows", "begun")})
    checked(driver)
    assert (driver.resent, driver.among._alone) == ([], set())
    assert len(driver.replies) == len(STREAM.cut.offsets)


@st.composite
def chances(draw: st.DrawFn) -> tuple[list[Node], dict[int, tuple[Fate, Phase]]]:
    """Draw who sums what, and what befalls some."""
    ends = sorted({0, SHARDS} | draw(st.sets(st.integers(1, SHARDS - 1), min_size=1)))
    shares = draw(st.permutations(list(pairwise(ends))))
    fate = st.tuples(st.sampled_from(["dies", "stops", "slows"]), st.sampled_from(PHASES))
    fates = draw(st.dictionaries(st.integers(0, len(shares) - 1), fate, max_size=3))
    return list(shares), fates  # type: ignore[return-value]


@given(chances(), st.sampled_from(AMONG))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_befalls_whomever_nothing_is_lost(
    chance: tuple[list[Node], dict[int, tuple[Fate, Phase]]], reduction: Reduction
) -> None:
    shares, fates = chance
    checked(run(shares, reduction, fates))


# -- owners that step -------------------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have owners step whatever that takes."""
    monkeypatch.setattr(topology, "CHECKED", inf)
    monkeypatch.setattr(topology, "STEPPED", inf)


def training() -> TrainState:
    """Return a state with two parameters."""
    module = nn.ParameterList([nn.Parameter(torch.tensor(PARAMETERS[part])) for part in (slice(6), slice(6, None))])
    return TrainState(module, partial(torch.optim.AdamW, lr=0.1))


def test_owners_are_told_steps_and_have_the_driver_s_bits(told: None) -> None:
    driver = run(SHARES, "sharded", {}, training(), rounds=5)
    buckets = len(STREAM.cut.offsets)
    assert driver.given == [[], ["pieces"] * buckets, *[["stepped", "made"] * buckets] * 3]


def test_along_a_tree_the_driver_alone_steps(told: None) -> None:
    assert run(SHARES, "tree", {}, training(), rounds=3).given == [[], [], []]


@pytest.mark.parametrize(
    ("place", "fate", "phase"),
    [
        (0, "dies", "asked"),
        (0, "dies", "computed"),
        (2, "dies", "begun"),
        (5, "dies", "halfway"),
        (1, "stops", "halfway"),
        (1, "slows", "asked"),
        (2, "slows", "begun"),
    ],
)
def test_whoever_fails_while_owners_step_nothing_is_lost(place: int, fate: Fate, phase: Phase, told: None) -> None:
    """Of eight peers, three of which own a bucket each."""
    driver = run(EACH, "sharded", {place: (fate, phase)}, training(), struck=2, rounds=4)
    assert driver.given[2].count("made") == 3
    if fate == "slows":
        assert driver.given[3].count("made") == 3


def test_parameters_that_change_between_steps_are_given(told: None) -> None:
    state = training()
    step, change = state.step, state.parameters.vector

    def and_change(*given: Any) -> None:
        step(*given)
        change[7] += 1.0

    state.step = and_change  # type: ignore[method-assign]
    driver = run(SHARES, "sharded", {}, state, rounds=4)
    assert driver.given[2].count("again") == 1
    assert driver.given[3].count("stepped") == 2, "whose bucket became something else is given values"


def test_others_wait_for_owners_that_step_slowly(told: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two has two buckets, whose steps take longer together than anybody is waited for without a sign."""
    step = Owned.step

    def slowly(*given: Any) -> None:
        Event().wait(0.2)
        step(*given)

    monkeypatch.setattr(Owned, "step", slowly)
    monkeypatch.setattr(holding, "AT_ONCE", 1)
    driver = run(((0, 4), (4, 8)), "sharded", {}, training(), rounds=4)
    assert driver.among._alone == set()
    assert driver.given[3].count("stepped") == 2
