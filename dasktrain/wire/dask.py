"""Leases on the workers of a Dask cluster, each at the end of one connection to its worker's own port.

A round is one message out and one back per worker. The scheduler sees the leases start and end, and
nothing in between.
"""

import asyncio
import contextlib
import selectors
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

import dask
from dask.delayed import Delayed
from dask.utils import parse_bytes, parse_timedelta
from distributed import Client, Future, wait
from distributed.comm import connect

from dasktrain.errors import AttachError, BadInput, DasktrainError
from dasktrain.fleet import Event, Joined, Left
from dasktrain.messages import Answer, Failure, Header, Kind, State, Task, decode_reply, encode_ask
from dasktrain.shipping import by_value, pack, run_packed
from dasktrain.wire import failed
from dasktrain.wire.channel import Channel, detach
from dasktrain.wire.lease import Terms, lease, operation

#: Overridden by ``dask.config`` under "dasktrain", for example DASK_DASKTRAIN__TIMEOUTS__ATTACH=2min
DEFAULTS = {
    "timeouts.workers": "60s",  # for a first worker to appear
    "timeouts.attach": "60s",  # for every worker to start its lease and build its replica
    "timeouts.round": "1h",  # for the slowest answer of a round
    "timeouts.close": "10s",  # for leases to end
    "threads": None,  # torch threads of a replica; None: the fewest any worker has
    "cache": "512MiB",  # other workers' partitions kept by a lease
}


def setting(name: str) -> Any:
    """Return one of DEFAULTS as dask.config has it."""
    return dask.config.get(f"dasktrain.{name}", DEFAULTS[name])


