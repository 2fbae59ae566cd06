"""Leases on the workers of a Dask cluster, each at the end of one connection to its worker's own port.

A round is one message out and one back per worker. The scheduler sees leases start and end, nothing in between.
"""

import contextlib
import threading
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

from dask.delayed import Delayed
from distributed import Client

from dasktrain.config import seconds, setting
from dasktrain.errors import AttachError, BadInput, InsecureCluster, SchedulerLost, WireError
from dasktrain.events import Answered, Event, Failed, Joined, Left, Ready, Received, Waits
from dasktrain.messages import (
    Answer,
    Bucket,
    Failure,
    Header,
    Kind,
    State,
    Task,
    decode_mark,
    decode_places,
    decode_reply,
    encode_ask,
    encode_cut,
    encode_mark,
)
from dasktrain.shipping import pack
from dasktrain.topology import Reduction
from dasktrain.vector import plain_memory
from dasktrain.wire.adding import PASSED
from dasktrain.wire.bandwidth import Gauge
from dasktrain.wire.channel import Channel, Message
from dasktrain.wire.exposure import exposed
from dasktrain.wire.holding import UNLIKE
from dasktrain.wire.inbox import Inbox
from dasktrain.wire.leases import Attached, Leases, reach
from dasktrain.wire.member import LACKS, MISSED, SEND_AGAIN, SENT_AGAIN, WAITS
from dasktrain.wire.parties import Ask, Parties
from dasktrain.wire.peers import Peers
from dasktrain.wire.placing import LOOK, Placing, released
from dasktrain.wire.shared import POSSIBLE, SharedChannel, Store
from dasktrain.wire.tables import Changes
from dasktrain.wire.watch import Watch
from dasktrain.wire.ways import Way, encode_way, from_driver, without_peers

#: what other threads tell: events, and workers whose lease is attached
News = Event | Attached


