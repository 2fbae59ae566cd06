"""From a worker on the cluster to a connected lease with a replica, each in a thread of its own.

Nothing here is on a round's path, and no worker waits for another.
"""

import asyncio
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

from distributed import Client, Future
from distributed.comm import connect

from dasktrain.config import seconds, setting
from dasktrain.errors import AttachError, DasktrainError
from dasktrain.events import Domain, Event, Left, Refused
from dasktrain.messages import Failure, Task, decode_reply, encode_attach
from dasktrain.shipping import pack, run_packed_with
from dasktrain.wire import failed
from dasktrain.wire.bandwidth import Gauge
from dasktrain.wire.channel import Channel, handed_over
from dasktrain.wire.lease import Terms, lease, operation
from dasktrain.wire.shared import SharedChannel, Store, offer
from dasktrain.wire.together import Meeting

#: how the task begins that holds a worker for a run; the run and the worker follow
LEASE = "dasktrain-lease-"
#: workers that are leased at once; the others wait their turn
AT_ONCE = 64
#: seconds in which a worker must take a connection to count as reachable
REACH = 5.0
#: seconds for a connection to a worker whose lease runs
CONNECT = 15.0


@dataclass(frozen=True, slots=True)
class Attached:
    """A worker whose lease is connected and has a replica.

    Attributes
    ----------
    meeting : Meeting or None
        Where those of its host find it.
    has_peers : bool
        Whether it can reduce with workers of other hosts.
    rate : float or None
        Bytes a second that its connection carries, if that was measured.
    """

    worker: str
    channel: Channel
    domain: Domain
    meeting: Meeting | None
    has_peers: bool = False
    rate: float | None = None


