"""Leases on the workers of a Dask cluster, each at the end of one connection to its worker's own port.

A round is one message out and one back per worker. The scheduler sees the leases start and end, and
nothing in between.
"""

import contextlib
import selectors
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from operator import attrgetter
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

import dask
from dask.delayed import Delayed
from distributed import Client, Future, wait

from dasktrain.config import seconds, setting
from dasktrain.errors import AttachError, BadInput, SchedulerLost, WireError
from dasktrain.events import Answered, Domain, Event, Failed, Joined, Left, Ready
from dasktrain.messages import Failure, Kind, State, Task, decode_reply, encode_ask
from dasktrain.shipping import pack
from dasktrain.wire.channel import Channel
from dasktrain.wire.leases import Leases
from dasktrain.wire.pins import unpin
from dasktrain.wire.silence import expel_silent
from dasktrain.wire.watch import Watch

#: seconds between looks at whether a worker that holds something up is still heard of
LOOK = 1.0
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class DaskWire:
    """Every worker of a cluster, through its client.

    Parameters
    ----------
    client
        A synchronous Client; left open.
    """

    def __init__(self, client: Client) -> None:
        if client.asynchronous:
            raise BadInput("client must be synchronous, however it is asynchronous; make one without asynchronous=True")
        self.run = uuid.uuid4().hex[:12]
        self.workers: Sequence[str] = []
        self.threads = 1
        self._client = client
        self._blocks: dict[Kind, list[Future]] = {}
        self._leases: Leases | None = None
        self._watch: Watch | None = None
        self._channels: dict[str, Channel] = {}
        self._asked: dict[str, float] = {}  # worker -> since when it has had its task
        self._state: State | None = None
        self._news: SimpleQueue[Event | tuple[str, Channel, Domain]] = SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._bell, self._rung = socket.socketpair()  # rings for what other threads put into the news
        for end in (self._bell, self._rung):
            end.setblocking(False)
        self._selector.register(self._rung, READ)
        self._closing = threading.Lock()

    # -- before the run -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Wait for a worker."""
        patience = seconds("timeouts.workers")
        try:
            self._client.wait_for_workers(1, timeout=patience)
        except TimeoutError:
            raise AttachError(
                f"The cluster must have a worker within {patience:g} s, however "
                f"{self._client.scheduler.address} has none; start one with 'dask worker'"
            ) from None
        threads: dict[str, int] = self._client.nthreads()
        self.workers = sorted(threads)
        self.threads = setting("threads") or min(threads.values())

    def compute(self, tasks: Sequence[Delayed]) -> list[Any]:
        """Run tasks wherever Dask likes and gather their results."""
        with _quiet_graphs():
            futures = self._client.compute(list(tasks))
        try:
            self._await(futures)
            results: list[Any] = self._client.gather(futures)
        finally:
            _release(futures)
        return results

    def place(self, kind: Kind, tasks: Sequence[Delayed], owners: Sequence[str]) -> list[str]:
        """Run tasks on their owners and hold the results there."""
        futures: dict[int, Future] = {}
        for owner in sorted(set(owners)):
            mine = [number for number, name in enumerate(owners) if name == owner]
            with _quiet_graphs():
                made = self._client.compute(
                    [tasks[number] for number in mine], workers=[owner], allow_other_workers=True
                )
            futures.update(zip(mine, made, strict=True))
        self._blocks[kind] = [futures[number] for number in range(len(tasks))]
        self._await(self._blocks[kind])
        self._client.run_on_scheduler(unpin, [future.key for future in self._blocks[kind]], gone=False)
        for future in self._blocks[kind]:
            if future.status == "error":
                future.result()
        fingerprints = self._client.map(attrgetter("fingerprint"), self._blocks[kind], pure=False)
        try:
            self._await(fingerprints)
            found: list[str] = self._client.gather(fingerprints)
        finally:
            _release(fingerprints)
        return found

    def _await(self, futures: Sequence[Future], timeout: float | None = None) -> None:
        """Wait until tasks have ended, giving up workers that have fallen silent."""
        deadline = None if timeout is None else monotonic() + timeout
        with self._client.as_current():  # wait() asks for the current client, which need not be this one
            while True:
                patience = LOOK if deadline is None else min(LOOK, deadline - monotonic())
                with contextlib.suppress(TimeoutError):
                    wait(futures, timeout=max(0.0, patience))
                    return
                if deadline is not None and monotonic() >= deadline:
                    return
                self._client.sync(expel_silent, self._client.scheduler, self._client.rpc)
                self._client.run_on_scheduler(unpin, [future.key for future in futures], gone=True)

    # -- members ------------------------------------------------------------------------------------------

    def attach(self, replica: bytes) -> None:
        """Watch who comes and goes; those that are here join."""
        keys = pack(dict, {kind: [future.key for future in futures] for kind, futures in self._blocks.items()})
        self._watch = Watch(self._client, self._tell)
        self._leases = Leases(self._client, self.run, replica, keys, lambda *attached: self._tell(attached), self._tell)
        for worker in sorted(self._client.nthreads()):
            self._tell(Joined(worker))

    def _tell(self, news: Event | tuple[str, Channel, Domain]) -> None:
        """Be told something by another thread."""
        self._news.put(news)
        with contextlib.suppress(OSError):  # full: it rings already; closed: nobody listens
            self._bell.send(b"!")

    def lease(self, worker: str, task: Task) -> None:
        """Start to make a lease."""
        assert self._leases is not None
        self._leases.make(worker, task)

    def release(self, worker: str) -> None:
        """Close a worker's connection, which ends its lease."""
        self._forget(worker)

    def _forget(self, worker: str) -> None:
        assert self._leases is not None
        self._drop(worker)
        self._leases.end(worker)

    def _drop(self, worker: str) -> None:
        """Close a connection, which ends the lease at its other end."""
        self._asked.pop(worker, None)
        channel = self._channels.pop(worker, None)
        if channel is not None:
            self._selector.unregister(channel)
            channel.close()

    # -- rounds -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def round(self, state: State) -> Iterator[None]:
        """Take back the memory of old answers; at the end, copy what has not been sent of `state`."""
        for channel in self._channels.values():
            channel.reclaim()
        self._state = state
        try:
            yield
        finally:
            self._state = None
            for channel in self._channels.values():
                channel.keep()

    def send(self, worker: str, task: Task) -> None:
        """Send a task and the round's state, as far as the connection takes it now."""
        channel = self._channels.get(worker)
        if channel is None:
            return  # its leaving is in the news
        assert self._state is not None
        self._asked[worker] = monotonic()
        try:
            channel.post(*encode_ask(task, self._state))
            if not channel.flush():
                self._selector.modify(channel, READ | WRITE, worker)
        except OSError as error:
            self._tell(self._lost(worker, error))

    def events(self, timeout: float) -> list[Event]:
        """Return what connections and other threads have to tell, as soon as there is something."""
        events = self._heard()
        for key, mask in self._selector.select(0 if events else timeout):
            if key.fileobj is self._rung:
                with contextlib.suppress(OSError):
                    self._rung.recv(4096)
            elif key.data in self._channels:
                events += self._served(key.data, mask)
        events += self._heard()
        if not events and not self._channels and self._watch is not None and self._watch.lost:
            raise SchedulerLost(
                f"The scheduler must live as long as the run, however {self._client.scheduler.address} is gone and the "
                "workers with it; start the cluster again and resume from a checkpoint"
            )
        return events

    def _heard(self) -> list[Event]:
        """Return what other threads told."""
        events: list[Event] = []
        with contextlib.suppress(Empty):
            while True:
                news = self._news.get_nowait()
                if isinstance(news, tuple):
                    worker, channel, domain = news
                    channel.unblock()
                    self._channels[worker] = channel
                    self._selector.register(channel, READ, worker)
                    events.append(Ready(worker, domain))
                    continue
                if isinstance(news, Left):
                    self._forget(news.worker)
                events.append(news)
        return events

    def _served(self, worker: str, mask: int) -> list[Event]:
        """Send and receive what one connection is ready for."""
        channel, events = self._channels[worker], list[Event]()
        try:
            if mask & WRITE and channel.flush():
                self._selector.modify(channel, READ, worker)
            while mask & READ and (message := channel.poll()) is not None:
                self._asked.pop(worker, None)
                reply = decode_reply(*message)
                events.append(Failed(worker, reply) if isinstance(reply, Failure) else Answered(worker, reply))
        except (OSError, WireError) as error:
            events.append(self._lost(worker, error))
        return events

    def _lost(self, worker: str, error: Exception) -> Left:
        self._forget(worker)
        return Left(worker, f"{type(error).__name__}: {error}")

    # -- after the run ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connections, which ends the leases, and release the partitions."""
        with self._closing:
            stuck = {worker for worker, since in self._asked.items() if monotonic() - since > LOOK}
            ending = set(self._channels) - stuck
            for worker in list(self._channels):
                self._drop(worker)
            self._bell.close()
            if self._rung.fileno() >= 0:
                self._selector.unregister(self._rung)
            self._rung.close()
            if self._client.status == "running":
                self._end_leases(ending)
            for futures in self._blocks.values():
                _release(futures)
            self._blocks = {}
            if self._watch is not None:
                self._watch.close()
                self._watch = None

    def _end_leases(self, workers: set[str]) -> None:
        """Wait for the leases of workers that answer; all others end once theirs come round to it."""
        if self._leases is None:
            return
        futures = self._leases.close()
        here = self._client.nthreads()  # a lease whose worker is gone has ended, whatever Dask thinks
        ending = [future for worker, future in futures.items() if worker in here and worker in workers]
        if ending:
            self._await(ending, seconds("timeouts.close"))
        self._client.cancel(list(futures.values()))
        self._leases = None


def _release(futures: Sequence[Future]) -> None:
    """Let go of results now, and not when the last traceback that mentions them is forgotten.

    Not cancel: another run of this client may hold the same partitions.
    """
    for future in futures:
        future.release()


def _quiet_graphs() -> Any:
    """Let pandas and NumPy input travel in the graph, which is where Dask can recompute it from."""
    return dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"})