def seconds(name: str) -> float:
    """Return a time-out of DEFAULTS in seconds."""
    return float(parse_timedelta(setting(name), default="seconds"))


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
        self._leases: dict[str, Future] = {}
        self._channels: dict[str, Channel] = {}
        self._events: list[Event] = []

    # -- before the run -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Wait for a worker, and refuse workers whose Python or torch is not the client's."""
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
        found = self._client.run(_versions, workers=list(self.workers), on_error="return")
        for worker in self.workers:
            _check_versions(worker, found[worker])

    def compute(self, tasks: Sequence[Delayed]) -> list[Any]:
        """Run tasks wherever Dask likes and gather their results."""
        with _quiet_graphs():
            futures = self._client.compute(list(tasks))
        try:
            results: list[Any] = self._client.gather(futures)
        finally:
            _release(futures)
        return results

    def place(self, kind: Kind, tasks: Sequence[Delayed], owners: Sequence[str]) -> None:
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
        self._wait(self._blocks[kind])
        for future in self._blocks[kind]:
            if future.status == "error":
                future.result()

    # -- leases -------------------------------------------------------------------------------------------

    def attach(self, replica: bytes) -> None:
        """Make a lease on every worker, connect to it and have it build its replica."""
        deadline = monotonic() + seconds("timeouts.attach")
        announced: SimpleQueue[str | Future] = SimpleQueue()
        topic = operation(self.run)
        self._client.subscribe_topic(topic, lambda event: announced.put(event[1]["worker"]))
        try:
            for worker in self.workers:
                self._leases[worker] = self._lease(worker)
                self._leases[worker].add_done_callback(announced.put)
            self._await_leases(announced, deadline)
        finally:
            self._client.unsubscribe_topic(topic)
        asyncio.run(self._connect(deadline))
        keys = {kind: [future.key for future in futures] for kind, futures in self._blocks.items()}
        self._build(replica, pack(dict, keys), deadline)
        self._events += [Joined(worker) for worker in self.workers]

    def _lease(self, worker: str) -> Future:
        terms = Terms(self.run, worker, seconds("timeouts.attach"), parse_bytes(setting("cache")))
        return self._client.submit(
            run_packed,
            pack(lease, terms),
            key=f"dasktrain-lease-{self.run}-{worker}",
            workers=[worker],
            # Pinned, yet allowed elsewhere: a lease whose worker died then ends at once instead of waiting.
            allow_other_workers=True,
            pure=False,
            priority=100,
        )

    def _await_leases(self, announced: "SimpleQueue[str | Future]", deadline: float) -> None:
        waiting = set(self.workers)
        while waiting:
            try:
                news = announced.get(timeout=max(0.0, deadline - monotonic()))
            except Empty:
                raise AttachError(
                    f"Every worker must start its lease within {seconds('timeouts.attach'):g} s, however "
                    f"{', '.join(sorted(waiting))} did not; free a thread there or raise dasktrain.timeouts.attach"
                ) from None
            if isinstance(news, Future):
                worker = next(name for name, future in self._leases.items() if future is news)
                error = news.exception() if news.status == "error" else "it ended"
                raise AttachError(f"Worker {worker} must hold its lease, however {error}")
            waiting.discard(news)

    async def _connect(self, deadline: float) -> None:
        """Have every worker's server hand a connection to its lease."""

        async def one(worker: str) -> None:
            patience = max(0.1, deadline - monotonic())
            comm = await connect(worker, timeout=patience, deserialize=False, **self._client.connection_args)
            request = {"op": operation(self.run), "run": self.run}
            if worker.startswith("inproc://"):
                ours, theirs = socket.socketpair()
                await comm.write(request | {"pair": theirs})
                await comm.close()
            else:
                await comm.write(request)
                while comm.stream.writing():
                    await asyncio.sleep(0)
                ours = detach(comm)
            self._channels[worker] = Channel(ours)

        with _reachable():
            await asyncio.gather(*(one(worker) for worker in self.workers))

    def _build(self, replica: bytes, keys: bytes, deadline: float) -> None:
        """Have every lease build its replica, all at once."""
        with _reachable():
            for channel in self._channels.values():
                channel.receive(max(0.1, deadline - monotonic()))  # the lease has taken over
                channel.send({}, [replica, keys])
            for worker, channel in self._channels.items():
                header, _ = channel.receive(max(0.1, deadline - monotonic()))
                if "ready" not in header:
                    raise self._failed(header, worker)

    @staticmethod
    def _failed(header: Header, worker: str) -> DasktrainError:
        failure = decode_reply(header, [])
        assert isinstance(failure, Failure)
        return failed(failure, worker)

    # -- rounds -------------------------------------------------------------------------------------------

    def ask(self, tasks: Mapping[str, Task], state: State) -> list[Answer]:
        """Send all tasks, then read answers as they come; stop at the first worker that is lost."""
        deadline = monotonic() + seconds("timeouts.round")
        with selectors.DefaultSelector() as selector:
            for worker, task in tasks.items():
                try:
                    self._channels[worker].send(*encode_ask(task, state))
                except OSError as error:
                    return self._lost(worker, error)
                selector.register(self._channels[worker], selectors.EVENT_READ, worker)
            answers: list[Answer] = []
            while selector.get_map():
                ready = selector.select(max(0.0, deadline - monotonic()))
                if not ready:
                    late = min(key.data for key in selector.get_map().values())
                    return self._lost(late, TimeoutError("no answer within dasktrain.timeouts.round"))
                for key, _ in ready:
                    selector.unregister(key.fileobj)
                    try:
                        header, frames = self._channels[key.data].receive(max(0.1, deadline - monotonic()))
                    except OSError as error:
                        return self._lost(key.data, error)
                    reply = decode_reply(header, frames)
                    if isinstance(reply, Failure):
                        raise failed(reply, key.data)
                    answers.append(reply)
        return answers

    def _lost(self, worker: str, error: OSError) -> list[Answer]:
        self._events.append(Left(worker, f"{type(error).__name__}: {error}"))
        return []

    def changes(self) -> list[Event]:
        """Return who joined and who left since the last call."""
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Close the connections, which ends the leases, and release the partitions."""
        attached = list(self._channels)
        for channel in self._channels.values():
            channel.close()
        self._channels = {}
        if attached:
            here = self._client.nthreads()  # a lease whose worker is gone has ended, whatever Dask thinks
            ending = [self._leases[worker] for worker in attached if worker in here]
            with contextlib.suppress(TimeoutError):
                self._wait(ending, seconds("timeouts.close"))
        self._client.cancel(list(self._leases.values()))
        for futures in self._blocks.values():
            _release(futures)
        self._leases, self._blocks = {}, {}

    def _wait(self, futures: list[Future], timeout: float | None = None) -> None:
        with self._client.as_current():  # wait() asks for the current client, which need not be this one
            wait(futures, timeout=timeout)


@contextlib.contextmanager
def _reachable() -> Iterator[None]:
    """Turn what a connection raises before the first round into advice."""
    try:
        yield
    except OSError as error:  # TimeoutError is one
        raise AttachError(
            f"Workers must be reachable from the driver, however {type(error).__name__}: {error}; run the client where "
            "it can open connections to the workers"
        ) from error


def _release(futures: Sequence[Future]) -> None:
    """Let go of results now, and not when the last traceback that mentions them is forgotten.

    Not cancel: another run of this client may hold the same partitions.
    """
    for future in futures:
        future.release()


def _quiet_graphs() -> Any:
    """Let pandas and NumPy input travel in the graph, which is where Dask can recompute it from."""
    return dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"})


@by_value
def _versions() -> dict[str, str]:
    import sys
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": ".".join(map(str, sys.version_info[:2]))}
    for package in ("torch", "dasktrain"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def _check_versions(worker: str, found: Any) -> None:
    if isinstance(found, BaseException):
        raise AttachError(f"Worker {worker} must run code, however {type(found).__name__}: {found}")
    wanted = {
        "python": ".".join(map(str, sys.version_info[:2])),
        "torch": version("torch"),
        "dasktrain": version("dasktrain"),
    }
    for package, here in wanted.items():
        if found[package] != here:
            raise AttachError(
                f"Every worker must have the client's {package} {here}, however on {worker} it is "
                f"{found[package]}; install the same there"
            )
