"""wire/together.py: one worker of a host gets the parameters for all of them, and whoever lacks them says so."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from dasktrain.messages import encode_part
from dasktrain.reduce import Node
from dasktrain.wire import adding, passing
from dasktrain.wire.shared import POSSIBLE
from dasktrain.wire.ways import Joint, Via
from tests import test_together
from tests.test_together import PARAMETERS, PATIENCE, SHARES, TASK, Peer, all_at_once, total, wanted

pytestmark = pytest.mark.skipif(not POSSIBLE, reason="This system must have anonymous memory that can be sealed")

small, peers = test_together.small, test_together.peers


def give(peers: Sequence[Peer], shares: Sequence[Node]) -> list[Callable[[], None]]:
    """Return what gives workers their tasks, parameters coming from the first."""
    joint = Joint(tuple(replace(TASK, start=start, stop=stop) for start, stop in shares[1:]), gives=True)
    via = Via(peers[0].together.meeting.gate, given=True)
    return [
        partial(peer.begin, *share, joint if peer is peers[0] else via)
        for peer, share in zip(peers, shares, strict=True)
    ]


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    """Have the one that gives not wait for long for those to come that it gives to."""
    monkeypatch.setattr(adding, "LEAST", 0.1)


def held(peer: Peer) -> bytes | None:
    return None if peer.parameters is None else peer.parameters.tobytes()


@pytest.fixture
def met(peers: Callable[..., list[Peer]]) -> Callable[..., list[Peer]]:
    """Return what makes workers that have been through a round together."""

    def make(*shares: Node) -> list[Peer]:
        workers = peers(*shares)
        all_at_once(*(worker.compute for worker in workers))
        assert total(workers[0].sent()) == wanted()
        return workers

    return make


@pytest.fixture
def strangers() -> Iterator[Callable[..., list[Peer]]]:
    """Return what makes workers of which none has ever come to another."""
    with ExitStack() as ends:
        yield lambda *shares: [ends.enter_context(closing(Peer())) for _ in shares]


@pytest.mark.parametrize("shares", SHARES)
def test_others_have_the_parameters_of_the_first(strangers: Callable[..., list[Peer]], shares: Sequence[Node]) -> None:
    workers = strangers(*shares)
    for _ in range(3):
        all_at_once(*give(workers, shares))
        assert [held(worker) for worker in workers] == [PARAMETERS.tobytes()] * len(workers)
        all_at_once(*(worker.compute for worker in workers))
        first, *others = (worker.sent() for worker in workers)
        assert total(first) == wanted()
        assert others == [[]] * (len(shares) - 1)


@pytest.mark.usefixtures("brief")
def test_parameters_stay_as_they_are_when_the_next_come(met: Callable[..., list[Peer]]) -> None:
    """The first goes on to the next round while another still computes, whose answer nobody waits for."""
    first, late = met((0, 4), (4, 8))
    all_at_once(*give([first, late], [(0, 4), (4, 8)]))
    again(first, round=1)
    assert held(late) == PARAMETERS.tobytes()


def again(first: Peer, round: int) -> None:
    """Give one that adds another round, with other parameters."""
    task, other = (replace(TASK, start=start, stop=start + 4, round=round) for start in (0, 4))
    first.together.begin(task, Joint((other,), gives=True), PARAMETERS + round, None)


@pytest.mark.usefixtures("brief")
def test_whoever_comes_late_has_them_all_the_same(met: Callable[..., list[Peer]]) -> None:
    first, late = met((0, 4), (4, 8))
    of_first, of_late = give([first, late], [(0, 4), (4, 8)])
    of_first()
    of_late()
    assert held(late) == PARAMETERS.tobytes()


def test_whoever_first_comes_late_has_them_all_the_same(
    strangers: Callable[..., list[Peer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, late = strangers((0, 4), (4, 8))
    of_first, of_late = give([first, late], [(0, 4), (4, 8)])
    with monkeypatch.context() as patch:
        patch.setattr(adding, "LEAST", 0.1)
        of_first()
    all_at_once(first.compute, lambda: (of_late(), late.compute()))
    assert held(late) == PARAMETERS.tobytes()
    assert total(first.sent()) == wanted()
    assert late.sent() == []


@pytest.mark.parametrize("ended", [True, False])
def test_whoever_came_before_and_does_not_now_is_not_taken_for_another(
    strangers: Callable[..., list[Peer]], ended: bool
) -> None:
    first, before, new = strangers((0, 4), (4, 8), (4, 8))
    all_at_once(*give([first, before], [(0, 4), (4, 8)]))
    if ended:
        all_at_once(first.compute, before.compute)
    with ThreadPoolExecutor(1) as threads:
        giving = threads.submit(again, first, 1)
        assert not wait([giving], 0.3).done, "it waits for the new one"
        task, way = replace(TASK, start=4, stop=8, round=1), Via(first.together.meeting.gate, given=True)
        _, parameters = new.together.begin(task, way, PARAMETERS[:0], None)
        giving.result(PATIENCE)
    assert parameters is not None
    assert parameters.tobytes() == (PARAMETERS + 1).tobytes()


def lacks(worker: Peer) -> bool:
    """Whether a worker has told the driver that it lacks parameters."""
    worker.sent()
    return worker.parameters is None and ("lacks", worker.task) in worker.marks


@pytest.mark.usefixtures("brief")
def test_whoever_comes_too_late_says_so(met: Callable[..., list[Peer]]) -> None:
    first, late = met((0, 4), (4, 8))
    of_first, of_late = give([first, late], [(0, 4), (4, 8)])
    of_first()
    again(first, round=1)
    of_late()
    assert lacks(late)


@pytest.mark.usefixtures("brief")
def test_parameters_of_an_older_round_are_left_alone(met: Callable[..., list[Peer]]) -> None:
    first, other = met((0, 4), (4, 8))
    again(first, round=-1)  # in which the other took no part
    all_at_once(*give([first, other], [(0, 4), (4, 8)]))
    assert held(other) == PARAMETERS.tobytes()


def test_whoever_is_not_given_them_says_so_and_can_go_on_waiting(
    met: Callable[..., list[Peer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, waits = met((0, 4), (4, 8))
    of_first, of_waits = give([first, waits], [(0, 4), (4, 8)])
    with monkeypatch.context() as patch:
        patch.setattr(passing, "SILENCE", 0.3)
        of_waits()
    assert lacks(waits)
    assert ("waits", waits.task) in waits.marks, "or it would be held to be late"
    all_at_once(of_first, of_waits)  # the driver told it to wait on
    assert held(waits) == PARAMETERS.tobytes()
    all_at_once(first.compute, waits.compute)
    assert total(first.sent()) == wanted()


def test_whoever_is_left_alone_says_so(met: Callable[..., list[Peer]]) -> None:
    first, *others = met((0, 2), (2, 4), (4, 8))
    calls = give([first, *others], [(0, 2), (2, 4), (4, 8)])[1:]
    all_at_once(*calls, first.die)
    assert [lacks(other) for other in others] == [True, True]


@pytest.mark.parametrize("values", [PARAMETERS[1:], PARAMETERS.astype(np.float64)], ids=["too few", "another dtype"])
def test_what_are_not_the_parameters_is_not_taken(met: Callable[..., list[Peer]], values: Any) -> None:
    first, other = met((0, 4), (4, 8))
    (line,) = first.together._gate.lines
    line.send(*encode_part(replace(TASK, stop=4), 0, values))
    give([first, other], [(0, 4), (4, 8)])[1]()
    assert lacks(other)