class Leases:
    """Makes the leases of a run and ends them.

    Parameters
    ----------
    client
        Whose tasks they are.
    run
        Names them.
    replica, keys
        What a lease builds its replica from, as bytes.
    memory
        Whose contents workers of this host are to read where it lies.
    gauge
        Measures links of workers on other hosts, as far as it matters.
    steps
        Whether these may own parameters, and step them.
    ready
        Called in a thread of this class's.
    tell
        Called with Refused or Left instead, if it does not come to that.
    """

    def __init__(
        self,
        client: Client,
        run: str,
        replica: bytes,
        keys: bytes,
        memory: Store | None,
        gauge: Gauge,
        steps: bool,
        ready: Callable[[Attached], None],
        tell: Callable[[Event], None],
    ) -> None:
        self._client, self._run = client, run
        self._packed = replica, keys
        self._memory = memory
        self._ready, self._tell = ready, tell
        self._futures: dict[str, Future] = {}
        self._news: dict[str, SimpleQueue[object]] = {}
        self._channels: dict[str, Channel] = {}  # of workers that are not ready
        self._gauge, self._steps = gauge, steps
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="dasktrain-attach")
        self._client.subscribe_topic(operation(run), self._announced)

    def make(self, worker: str, task: Task) -> None:
        """Start to make a lease that gets ready for `task`."""
        self._news[worker] = SimpleQueue()
        self._threads.submit(self._make, worker, task)

    def end(self, worker: str) -> None:
        """Have a lease that is not connected end; one that is ends with its connection."""
        future = self._futures.pop(worker, None)
        if future is not None and self._client.status == "running":
            self._client.cancel([future])
            future.release()
        self._interrupt(worker)
        self._gauge.forget(worker)

    def _interrupt(self, worker: str) -> None:
        """Have the thread that makes a worker's lease stop waiting."""
        self._hear(worker, AttachError("The lease is not wanted any more"))
        channel = self._channels.get(worker)
        if channel is not None:
            channel.abort()

    def close(self) -> dict[str, Future]:
        """Stop making leases; return those made, which end with their connections."""
        for worker in list(self._news):
            self._interrupt(worker)
        self._threads.shutdown(cancel_futures=True)
        if self._client.status == "running":
            self._client.unsubscribe_topic(operation(self._run))  # which keeps the handler, and so this object
        self._packed, self._memory = (b"", b""), None
        return dict(self._futures)

    def _announced(self, event: tuple[float, Any]) -> None:
        """Pass on what a lease logged; others may log there, too."""
        _, message = event
        if isinstance(message, dict) and isinstance(message.get("worker"), str):
            self._hear(message["worker"], "announced")

    def _hear(self, worker: str, news: object) -> None:
        if worker in self._news:
            self._news[worker].put(news)

    # -- one worker, in its thread ----------------------------------------------------------------------------

    def _make(self, worker: str, task: Task) -> None:
        deadline = monotonic() + seconds("timeouts.attach")
        try:
            self._submit(worker)
            self._await_announcement(worker, deadline)
            channel = self._channels[worker] = Channel(asyncio.run(self._connect(worker, deadline)))
            channel.receive(_rest(deadline))  # the lease has taken over
            channel = self._channels[worker] = offer(channel, self._memory, _rest(deadline))
            channel.send(*encode_attach(task, *self._packed, self._steps))
            domain = self._domain(worker, channel, deadline)
            staged, _ = channel.receive()  # its data is at hand, however long that takes
            meeting = Meeting(*staged["meeting"]) if "meeting" in staged else None
            has_peers = staged.get("peers") is True
            apart = has_peers and not isinstance(channel, SharedChannel)
            rate = self._gauge.rate(worker, channel) if apart else None
            self._ready(Attached(worker, self._channels.pop(worker), domain, meeting, has_peers, rate))
        except Exception as error:
            if worker in self._channels:
                self._channels.pop(worker).close()
            gone = isinstance(error, OSError)  # or is about to be
            text = f"{type(error).__name__}: {error}" if gone else str(error)
            self._tell(Left(worker, text) if gone else Refused(worker, text))

    def _submit(self, worker: str) -> None:
        patience, silence = seconds("timeouts.attach"), seconds("timeouts.silence")
        terms = Terms(self._run, worker, patience, silence, setting("cache"))
        future = self._client.submit(
            run_packed_with,
            versions(),
            pack(lease, terms),
            key=f"{LEASE}{self._run}-{worker}",
            workers=[worker],  # and no other, or it could be stolen; `end` cancels it if the worker goes
            pure=False,
            priority=100,
        )
        self._futures[worker] = future
        future.add_done_callback(lambda future: self._hear(worker, future))

    def _await_announcement(self, worker: str, deadline: float) -> None:
        try:
            news = self._news[worker].get(timeout=_rest(deadline))
        except Empty:
            raise AttachError(
                f"Worker {worker} must start its lease within {seconds('timeouts.attach'):g} s, however it did not; "
                "free a thread there or raise dasktrain.timeouts.attach"
            ) from None
        if isinstance(news, Future):
            found = news.exception() if news.status == "error" else news.result() if news.status == "finished" else None
            if isinstance(found, str):
                raise AttachError(found.format(worker=worker))
            if found is None:
                raise ConnectionError("it went away before it could be leased")
            raise AttachError(f"Worker {worker} must hold its lease, however {type(found).__name__}: {found}")
        if isinstance(news, DasktrainError):
            raise news

    async def _connect(self, worker: str, deadline: float) -> socket.socket:
        """Have the worker's server hand a connection to its lease."""
        try:
            comm = await connect(
                worker, timeout=min(CONNECT, _rest(deadline)), deserialize=False, **self._client.connection_args
            )
        except OSError as error:
            raise AttachError(
                f"Worker {worker} must be reachable from the driver, however {type(error).__name__}: {error}; run the "
                'driver where it can open connections to the workers, for example with driver="cluster"'
            ) from error
        request: dict[str, Any] = {"op": operation(self._run), "run": self._run}
        if worker.startswith("inproc://"):
            ours, theirs = socket.socketpair()
            await comm.write(request | {"pair": theirs})
            await comm.close()
            return ours
        return await handed_over(comm, request)

    @staticmethod
    def _domain(worker: str, channel: Channel, deadline: float) -> Domain:
        """Wait for the replica to be built; return what it says of its bits."""
        try:
            header, _ = channel.receive(_rest(deadline))
        except TimeoutError:
            raise AttachError(
                f"Worker {worker} must build its replica within {seconds('timeouts.attach'):g} s, however it did not; "
                "raise dasktrain.timeouts.attach"
            ) from None
        if "domain" not in header:
            failure = decode_reply(header, [])
            assert isinstance(failure, Failure)
            raise failed(failure, worker)
        domain: Domain = header["domain"]
        return domain


def _rest(deadline: float) -> float:
    return max(0.1, deadline - monotonic())


def versions() -> dict[str, str]:
    """Return what a worker must have as it is here."""
    return {
        "python": ".".join(map(str, sys.version_info[:2])),
        "torch": version("torch"),
        "dasktrain": version("dasktrain"),
    }


async def reach(workers: list[str], connection_args: dict[str, Any]) -> bool:
    """Return whether any of `workers` takes a connection."""

    async def one(worker: str) -> None:
        comm = await connect(worker, timeout=REACH, **connection_args)
        comm.abort()

    for attempt in asyncio.as_completed([one(worker) for worker in workers]):
        with suppress(OSError):
            await attempt
            return True
    return False
