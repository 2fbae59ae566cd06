"""The worker's side of the Dask wire: one long task that holds a worker for a run and owns its replica."""

import asyncio
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, cast

from dask.sizeof import sizeof
from distributed import get_worker, secede
from distributed.comm import Comm
from distributed.core import Status
from distributed.protocol.serialize import Serialized
from distributed.utils_comm import gather_from_workers
from distributed.worker import Worker
from typing_extensions import Buffer

from dasktrain.errors import AttachError
from dasktrain.messages import Answer, Failure, Header, State, Task, Vector, decode_ask, encode_reply
from dasktrain.shipping import run_packed

Respond = Callable[[Task, State], Answer | Failure]
#: torch's thread count and random generator belong to the process, so its replicas take turns.
_TURN = threading.Lock()
#: seconds between looks at whether a lease without a driver is still wanted
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
    worker.handlers[operation(terms.run)] = session.serve
    try:
        worker.log_event(operation(terms.run), {"worker": terms.address})
        _answer(worker, session, terms)
    finally:
        worker.handlers.pop(operation(terms.run), None)


@dataclass
class _Session:
    """Hands messages from the worker's event loop to the lease's thread; None means the driver is gone."""

    inbox: SimpleQueue[Any] = field(default_factory=SimpleQueue)

    async def serve(self, comm: Comm, run: str) -> str:
        """Answer the driver's messages until its connection ends (a handler of the worker's server)."""
        comm.deserialize = False  # frames stay frames: nothing on this connection is unpickled by Dask
        loop = asyncio.get_running_loop()
        try:
            while True:
                message = await comm.read()
                reply: asyncio.Future[Any] = loop.create_future()
                self.inbox.put((message, reply, loop))
                await comm.write(await reply)
        except OSError:  # what Dask raises when a connection is closed or lost
            return "dont-reply"
        finally:
            self.inbox.put(None)


def _answer(worker: Worker, session: _Session, terms: Terms) -> None:
    respond: Respond | None = None
    item = _first(worker, session, terms)
    while item is not None:
        message, reply, loop = item
        if respond is None:
            respond, answer = _build(worker, message, terms)
        else:
            with _TURN:
                answer = encode_reply(respond(*decode_ask(message["header"], unwrap(message))))
        loop.call_soon_threadsafe(_set, reply, wrap(*answer))
        item = session.inbox.get()  # the end of the connection puts None there


def _first(worker: Worker, session: _Session, terms: Terms) -> Any:
    """Return the driver's first message, or None once the lease is cancelled or its worker closes."""
    key, deadline = worker.get_current_task(), monotonic() + terms.patience
    while monotonic() < deadline:
        with suppress(Empty):
            return session.inbox.get(timeout=POLL)
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled" or worker.status not in (Status.running, Status.paused):
            return None
    raise AttachError(f"A driver must attach within {terms.patience:g} s, however none did")


def _build(worker: Worker, message: Header, terms: Terms) -> tuple[Respond | None, tuple[Header, list[Vector]]]:
    """Make the replica from the driver's first message."""
    try:
        replica, keys = (bytes(frame) for frame in unwrap(message))
        read = _Blocks(worker, run_packed(keys), terms)
        with _TURN:
            return run_packed(replica, read), ({"ready": True}, [])
    except Exception as error:
        text = f"A replica must be built on every worker, however {type(error).__name__}: {error}"
        return None, encode_reply(Failure("AttachError", text, traceback.format_exc()))


def _set(reply: "asyncio.Future[Any]", value: Any) -> None:
    if not reply.done():
        reply.set_result(value)


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


# -- header and arrays as one Dask message ----------------------------------------------------------------


def wrap(header: Header, arrays: Sequence[Vector | bytes]) -> Header:
    """Return a Dask message that carries arrays as they lie in memory.

    The arrays must not change until the peer has them. Dask's write() returns before that; a reply to
    this message is what says so.
    """
    views = [memoryview(cast(Buffer, array)) for array in arrays]
    frames = [view.cast("B") if view.nbytes else b"" for view in views]
    return {"op": "dasktrain", "header": header, "frames": Serialized({}, frames)}


def unwrap(message: Header) -> Sequence[Any]:
    """Return the raw frames of a message made by `wrap`."""
    frames: Sequence[Any] = message["frames"].frames
    return frames
