"""How workers of a run come to be connected with each other: by Dask, to a worker's own port, as its driver is.

Each opens connections to the peers before it and takes those of the peers after it. What a connection is for is known
by the name of a mesh, which the driver makes up and tells to nobody else; TLS, if the cluster has it, does the rest.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event
from time import monotonic

from distributed.comm import Comm, connect
from distributed.worker import Worker

from dasktrain.errors import AttachError, WireError
from dasktrain.wire.channel import Channel, detach, handed_over
from dasktrain.wire.lines import Lines
from dasktrain.wire.ways import Among

#: seconds for all connections of a worker with its peers
MEET = 10.0
#: seconds between looks at whether there are others to be kept waiting
LOOK = 0.5


@dataclass(frozen=True, slots=True)
class Visitor:
    """A connection that a peer has opened, and what it said."""

    mesh: str
    place: int
    channel: Channel


class Doorstep:
    """Takes connections of peers from the worker's server; they wait here until their mesh is asked for.

    Parameters
    ----------
    worker
        Whose server it is.
    operation
        What peers ask for.
    """

    def __init__(self, worker: Worker, operation: str) -> None:
        self._worker, self._operation = worker, operation
        self._visitors: SimpleQueue[Visitor] = SimpleQueue()
        self._closed = Event()
        worker.handlers[operation] = self._take

    def close(self) -> None:
        """Take no more, and end what waits."""
        self._worker.handlers.pop(self._operation, None)
        self._closed.set()
        self._send_away()

    def _take(self, comm: Comm, mesh: str, place: int) -> str:
        """Be a handler of the worker's server: keep the connection's socket."""
        if type(mesh) is not str or type(place) is not int:
            raise WireError(
                f"A peer must tell its mesh and its place, however {mesh!r:.80}, {place!r:.80}; report this"
            )
        channel = Channel(detach(comm))
        channel.send({"taken": True})
        self._visitors.put(Visitor(mesh, place, channel))
        if self._closed.is_set():
            self._send_away()
        return "dont-reply"

    def _send_away(self) -> None:
        with suppress(Empty):
            while True:
                self._visitors.get_nowait().channel.close()

    def meet(self, way: Among, places: Iterable[int], lines: Lines, meanwhile: Callable[[], None]) -> None:
        """Add lines to the peers at some places: those that are there in time; call `meanwhile` now and then."""
        deadline = monotonic() + MEET
        after = {place for place in places if place > way.place}
        calls = {place: self._call(way.peers[place], way) for place in sorted({*places} - after)}
        for place, call in calls.items():
            with suppress(OSError, AttachError, WireError, CancelledError):  # it cannot be reached, or is no peer
                while not wait([call], LOOK).done and monotonic() < deadline + MEET:
                    meanwhile()
                lines.add(place, _taken(call.result(0), deadline))
        while after and monotonic() < deadline:
            meanwhile()
            with suppress(Empty):
                visitor = self._visitors.get(timeout=min(LOOK, _rest(deadline)))
                if visitor.mesh == way.mesh and visitor.place in after:
                    lines.add(visitor.place, visitor.channel)
                    after.remove(visitor.place)
                else:
                    visitor.channel.close()

    def _call(self, address: str, way: Among) -> "Future[socket.socket]":
        loop = self._worker.loop.asyncio_loop
        return asyncio.run_coroutine_threadsafe(self._connected(address, way), loop)

    async def _connected(self, address: str, way: Among) -> socket.socket:
        comm = await connect(address, timeout=MEET, deserialize=False, **self._worker.connection_args)
        return await handed_over(comm, {"op": self._operation, "mesh": way.mesh, "place": way.place})


def _taken(connected: socket.socket, deadline: float) -> Channel:
    """Return a channel once its other end has taken it."""
    channel = Channel(connected)
    try:
        channel.receive(_rest(deadline))
    except (OSError, WireError):
        channel.close()
        raise
    return channel


def _rest(deadline: float) -> float:
    return max(0.1, deadline - monotonic())
