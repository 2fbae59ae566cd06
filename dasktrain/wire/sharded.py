"""A worker's part in rounds that workers reduce among themselves: no link carries much more than the parameters.

Of the parameters the driver sends each worker the buckets that this one owns, and it passes them on to its peers. Of
the gradient each worker sends a bucket to its owner, which adds up the canonical tree and sends the driver the sum. So
far it is a scatter and all-gather, and a reduce-scatter and gather (Rabenseifner, 2004); which floats are added to
which is the tree's matter as ever. Of several workers on one host one takes part for all of them, see
:mod:`dasktrain.wire.together`.

Nobody waits without an end for a peer that is late or dies. Whoever lacks parameters tells the driver, and gets all of
them. What an owner has not got cannot rise, and goes up as it is; an answer tells the driver whose sums it has got, and
the driver asks the others to send theirs again, straight to it. What then comes twice counts once.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from time import monotonic

import numpy as np

from dasktrain.buckets import Rising
from dasktrain.errors import ReductionError, WireError
from dasktrain.messages import (
    Answer,
    Bucket,
    Failure,
    Header,
    Partial,
    Reply,
    Stream,
    Task,
    Vector,
    decode_part,
    decode_reply,
    encode_mark,
    encode_part,
    encode_reply,
)
from dasktrain.reduce import Node, subtrees
from dasktrain.wire.channel import Channel, Message
from dasktrain.wire.lines import Lines
from dasktrain.wire.ways import Sharded

#: seconds in which nothing comes or goes, after which peers are not waited for; or as long as the work itself took
SILENCE = 3.0
#: seconds between looks at the time, and between signs while nothing comes or goes
LOOK = 0.5
#: the driver's number among lines, where peers have their places
DRIVER = -1
#: what a worker tells the driver: that it waits for peers, that it lacks parameters of some owners, that it has sent
#: again what is some owners'; and the driver a worker: to do that
WAITS, LACKS, SENT_AGAIN, SEND_AGAIN = "waits", "lacks", "sent again", "send again"
#: what the header of an answer has: places of those whose sums this owner has got, and has sent
DELIVERED = "delivered"


def nobody() -> None:
    """Keep nobody waiting on."""


class Member:
    """One worker among its peers.

    Parameters
    ----------
    channel
        The driver's connection.
    meet
        Returns lines to the peers that can be had, and calls a function now and then meanwhile.
    stream
        What gradients are like, and parameters.
    """

    def __init__(self, channel: Channel, meet: Callable[[Sharded, Callable[[], None]], Lines], stream: Stream) -> None:
        self._channel, self._meet, self._stream = channel, meet, stream
        self._rising = Rising(stream.shards, self._send)
        self._parameters = np.empty(stream.cut.numbers, dtype=stream.dtype)
        self._way, self._mesh, self._lines = Sharded("", 0, (), ()), "", Lines()
        self._missing: dict[int, set[int]] = {}  # of owners by their places, offsets of parameters
        self._awaited: set[int] = set()  # places of peers whose sums are to come
        self._kept: list[Bucket] = []
        self._patience = SILENCE

    def begin(self, task: Task, way: Sharded, meanwhile: Callable[[], None] = nobody) -> Vector | None:
        """Begin a round; return its parameters, or None if some do not come, which the driver is told.

        `meanwhile` is called now and then while they come.
        """
        self._task, self._way, self._kept = task, self._known(task, way), []
        way = self._way
        if self._mesh != way.mesh:
            self.close()
            self._lines = self._meet(way, meanwhile)
            self._mesh = way.mesh
        self._rising.start(self._stream.cut, self._parameters.dtype, tops(way.tasks, self._stream.shards))
        owned = {place: set(self._stream.cut.owned(place, len(way.peers))) for place in range(len(way.peers))}
        self._missing = {place: offsets for place, offsets in owned.items() if offsets}
        self._awaited = set(range(len(way.peers))) - {way.place} if task.kind == "train" else set()
        self._lines.add(DRIVER, self._channel)
        self._serve_while(lambda: self._parameters_can_come() or self._lines.sending, meanwhile)
        if not self._missing:
            return self._parameters
        self.leave()
        self._channel.send(encode_mark(LACKS, task, sorted(self._missing)))
        return None

    def _known(self, task: Task, way: Sharded) -> Sharded:
        """Return a way with all that was told of it when its mesh was new."""
        if way.is_new:
            return way
        if (way.mesh, way.place) != (self._way.mesh, self._way.place):
            raise WireError("Peers must be told before they reduce, however they were not; report this")
        return replace(self._way, tasks=tuple(replace(task, start=t.start, stop=t.stop) for t in self._way.tasks))

    def take(self, reply: Reply) -> None:
        """Send something: a bucket to its owner, an answer after all that belongs to it."""
        if isinstance(reply, Bucket):
            self._kept.append(reply)
            self._give(reply)
            self._serve(0)
            return
        header, arrays = encode_reply(reply)
        if isinstance(reply, Answer):
            header |= self.finish(reply)
        else:
            self.leave()
        self._channel.send(header, arrays)

    def finish(self, answer: Answer, meanwhile: Callable[[], None] = nobody) -> Header:
        """Wait until all has come that this one owns, and gone that others do; return what tells whose sums have come.

        `answer` is to all that is computed on this host. `meanwhile` is called now and then.
        """
        self._patience = max(SILENCE, answer.seconds)
        if answer.task.kind == "train":
            ended = encode_reply(_empty(answer))
            for place in self._others():
                self._lines.post(place, *ended)
            self._add_nothing(answer)
        self._serve_while(lambda: self._sums_can_come() or self._lines.sending, meanwhile)
        for offset, node, values in self._rising.rest():
            self._send(offset, node, values)
        self._lines.remove(DRIVER)
        if self._awaited or self._lines.sending:
            self.close()
        return {DELIVERED: sorted(set(range(len(self._way.peers))) - self._awaited)}

    def leave(self) -> None:
        """Be of no further use to the peers in this round, which they see."""
        self._lines.remove(DRIVER)
        self.close()

    def send_again(self, task: Task, places: Iterable[int]) -> None:
        """Send the driver itself what some owners have not delivered of the latest task."""
        wanted = set(places)
        for bucket in self._kept if task == self._task else ():
            if self._owner(bucket.offset) in wanted:
                self._channel.send(*encode_reply(bucket))
        self._channel.send(encode_mark(SENT_AGAIN, task, sorted(wanted)))

    def close(self) -> None:
        """End the lines to all peers."""
        self._lines.close()
        self._mesh, self._lines = "", Lines()

    # -- sums -----------------------------------------------------------------------------------------------------

    def _give(self, bucket: Bucket) -> None:
        """Send a bucket to its owner, who may be this one."""
        place = self._owner(bucket.offset)
        if place == self._way.place:
            self._rising.add(bucket)
        else:
            self._lines.post(place, *encode_reply(bucket))

    def _add_nothing(self, answer: Answer) -> None:
        """Have the siblings of nodes without rows, of which there are no buckets, go up."""
        for partial in answer.partials:
            if partial.sums is None:
                for offset in self._stream.cut.owned(self._way.place, len(self._way.peers)):
                    self._rising.put(offset, (partial.start, partial.stop), None)

    def _send(self, offset: int, node: Node, values: Vector | None) -> None:
        """Send the driver a sum, whose memory is used again."""
        if values is not None:
            whole = replace(self._task, start=0, stop=self._stream.shards)
            self._lines.post(DRIVER, *encode_reply(Bucket(whole, *node, offset, values.copy())))

    # -- lines ----------------------------------------------------------------------------------------------------

    def _others(self) -> Iterator[int]:
        return (place for place in range(len(self._way.peers)) if place != self._way.place)

    def _owner(self, offset: int) -> int:
        """Return the place of the peer that owns a bucket."""
        return self._stream.cut.owner(offset, len(self._way.peers))

    def _sums_can_come(self) -> bool:
        """Whether sums are awaited, and whoever sends them is there."""
        return any(place in self._lines for place in self._awaited)

    def _parameters_can_come(self) -> bool:
        """Whether parameters are missing, and whoever sends them is there."""
        return any(place == self._way.place or place in self._lines for place in self._missing)

    def _serve_while(self, pending: Callable[[], bool], meanwhile: Callable[[], None]) -> None:
        """Serve all lines until there is nothing to wait for, or nobody to wait for."""
        began = told = called = monotonic()
        while pending() and (now := monotonic()) - (quiet := max(began, self._lines.active)) < self._patience:
            if now - max(quiet, told) >= LOOK:
                self._lines.post(DRIVER, encode_mark(WAITS, self._task))
                told = now
            if now - called >= LOOK:
                meanwhile()
                called = now
            self._serve(LOOK)

    def fileno(self) -> int:
        """Return what can be read from when there is something to serve."""
        return self._lines.fileno()

    def serve(self) -> None:
        """Send and take what can be at once."""
        self._serve(0)

    def _serve(self, timeout: float) -> None:
        for place, message in self._lines.served(timeout):
            if place == DRIVER:
                self._hear_driver(message)
            elif message is not None:
                try:
                    self._hear(place, message)
                except (WireError, ReductionError):
                    self._lines.drop(place)

    def _hear_driver(self, message: Message | None) -> None:
        if message is None:
            raise ConnectionResetError("the driver is gone")
        self._keep_part(self._way.place, *message)

    def _hear(self, place: int, message: Message) -> None:
        """Take what a peer sends: parameters, sums, and that these were all."""
        header, frames = message
        if "part" in header:
            self._keep_part(place, *message)
            return
        reply, own = decode_reply(header, frames), self._way.tasks[place]
        if reply.task != own or place not in self._awaited or isinstance(reply, Failure):
            raise WireError(f"A peer must send sums of {own}, however it sent some of {reply.task}; report this")
        if isinstance(reply, Answer):
            self._add_nothing(reply)
            self._awaited.discard(place)
            return
        if not own.start <= reply.start < reply.stop <= own.stop:
            raise WireError(f"Sums of {own} must be of its shards, however one is of {reply.start}; report this")
        if self._owner(reply.offset) != self._way.place:
            raise WireError(f"Buckets must go to their owner, however the one at {reply.offset} did not; report this")
        self._rising.add(reply)

    def _keep_part(self, place: int, header: dict[str, object], frames: list[object]) -> None:
        """Take a part of the parameters that a peer owns, and pass it on if it is one's own."""
        task, offset, values = decode_part(header, frames)
        kept = self._parameters[self._stream.cut.place(offset)]
        wanted = self._way.tasks[place], kept.dtype, len(kept)
        missing = self._missing.get(place, set())
        if (task, values.dtype, len(values)) != wanted or offset not in missing:
            raise WireError(
                f"Parts of {wanted} must come once, from their owner, however one at {offset} does not; report this"
            )
        kept[:] = values
        missing.remove(offset)
        if not missing:
            del self._missing[place]
        if place == self._way.place:
            for other in self._others():
                self._lines.post(other, *encode_part(task, offset, kept))


def tops(tasks: Iterable[Task], shards: int) -> Iterator[Node]:
    """Yield the fewest nodes of the tree over `shards` leaves that cover what is computed for tasks."""
    runs: list[Node] = []
    for task in sorted(tasks, key=lambda task: task.start):
        if runs and runs[-1][1] == task.start:
            runs[-1] = runs[-1][0], task.stop
        else:
            runs.append((task.start, task.stop))
    return chain.from_iterable(subtrees(*run, shards) for run in runs)


def _empty(answer: Answer) -> Answer:
    """Return what peers are to know of an answer: which nodes are without rows."""
    nodes = tuple(Partial(each.start, each.stop, None, None) for each in answer.partials if each.sums is None)
    return Answer(answer.task, nodes, answer.seconds)