class DaskWire:
    """Every worker of a cluster, through its client.

    Parameters
    ----------
    client
        A synchronous Client; left open.
    run
        Names the run; None: something random.
    """

    def __init__(self, client: Client, run: str | None = None) -> None:
        if client.asynchronous:
            raise BadInput("client must be synchronous, however it is asynchronous; make one without asynchronous=True")
        self.run = run or uuid.uuid4().hex[:12]
        self.workers: Sequence[str] = []
        self.threads = 1
        self.client = client
        self._placing = Placing(client)
        self._leases: Leases | None = None
        self._watch: Watch | None = None
        self._channels: dict[str, Channel] = {}
        #: worker -> frames of the bucket that came last, which is being added until the next look at events
        self._given: dict[str, list[Any]] = {}
        self._asked: dict[str, float] = {}  # worker -> since when it has had its task
        self._begins = False  # whether nobody looked at events since the round began
        self._asks: list[Ask] = []  # what is held back until somebody does
        self._ways: dict[str, Way] = {}  # of what the round began with
        self._parties = Parties()
        self._peers = Peers()
        self._state: State | None = None
        self._changes = Changes()
        self._inbox: Inbox[News] | None = None
        self._closing = threading.Lock()
        self._memory = Store() if POSSIBLE and setting("shared-memory") else None

    # -- before the run -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Wait for a worker."""
        patience = seconds("timeouts.workers")
        try:
            self.client.wait_for_workers(1, timeout=patience)
        except TimeoutError:
            raise AttachError(
                f"The cluster must have a worker within {patience:g} s, however "
                f"{self.client.scheduler.address} has none; start one with 'dask worker'"
            ) from None
        exposure = exposed(self.client.scheduler.address)
        if exposure is not None:
            warnings.warn(exposure, InsecureCluster, stacklevel=2)
        threads: dict[str, int] = self.client.nthreads()
        self.workers = sorted(threads)
        self.threads = setting("threads") or min(threads.values())

    def reachable(self) -> bool:
        """Return whether connections can be opened from here to workers that are there, to one of them at least."""
        workers = list(self.client.nthreads())
        return not workers or bool(self.client.sync(reach, workers, self.client.connection_args))

    def memory(self, size: int) -> Any:
        """Return memory for the state, which workers on this host will read where it lies."""
        return plain_memory(size) if self._memory is None else self._memory(size)

    def persist(self, tasks: Sequence[Delayed]) -> list[Delayed]:
        """Start tasks wherever Dask likes; what is returned holds their futures."""
        return self._placing.persist(tasks)

    def compute(self, tasks: Sequence[Delayed]) -> list[Any]:
        """Run tasks wherever Dask likes and gather their results."""
        return self._placing.compute(tasks)

    def place(self, kind: Kind, tasks: Sequence[Delayed], owners: Sequence[str]) -> list[str]:
        """Run tasks on their owners and hold the results there."""
        return self._placing.place(kind, tasks, owners)

    # -- members ------------------------------------------------------------------------------------------

    def attach(self, replica: bytes) -> None:
        """Watch who comes and goes; those that are here join."""
        keys = pack(dict, self._placing.keys)
        self._inbox = inbox = Inbox[News]()
        self._watch = Watch(self.client, inbox.tell)
        given = replica, keys, self._memory, Gauge(self._peers.depends), self._peers.may_step
        self._leases = Leases(self.client, self.run, *given, inbox.tell, inbox.tell)
        for worker in sorted(self.client.nthreads()):
            inbox.tell(Joined(worker))

    def choose(self, reduction: Reduction, state: State, shards: int) -> None:
        """Have workers elsewhere reduce among themselves, or not, or whichever is quicker."""
        self._peers.choose(reduction, state, shards, self.workers[:shards])  # the others are spares

    @property
    def bucket(self) -> int:
        """Numbers of each bucket of a gradient."""
        return self._peers.bucket

    def chosen(self) -> str:
        """Have gradients cut as suits their links; return what to tell of the way of rounds."""
        self._peers.settle()
        return self._peers.chosen()

    def lease(self, worker: str, task: Task) -> None:
        """Start to make a lease."""
        assert self._leases is not None
        self._leases.make(worker, task)

    def release(self, worker: str) -> None:
        """Close a worker's connection, which ends its lease."""
        assert self._leases is not None
        self._drop(worker)
        self._leases.end(worker)

    def _drop(self, worker: str) -> None:
        """Close a connection, which ends the lease at its other end."""
        self._asked.pop(worker, None)
        self._changes.forget(worker)
        self._parties.forget(worker)
        lost = self._peers.forget(worker)
        channel = self._channels.pop(worker, None)
        if channel is not None:
            assert self._inbox is not None
            self._inbox.forget(channel)
            channel.close()
        for other, task in lost:
            self._post(other, task, None)

    # -- rounds -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def round(self, state: State) -> Iterator[None]:
        """Take back the memory of old answers; at the end, copy what has not been sent of `state`."""
        for channel in self._channels.values():
            channel.reclaim()
        self._state, self._begins = state, True
        self._changes.begin(state)
        try:
            yield
        finally:
            self._begin()
            self._parties.end()
            self._peers.end()
            self._state = None
            if self._memory is not None:
                self._memory.turned()
            for channel in self._channels.values():
                channel.keep()

    def send(self, worker: str, task: Task) -> None:
        """Send a task and the round's state, as far as the connection takes it now.

        What a round begins with is held back until all of it is known, if it may be computed together.
        """
        if self._begins and (self._parties.may_meet(worker) or self._peers.may_reduce(worker)):
            self._asks.append((worker, task))
        else:
            self._post(worker, task, None)

    def _begin(self) -> None:
        """Send what was held back, once in a round."""
        if not self._begins:
            return
        asks, self._asks, self._begins = self._asks, [], False
        can_give = self._state is not None and not self._state.is_told_in_changes
        self._ways = self._parties.ways(asks, can_give)
        self._ways |= self._peers.ways(asks, self._ways)
        for worker, task in asks:
            self._post(worker, task, self._ways.get(worker))

    def _post(self, worker: str, task: Task, way: Way) -> None:
        channel, state = self._channels.get(worker), self._state
        if channel is None:
            return  # its leaving is in the news
        assert state is not None
        self._asked[worker] = monotonic()
        changes = state.is_told_in_changes and not isinstance(channel, SharedChannel)
        encode = partial(self._changes.encode, worker) if changes else encode_ask
        with_it = state if from_driver(way) else replace(state, parameters=state.parameters[:0])
        header, arrays = encode(task, with_it)
        header |= encode_cut(self.bucket) | encode_way(way)
        self._tell(worker, (header, arrays), *self._peers.parts(way, state))

    def _tell(self, worker: str, *messages: Message) -> None:
        """Send messages, as far as the connection takes them now; if it is gone, that is in the news."""
        channel = self._channels.get(worker)
        if channel is None:
            return
        assert self._inbox is not None
        try:
            for message in messages:
                channel.post(*message)
            if not channel.flush():
                self._inbox.watch(worker, channel, writing=True)
        except OSError as error:
            self._inbox.tell(self._lost(worker, error))

    def events(self, timeout: float) -> list[Event]:
        """Return what connections and other threads have to tell, as soon as there is something."""
        assert self._inbox is not None
        self._begin()
        events = self._heard(self._inbox) + self._settled()
        timeout = min(timeout, self._peers.rest())
        given, self._given = self._given, {}
        for worker in given.keys() & self._channels.keys():
            self._channels[worker].reuse(given[worker])
        # Those that gave a bucket may have more that no selector sees: TLS reads ahead.
        ready = dict.fromkeys(given, (True, False))
        for worker, readable, writable in self._inbox.wait(0 if events or given else timeout):
            ready[worker] = readable or worker in given, writable
        for worker, (readable, writable) in ready.items():
            if worker in self._channels:
                events += self._served(worker, readable, writable)
        events += self._heard(self._inbox) + self._settled()
        events += map(Waits, self._peers.waits())
        if not events and not self._channels and self._watch is not None and self._watch.lost:
            raise SchedulerLost(
                f"The scheduler must live as long as the run, however {self.client.scheduler.address} is gone and the "
                "workers with it; start the cluster again and resume from a checkpoint"
            )
        return events

    def _heard(self, inbox: "Inbox[News]") -> list[Event]:
        """Return what other threads told."""
        events: list[Event] = []
        for news in inbox.news():
            if isinstance(news, Attached):
                news.channel.unblock()
                self._channels[news.worker] = news.channel
                self._parties.add(news.worker, news.meeting if setting("shared-memory") else None)
                if news.has_peers and not isinstance(news.channel, SharedChannel):
                    self._peers.add(news.worker, news.rate)
                inbox.watch(news.worker, news.channel)
                events.append(Ready(news.worker, news.domain))
                continue
            if isinstance(news, Left):
                self.release(news.worker)
            events.append(news)
        return events

    def _served(self, worker: str, readable: bool, writable: bool) -> list[Event]:
        """Send and receive what one connection is ready for."""
        assert self._inbox is not None
        channel, events = self._channels[worker], list[Event]()
        try:
            if writable and channel.flush():
                self._inbox.watch(worker, channel)
            while readable and (message := channel.poll()) is not None:
                if "probed" in message[0]:
                    continue  # it was not waited for any longer
                if "mark" in message[0]:
                    self._heed(worker, message[0])
                    events.append(Waits(worker))
                    continue
                reply = decode_reply(*message)
                if isinstance(reply, Bucket):  # one at a time, so that those of all workers arrive side by side
                    self._given[worker] = message[1]
                    self._peers.received(worker, reply)
                    return [*events, Received(worker, reply)]
                if isinstance(reply, Failure):
                    self._asked.pop(worker, None)
                    events.append(Failed(worker, reply))
                else:
                    events += self._answered(worker, message[0], reply)
        except (OSError, WireError) as error:
            events.append(self._lost(worker, error))
        return events

    def _answered(self, worker: str, header: Header, answer: Answer) -> list[Event]:
        """Return the answer that a worker sent, which may be another's, if it counts at once."""
        passed = PASSED in header
        sender = self._parties.sender(worker, answer, passed)
        self._asked.pop(sender, None)
        if passed:
            counts = self._peers.passed(worker, sender, answer)
        else:
            missed = decode_places(header, MISSED) if MISSED in header else None
            counts = self._peers.answered(sender, answer, missed)
        return [Answered(sender, answer)] if counts else []

    def _heed(self, worker: str, header: Header) -> None:
        """Take what a worker tells of parameters that have not come to it, or of sums that it sent again."""
        (mark, task), places = decode_mark(header), decode_places(header)
        if mark == LACKS:
            if (giver := self._parties.giver(worker, task)) is not None:
                left = self._channels[giver].left if giver in self._channels else 0
                self._post(worker, task, self._parties.instead(worker, giver, left))
            elif self._peers.lacks(worker, task, places):
                self._post(worker, task, without_peers(self._ways.get(worker)))
        elif mark == SENT_AGAIN:
            self._peers.sent_again(worker, task, places)
        elif mark == UNLIKE:
            self._tell(worker, *self._peers.unlike(worker, task, places, self._state))
        elif mark != WAITS:
            raise WireError(f"A worker must tell what is known here, however it told {mark!r:.80}; report this")

    def _settled(self) -> list[Event]:
        """Return the answers of which all has come, and have sent again what will not come by way of others."""
        complete = self._peers.complete()
        for worker, task, places in self._peers.to_send_again():
            self._tell(worker, (encode_mark(SEND_AGAIN, task, sorted(places)), []))
        return [Answered(worker, answer) for worker, answer in complete]

    def _lost(self, worker: str, error: Exception) -> Left:
        self.release(worker)
        return Left(worker, f"{type(error).__name__}: {error}")

    # -- after the run ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connections, which ends the leases, and release the partitions."""
        with self._closing:
            stuck = {worker for worker, since in self._asked.items() if monotonic() - since > LOOK}
            ending = set(self._channels) - stuck
            for worker in list(self._channels):
                self._drop(worker)
            self._end_leases(ending)
            self._placing.close()
            if self._watch is not None:
                self._watch.close()
                self._watch = None
            if self._inbox is not None:
                for news in self._inbox.news():
                    if isinstance(news, Attached):  # too late to be used
                        news.channel.close()
                self._inbox.close()
                self._inbox = None

    def _end_leases(self, workers: set[str]) -> None:
        """Wait for the leases of workers that answer; all others end once theirs come round to it."""
        if self._leases is None:
            return
        futures, self._leases = self._leases.close(), None
        if self.client.status != "running":
            return
        here = self.client.nthreads()  # a lease whose worker is gone has ended, whatever Dask thinks
        ending = [future for worker, future in futures.items() if worker in here and worker in workers]
        if ending:
            self._placing.wait(ending, seconds("timeouts.close"))
        self.client.cancel(list(futures.values()))
        released(list(futures.values()))
