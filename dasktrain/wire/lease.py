"""The worker's side of the Dask wire: one long task that holds a worker for a run and owns its replica."""

import asyncio
import socket
import threading
import traceback
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

from dask.sizeof import sizeof
from distributed import get_worker, secede
from distributed.comm import Comm
from distributed.core import Status
from distributed.utils_comm import gather_from_workers
from distributed.worker import Worker

from dasktrain.errors import AttachError
from dasktrain.messages import Failure, Header, Vector, decode_ask, encode_reply
from dasktrain.shipping import run_packed
from dasktrain.wire import Respond, heap
from dasktrain.wire.channel import Channel, detach

#: torch's thread count and random generator belong to the process, so its replicas take turns.
_TURN = threading.Lock()
#: seconds between looks at whether an idle lease is still wanted
POLL = 0.2


def operation(run: str) -> str:
    """Name of the worker handler, and of the topic, of a run."""
    return f"dasktrain-{run}"


@dataclass(frozen=True)
class Terms:
    """What a lease is told when it is made, small enough for a task graph.

    Attributes
    ----------
    address : str
        The worker it is for.
    patience : float
        Seconds to wait for the driver, and for another worker's partition.
    cache : int
        Bytes of other workers' partitions to keep.
    """

    run: str
    address: str
    patience: float
    cache: int


def lease(terms: Terms) -> None:
    """Hold this worker for a run: wait for the driver, build the replica, answer until the driver goes.

    It ends when the driver's connection does (closed, lost, or this worker closing), or if none comes.
    """
    worker = get_worker()
    if worker.address != terms.address:
        return  # Dask moved the task because its worker is gone; the driver has seen that
    secede()
    session = _Session()
    worker.handlers[operation(terms.run)] = session.attach
    try:
        worker.log_event(operation(terms.run), {"worker": terms.address})
        channel = _attached(worker, session, terms)
        if channel is not None:
            try:
                _answer(worker, channel, terms)
            finally:
                channel.close()
    finally:
        worker.handlers.pop(operation(terms.run), None)


class _Session:
    """Takes the driver's connection from the worker's server and hands it to the lease's thread."""

    def __init__(self) -> None:
        self.channels: SimpleQueue[Channel] = SimpleQueue()

    def attach(self, comm: Comm, run: str, pair: socket.socket | None = None) -> str:
        """Be a handler of the worker's server: keep the connection's socket.

        `pair` is one end of a socket pair: what an ``inproc://`` connection, which has no socket, brings along.
        """
        self.channels.put(Channel(detach(comm) if pair is None else pair))
        return "dont-reply"


def _attached(worker: Worker, session: _Session, terms: Terms) -> Channel | None:
    """Return the driver's connection, or None once the lease is no longer wanted."""
    key, deadline = worker.get_current_task(), monotonic() + terms.patience
    while monotonic() < deadline:
        with suppress(Empty):
            return session.channels.get(timeout=POLL)
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled" or _closing(worker):
            return None
    raise AttachError(f"A driver must attach within {terms.patience:g} s, however none did")


def _closing(worker: Worker) -> bool:
    return worker.status not in (Status.running, Status.paused)


def _answer(worker: Worker, channel: Channel, terms: Terms) -> None:
    """Build the replica and answer tasks until the connection ends or the worker closes."""
    respond: Respond | None = None
    with heap.kept(), suppress(OSError):  # the connection ended, and with it the lease
        channel.send({"attached": terms.run})
        for header, frames in _messages(worker, channel):
            if respond is None:
                respond, reply = _build(worker, frames, terms)
                channel.send(*reply)
                continue
            task, state = decode_ask(header, frames)
            with _TURN:
                reply = encode_reply(respond(task, state))
            channel.send(*reply)
            respond.ahead(task)


def _messages(worker: Worker, channel: Channel) -> Iterator[tuple[Header, list[Any]]]:
    """Yield what the driver sends until the worker closes."""
    while True:
        while not channel.readable(POLL):
            if _closing(worker):
                return
        yield channel.receive()


def _build(worker: Worker, frames: Sequence[Any], terms: Terms) -> tuple[Respond | None, tuple[Header, list[Vector]]]:
    """Make the replica from the driver's first message."""
    try:
        replica, keys = map(bytes, frames)
        read = _Blocks(worker, run_packed(keys), terms)
        with _TURN:
            return run_packed(replica, read), ({"ready": True}, [])
    except Exception as error:
        text = f"A replica must be built on every worker, however {type(error).__name__}: {error}"
        return None, encode_reply(Failure("AttachError", text, traceback.format_exc()))


class _Blocks:
    """Reads partitions from this worker's memory, and others' through a bounded cache.

    Partitions are looked up each time, not held, so that Dask can spill and move them.
    """

    def __init__(self, worker: Worker, keys: dict[str, list[Any]], terms: Terms) -> None:
        self._worker = worker
        self._keys = keys
        self._terms = terms
        self._foreign: OrderedDict[Any, Any] = OrderedDict()
        self._held = 0

    def __call__(self, kind: str, partition: int) -> Any:
        key = self._keys[kind][partition]
        if key in self._foreign:
            self._foreign.move_to_end(key)
            return self._foreign[key]
        try:
            return self._worker.data[key]
        except KeyError:
            return self._keep(key, self._fetch(kind, partition, key))

    def _keep(self, key: Any, block: Any) -> Any:
        self._foreign[key] = block
        self._held += sizeof(block)
        while self._held > self._terms.cache and len(self._foreign) > 1:
            self._held -= sizeof(self._foreign.popitem(last=False)[1])
        return block

    def _fetch(self, kind: str, partition: int, key: Any) -> Any:
        # Not Worker.gather: its copies are Dask's, and the active memory manager drops them within seconds.
        loop = self._worker.loop.asyncio_loop
        found = asyncio.run_coroutine_threadsafe(self._from_peers(key), loop).result(self._terms.patience)
        if key not in found:
            raise AttachError(
                f"Every partition must be on some worker, however partition {partition} of the {kind} data is on none"
            )
        return found[key]

    async def _from_peers(self, key: Any) -> dict[Any, Any]:
        holders = await self._worker.scheduler.who_has(keys=[key])
        data, *_ = await gather_from_workers(holders, rpc=self._worker.rpc, who=self._worker.address)
        return dict(data)
