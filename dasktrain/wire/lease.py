"""The worker's side of the Dask wire: one long task that holds a worker for a run and owns its replica."""

import asyncio
import gc
import socket
import traceback
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import ExitStack, closing, suppress
from dataclasses import astuple, dataclass
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

from dask.sizeof import sizeof
from distributed import get_worker, secede
from distributed.comm import Comm
from distributed.core import Status
from distributed.utils_comm import gather_from_workers
from distributed.worker import Worker

from dasktrain.config import setting
from dasktrain.errors import AttachError
from dasktrain.messages import (
    Answer,
    Failure,
    Header,
    State,
    Task,
    decode_attach,
    decode_cut,
    decode_mark,
    decode_places,
    encode_reply,
)
from dasktrain.owned import get_ready
from dasktrain.shipping import run_packed
from dasktrain.vector import plain_memory
from dasktrain.wire import Respond, heap
from dasktrain.wire.channel import Channel, detach
from dasktrain.wire.mesh import Doorstep
from dasktrain.wire.outbox import Outbox
from dasktrain.wire.shared import POSSIBLE, SharedChannel, Store, accept
from dasktrain.wire.silence import expel_silent
from dasktrain.wire.tables import Copy
from dasktrain.wire.ways import decode_way

#: seconds between looks at whether an idle lease is still wanted, and at where a lost partition is being computed
POLL = 0.2
#: seconds between looks at whether a worker that keeps us waiting for a partition is still heard of
LOOK = 1.0
#: what part of a worker's memory limit holds partitions that were read last, and bytes where there is no limit
SHARE, MOST = 8, 4 << 30


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
        Seconds to wait for the driver, and for a partition that is on no worker.
    silence : float
        Seconds without a heartbeat after which another worker whose partition is needed is given up.
    cache : int or None
        Bytes of partitions to hold on to; None: a share of the worker's memory limit.
    """

    run: str
    address: str
    patience: float
    silence: float
    cache: int | None


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
            _serve(worker, channel, terms)
            gc.collect()  # what is left of the driver's memory here, which would be the driver's to pay for
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
        if _over(worker, key):
            return None
    raise AttachError(f"A driver must attach within {terms.patience:g} s, however none did")


def _over(worker: Worker, key: Any) -> bool:
    """Return whether a lease, the task of a key, is no longer wanted."""
    task = worker.state.tasks.get(key)
    return task is None or task.state == "cancelled" or _closing(worker)


def _closing(worker: Worker) -> bool:
    return worker.status not in (Status.running, Status.paused)


def _serve(worker: Worker, channel: Channel, terms: Terms) -> None:
    """Build the replica and answer tasks until the connection ends or the worker closes."""
    with ExitStack() as ends, heap.kept(), suppress(OSError):  # the connection ended, and with it the lease
        ends.callback(channel.close)
        channel.send({"attached": terms.run})
        store = Store() if POSSIBLE and setting("shared-memory") else None
        offered, _ = next(_messages(worker, channel))
        ends.callback((channel := accept(channel, offered, store)).close)
        messages = _messages(worker, channel)
        outbox = Outbox(channel)
        ends.callback(outbox.close)
        shared = isinstance(channel, SharedChannel)
        outlets = (store or plain_memory, None if shared else outbox.put)
        task, replica, keys, steps = decode_attach(*next(messages))
        respond = _built(worker, channel, replica, keys, terms, outlets)
        respond.stage(task)
        has_peers = _joined(worker, outbox, terms, respond, ends)
        if has_peers and steps and not shared:
            get_ready()
        channel.send({"staged": True, "peers": has_peers} | _met(outbox, store, respond))
        copy = Copy()
        for header, frames in messages:
            if _aside(channel, outbox, header):
                continue
            task, given = copy.decode(header, frames)
            outbox.recut(respond.recut(decode_cut(header)))
            state = outbox.begin(task, decode_way(header, task), given)
            if state is None:
                continue
            outbox.end(answered(channel, respond, task, state))
            respond.ahead(task)
            outbox.wait()


def _aside(channel: Channel, outbox: Outbox, header: Header) -> bool:
    """Do what the driver wants that is no task; return whether it was that."""
    if "probe" in header:
        channel.send({"probed": True})
    elif "mark" in header:
        outbox.send_again(decode_mark(header)[1], decode_places(header))
    else:
        return "part" in header or "stepped" in header  # of parameters that this worker has given up
    return True


def answered(channel: Channel, respond: Respond, task: Task, state: State) -> Answer | Failure:
    """Answer a task; with nothing if its round is over, since parameters may have changed while they were read."""
    if not channel.stale:
        reply = respond(task, state)
        if not channel.stale:
            return reply
        respond.forget(task)
    return Answer(task, (), 0.0)


def _messages(worker: Worker, channel: Channel) -> Iterator[tuple[Header, list[Any]]]:
    """Yield what the driver sends until the worker closes."""
    while True:
        while not channel.readable(POLL):
            if _closing(worker):
                raise ConnectionAbortedError("the worker closes")
        yield channel.receive()


def _built(
    worker: Worker, channel: Channel, replica: bytes, keys: bytes, terms: Terms, outlets: tuple[Any, Any]
) -> Respond:
    """Make the replica from what the driver sent packed, and tell of its domain."""
    try:
        respond: Respond = run_packed(replica, _Blocks(worker, run_packed(keys), terms), *outlets)
        domain = respond.domain()
    except Exception as error:
        text = f"A replica must be built on every worker, however {type(error).__name__}: {error}"
        channel.send(*encode_reply(Failure("AttachError", text, traceback.format_exc())))
        raise ConnectionAbortedError(text) from error
    channel.send({"domain": domain})
    return respond


def _joined(worker: Worker, outbox: Outbox, terms: Terms, respond: Respond, ends: ExitStack) -> bool:
    """Be ready to reduce among workers of other hosts, if they can connect to this one; return whether that is so."""
    stream = respond.stream
    if stream is None or not terms.address.startswith(("tcp://", "tls://")):
        return False
    doorstep = ends.enter_context(closing(Doorstep(worker, f"{operation(terms.run)}-peers")))
    outbox.join(doorstep.meet, stream)
    return True


def _met(outbox: Outbox, store: Store | None, respond: Respond) -> Header:
    """Be ready to send together with other workers of this host, if that can be; say where they find this one."""
    stream = respond.stream
    with suppress(OSError):  # the system does not let them
        if store is not None and stream is not None:
            return {"meeting": astuple(outbox.meet(store, stream))}
    return {}


class _Blocks:
    """Reads partitions from this worker's memory or others', and holds on to those that were read last.

    Not to all of them, so that Dask can spill and move them; what is held need not be read again when it was spilled.
    What was spilled is read where it lies: brought back to memory, it would drive out, and so have written, another
    that is needed as soon.
    """

    def __init__(self, worker: Worker, keys: dict[str, list[Any]], terms: Terms) -> None:
        self._worker, self._lease = worker, worker.get_current_task()
        self._keys = keys
        self._terms = terms
        limit = worker.memory_manager.memory_limit
        self._most = terms.cache if terms.cache is not None else limit // SHARE if limit else MOST
        self._held: OrderedDict[Any, Any] = OrderedDict()
        self._bytes = 0

    def __call__(self, kind: str, partition: int) -> Any:
        key = self._keys[kind][partition]
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        try:
            block = self._own(key)
        except KeyError:
            block = self._fetch(kind, partition, key)
        self._hold(key, block)
        return block

    def _own(self, key: Any) -> Any:
        """Return a partition that this worker has."""
        data = self._worker.data
        with suppress(KeyError):  # it is in memory, or was brought there meanwhile
            return getattr(data, "disk", {})[key]
        return data[key]

    def _hold(self, key: Any, block: Any) -> None:
        self._held[key] = block
        self._bytes += sizeof(block)
        while self._bytes > self._most and len(self._held) > 1:
            self._bytes -= sizeof(self._held.popitem(last=False)[1])

    def _fetch(self, kind: str, partition: int, key: Any) -> Any:
        """Get a partition from whoever holds it; Dask computes one that was lost with its worker anew."""
        # Not Worker.gather: its copies are Dask's, and the active memory manager drops them within seconds.
        loop = self._worker.loop.asyncio_loop
        fetching = asyncio.run_coroutine_threadsafe(self._from_peers(kind, key), loop)
        while not wait([fetching], timeout=LOOK).done:
            if _over(self._worker, self._lease):
                fetching.cancel()
                raise ConnectionAbortedError("the lease is not wanted any more")
        if (found := fetching.result()) is None:
            raise AttachError(
                f"Every partition must be on some worker within {self._terms.patience:g} s of the last that came "
                f"back, however partition {partition} of the {kind} data is on none; see whether Dask can compute it"
            )
        return found

    async def _from_peers(self, kind: str, key: Any) -> Any:
        """Return a partition as soon as a worker has it; None if Dask has brought none back for so long."""
        deadline, most = monotonic() + self._terms.patience, 0
        while monotonic() < deadline:
            holders = await self._worker.scheduler.who_has(keys=[key])
            if self._worker.address in holders[key] and key in self._worker.data:
                return self._own(key)
            data = await self._gathered(holders)
            if key in data:
                return data[key]
            known = await self._worker.scheduler.who_has(keys=self._keys[kind])
            if (there := sum(map(bool, known.values()))) > most:
                deadline, most = monotonic() + self._terms.patience, there
            await asyncio.sleep(POLL)
        return None

    async def _gathered(self, holders: dict[Any, Any]) -> dict[Any, Any]:
        """Fetch from other workers; give up those that are silent, but not one that takes its time."""
        fetching = asyncio.ensure_future(gather_from_workers(holders, rpc=self._worker.rpc, who=self._worker.address))
        while not (await asyncio.wait([fetching], timeout=LOOK))[0]:
            silent = await expel_silent(self._worker.scheduler, self._worker.rpc, self._terms.silence)
            if any(holder in silent for workers in holders.values() for holder in workers):
                fetching.cancel()
                return {}
        return dict(fetching.result()[0])
