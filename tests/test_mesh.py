"""wire/mesh.py: who comes to a worker's door, and who is let in. How workers call on each other is in tests/cluster."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from types import SimpleNamespace
from typing import Any

import pytest

from dasktrain.errors import WireError
from dasktrain.messages import Task
from dasktrain.wire import mesh
from dasktrain.wire.channel import Channel
from dasktrain.wire.lines import Lines
from dasktrain.wire.member import nobody
from dasktrain.wire.mesh import Doorstep
from dasktrain.wire.ways import Among

PATIENCE = 20.0
TASK = Task("r", "train", 0, 0, 0, 1)
#: of the first of three peers, which calls on nobody
WAY = Among("mesh", 0, ("tcp://a", "tcp://b", "tcp://c"), (TASK,) * 3)


@pytest.fixture
def worker() -> Any:
    return SimpleNamespace(handlers={})


@pytest.fixture
def knock(monkeypatch: pytest.MonkeyPatch, worker: Any) -> Iterator[Callable[..., Channel]]:
    """Return what comes to the door and says something."""
    monkeypatch.setattr(mesh, "detach", lambda comm: comm)
    with ExitStack() as ends:

        def come(said: Any, place: Any) -> Channel:
            ours, theirs = socket.socketpair()
            channel = ends.enter_context(closing(Channel(ours)))
            ends.callback(theirs.close)
            assert worker.handlers["peers"](theirs, mesh=said, place=place) == "dont-reply"
            assert channel.receive(PATIENCE)[0] == {"taken": True}
            return channel

        yield come


def test_peers_are_let_in_and_strangers_sent_away(worker: Any, knock: Callable[..., Channel]) -> None:
    with closing(Doorstep(worker, "peers")) as doorstep:
        strangers = [knock("another", 1), knock("mesh", 0), knock("mesh", 3)]
        peers = [knock("mesh", 2), knock("mesh", 1)]
        twice = knock("mesh", 2)
        with closing(Lines()) as lines:
            doorstep.meet(WAY, {1, 2}, lines, nobody)
            assert (len(lines), 1 in lines, 2 in lines) == (2, True, True)
            lines.post(1, {"to": 1})
            list(lines.served(PATIENCE))
            assert peers[1].receive(PATIENCE)[0] == {"to": 1}
            for stranger in strangers:
                with pytest.raises(ConnectionResetError):
                    stranger.receive(PATIENCE)
    with pytest.raises(ConnectionResetError):
        twice.receive(PATIENCE)


def test_whoever_does_not_come_is_not_waited_for(
    worker: Any, knock: Callable[..., Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh, "MEET", 0.2)
    with closing(Doorstep(worker, "peers")) as doorstep:
        knock("mesh", 2)
        with closing(Lines()) as lines:
            doorstep.meet(WAY, {1, 2}, lines, nobody)
            assert (1 in lines, 2 in lines) == (False, True)


@pytest.mark.parametrize("said", [(["mesh"], 1), ("mesh", [1]), ("mesh", "1"), ("mesh", True), (None, 1)])
def test_nonsense_is_refused(worker: Any, knock: Callable[..., Channel], said: tuple[Any, Any]) -> None:
    with closing(Doorstep(worker, "peers")), pytest.raises(WireError, match="must tell its mesh"):
        knock(*said)


def test_nothing_is_left_of_a_door_that_is_closed(worker: Any, knock: Callable[..., Channel]) -> None:
    doorstep = Doorstep(worker, "peers")
    take, early = worker.handlers["peers"], knock("mesh", 1)
    doorstep.close()
    assert worker.handlers == {}
    worker.handlers["peers"] = take  # it was being called
    for channel in (early, knock("mesh", 1)):
        with pytest.raises(ConnectionResetError):
            channel.receive(PATIENCE)
