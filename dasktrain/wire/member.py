"""A worker's part in rounds that workers reduce among themselves: no link carries much more than the parameters.

Parameters and sums take a way that is a function of who sums what, see :mod:`dasktrain.wire.routes`. If each owns some
buckets, it has these of the parameters from the driver, or steps them itself, see :mod:`dasktrain.wire.holding`, and
passes them on to its peers; of the gradient each sends a bucket to its owner, which adds it up and sends the driver the
sum: a scatter and all-gather, and a reduce-scatter and gather (Rabenseifner, 2004). Along the tree each sends what it
has added to whoever adds the node above, and gets parameters from there: a pipelined reduction and broadcast (Träff,
Ripke, 2008, https://doi.org/10.1002/cpe.1250, section 2). Of several workers on one host one takes part for all of
them, see :mod:`dasktrain.wire.together`.

Nobody waits without an end for a peer that is late or dies; whoever waits itself tells those that wait for it. Whoever
lacks parameters tells the driver, and gets all of them. What has not come cannot rise, and the rest goes up as it is;
an answer tells the driver whose sums were missed, and whoever sent them, or has them from others, is asked to send them
again, straight to it. What then comes twice counts once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from time import monotonic

import numpy as np

from dasktrain.buckets import Rising
from dasktrain.errors import ReductionError, WireError
from dasktrain.messages import (
    Answer,
    Bucket,
    Header,
    Reply,
    Stream,
    Task,
    Vector,
    decode_end,
    decode_part,
    decode_places,
    decode_reply,
    encode_end,
    encode_mark,
    encode_part,
    encode_reply,
)
from dasktrain.reduce import Node, holds
from dasktrain.wire.channel import Channel, Message
from dasktrain.wire.holding import Holding
from dasktrain.wire.lines import Lines
from dasktrain.wire.routes import DRIVER, ByOwner, Routes, routes_along
from dasktrain.wire.ways import Among

#: seconds in which nothing comes from a peer, or goes to it, after which it is not waited for; for sums as long as
#: parameters or the work itself took, if that is longer
SILENCE = 3.0
#: seconds between looks at the time, and between signs to whoever waits
LOOK = 0.5
#: what a worker tells the driver, and peers: that it waits for others; and the driver: that it lacks parameters of some
#: peers, that it has sent again what it had sent some; and the driver a worker: to do that
WAITS, LACKS, SENT_AGAIN, SEND_AGAIN = "waits", "lacks", "sent again", "send again"
#: what the header of an answer has: places of those whose sums have not come here, or to whom some could not be sent
MISSED = "missed"


#: adds lines to the peers at some places, those that can be had, and calls a function now and then meanwhile
Meet = Callable[[Among, Iterable[int], Lines, Callable[[], None]], None]


def nobody() -> None:
    """Keep nobody waiting on."""


class Member:
    """One worker among its peers.

    Parameters
    ----------
    channel
        The driver's connection.
    meet
        Connects it with others.
    stream
        What gradients are like, and parameters.

    Attributes
    ----------
    patience : float
        Seconds that peers wait for each other.
    """

    def __init__(self, channel: Channel, meet: Meet, stream: Stream) -> None:
        self._channel, self._meet, self._stream = channel, meet, stream
        self._rising = Rising(stream.shards, self._risen)
        self._parameters = np.empty(stream.cut.numbers, dtype=stream.dtype)
        self._way, self._mesh, self._lines = Among("", 0, (), ()), "", Lines()
        self._holding = Holding(lambda header: self._lines.post(DRIVER, header))
        self._routes: Routes = ByOwner((), stream.shards, stream.cut)
        self._missing: dict[int, set[int]] = {}  # of those that give parameters, offsets
        self._lacking: set[int] = set()  # those who keep parameters from coming here
        self._senders: dict[Node, int] = {}  # of nodes whose sums come here
        self._awaited: dict[Node, int] = {}  # of which more is to come
        self._passed: set[Node] = set()  # of which others wait for more
        self._nothing: set[Node] = set()  # of what is sent, whose sums are of nothing
        self._missed: set[int] = set()
        self._kept: list[tuple[int, Bucket]] = []  # what was sent to whom
        self._who_waits: Callable[[], set[int]] = self._takers  # for this one
        self._meanwhile, self._looked = nobody, 0.0  # what is called, and when others were told, on the monotonic clock
        self.patience = SILENCE

    def recut(self, stream: Stream) -> None:
        """Reduce gradients that are cut in some way from the next mesh on."""
        self._stream = stream

    # -- a round --------------------------------------------------------------------------------------------------

    def begin(self, task: Task, way: Among, meanwhile: Callable[[], None] = nobody) -> Vector | None:
        """Begin a round; return its parameters, or None if some do not come, which the driver is told.

        `meanwhile` is called now and then while they come.
        """
        self._task, self._way, self._kept = task, self._known(way), []
        self._whole = replace(task, start=0, stop=self._stream.shards)
        self._expect(task.kind == "train")
        self._who_waits, self._meanwhile = (lambda: self._takers() | self._waiting()), meanwhile
        self._connect()
        began, self._who_waits = monotonic(), self._takers
        self._serve_while(lambda: bool(self._missing) and not self._lacking, self._missing)
        if not self._missing:
            self.patience = max(SILENCE, monotonic() - began)
            return self._parameters
        lacks = encode_mark(LACKS, task, sorted(self._lacking))
        self._lines.remove(DRIVER)
        self._channel.send(lacks)
        for other in self._routes.neighbours(self._way.place):
            self._lines.post(other, lacks)
        self._lines.flush()
        self._mesh = ""  # lines stay until others are met, so that what was sent arrives
        return None

    def _connect(self) -> None:
        """Have lines to the driver and to all neighbours that can be had; those that wait already are told."""
        neighbours = self._routes.neighbours(self._way.place)
        if self._mesh != self._way.mesh:
            self.close()
        self._lines.add(DRIVER, self._channel)
        if self._mesh != self._way.mesh:
            self._meet(self._way, neighbours, self._lines, self._wait_on)
            self._mesh = self._way.mesh
        for other in neighbours:
            if other not in self._lines:
                self._lose(other)

    def _known(self, way: Among) -> Among:
        """Return a way with all that was told of it when its mesh was new."""
        if way.is_new:
            runs = [(task.start, task.stop) for task in way.tasks]
            self._routes = routes_along(way.reduction, runs, self._stream.shards, self._stream.cut)
            return way
        if (way.mesh, way.place) != (self._way.mesh, self._way.place):
            raise WireError("Peers must be told before they reduce, however they were not; report this")
        return self._way

    def _expect(self, sums: bool) -> None:
        """Await parameters, and `sums` if there are to be any."""
        routes, place = self._routes, self._way.place
        self._missing, self._lacking = {}, set()
        for offset in self._stream.cut.offsets:
            self._missing.setdefault(routes.giver(place, offset), set()).add(offset)
        self._rising.start(self._stream.cut, self._parameters.dtype, routes.rising(place))
        self._senders = routes.awaited(place) if sums else {}
        self._awaited = dict(self._senders)
        self._passed = set(routes.passed(place)) if sums else set()
        self._nothing, self._missed, self.patience = set(), set(), SILENCE

    def take(self, reply: Reply) -> None:
        """Send something: a bucket to whoever adds it, an answer after all that belongs to it."""
        if isinstance(reply, Bucket):
            self._give(reply)
            self.serve()
            return
        header, arrays = encode_reply(reply)
        if isinstance(reply, Answer):
            header |= self.finish(reply)
        else:
            self._lines.remove(DRIVER)
            self.close()  # it is of no further use to its peers, which they see
        self._channel.send(header, arrays)

    def finish(self, answer: Answer, meanwhile: Callable[[], None] = nobody) -> Header:
        """Wait until all sums have come that this one adds, and gone that others do; return what tells who was missed.

        `answer` is to all that is computed on this host. `meanwhile` is called now and then.
        """
        self.patience = max(self.patience, answer.seconds)
        if answer.task.kind == "train":
            for partial in answer.partials:
                if partial.sums is None:
                    self._nothing.add(node := (partial.start, partial.stop))
                    self._add_nothing(node)
            self._end(self._routes.own(self._way.place))
        self._who_waits, self._meanwhile = self._waiting, meanwhile
        self._serve_while(lambda: bool(self._awaited), self._awaited.values())
        for offset, node, values in self._rising.rest():
            self._lines.post(DRIVER, *encode_reply(Bucket(self._whole, *node, offset, values.copy())))
        self._lines.remove(DRIVER)
        if self._missed:
            self._mesh = ""
        return {MISSED: sorted(self._missed)}

    def send_again(self, task: Task, places: Iterable[int]) -> None:
        """Send the driver itself what was sent to some peers of the latest task."""
        wanted = set(places)
        for place, bucket in self._kept if task == self._task else ():
            if place in wanted:
                self._channel.send(*encode_reply(bucket))
        self._channel.send(encode_mark(SENT_AGAIN, task, sorted(wanted)))

    def close(self) -> None:
        """End the lines to all peers."""
        self._lines.close()
        self._mesh, self._lines = "", Lines()
        self._holding.clear()

    # -- sums -----------------------------------------------------------------------------------------------------

    def _give(self, bucket: Bucket) -> None:
        """Send a bucket to whoever adds it, who may be this one."""
        place = self._routes.adder(bucket.offset, (bucket.start, bucket.stop))
        if place == self._way.place:
            self._rising.add(bucket)
            return
        if place == DRIVER:
            self._holding.summed(bucket)
        else:
            self._kept.append((place, bucket))
        self._lines.post(place, *encode_reply(bucket))

    def _risen(self, offset: int, node: Node, values: Vector | None) -> None:
        """Send on a sum that goes no further here, whose memory is used again."""
        if values is None:
            self._nothing.add(node)
        else:
            self._give(Bucket(self._whole, *node, offset, values.copy()))

    def _add_nothing(self, node: Node) -> None:
        """Have the sibling of a node without rows, of which there are no buckets, go up."""
        if self._way.place in self._routes.adders(node):
            for offset in self._routes.added(self._way.place):
                self._rising.put(offset, node, None)

    def _end(self, nodes: Sequence[Node]) -> None:
        """Tell those that add some nodes that no more of them follows."""
        told: dict[int, list[Node]] = {}
        for node in nodes:
            for place in self._routes.adders(node):
                told.setdefault(place, []).append(node)
        for place, ended in told.items():
            if place == self._way.place:
                self._heed_end(ended)
            else:
                nothing = [node for node in self._nothing if place in self._routes.adders(node)]
                self._lines.post(place, encode_end(self._whole, ended, nothing))

    def _heed_end(self, nodes: Iterable[Node]) -> None:
        """Await nothing more of some nodes; pass that on of those that they complete."""
        for node in nodes:
            self._awaited.pop(node, None)
        ended = [node for node in self._passed if not any(holds(node, part) for part in self._awaited)]
        self._passed.difference_update(ended)
        if ended:
            self._end(ended)

    # -- lines ----------------------------------------------------------------------------------------------------

    def _takers(self) -> set[int]:
        """Return whom parameters are to be passed on to that are missing."""
        place = self._way.place
        takers = (self._routes.takers(place, next(iter(offsets))) for offsets in self._missing.values())
        return set().union(*takers)

    def _waiting(self) -> set[int]:
        """Return who waits for sums of this one."""
        return set().union(*map(self._routes.adders, self._passed))

    def _serve_while(self, pending: Callable[[], bool], senders: Iterable[int]) -> None:
        """Serve all lines while something is to come from some peers, or to go."""
        began = self._looked = monotonic()
        while pending() or self._lines.sending:
            before = monotonic()
            self.serve(LOOK)
            if (now := monotonic()) - self._looked >= LOOK:
                self._wait_on()
                if now - before < 2 * LOOK:  # or what others sent meanwhile may lie here unread
                    self._give_up(senders, began)

    def _give_up(self, senders: Iterable[int], began: float) -> None:
        """Wait no more for peers from which nothing comes, nor for those to which nothing goes."""
        for place in self._lines.silent(senders, began, self.patience) - {DRIVER, self._way.place}:
            self._lose(place)

    def _wait_on(self) -> None:
        """Have those wait on that wait for this one, if nothing has gone to them for a while."""
        self._looked = monotonic()
        for place in self._lines.idle({DRIVER, *self._who_waits()}, LOOK):
            self._lines.post(place, encode_mark(WAITS, self._task))
        self._lines.flush()
        self._meanwhile()

    def _lose(self, place: int, lacking: Iterable[int] = ()) -> None:
        """Wait for nothing more from a peer, nor until all is sent to it; it may lack parameters of others itself."""
        if place in self._missing:
            self._lacking.update(lacking or {place})
        parts = [node for node, sender in self._awaited.items() if sender == place]
        if parts or place in self._lines.sending:
            self._missed.add(place)
        self._lines.drop(place)
        self._heed_end(parts)

    def fileno(self) -> int:
        """Return what can be read from when there is something to serve."""
        return self._lines.fileno()

    def serve(self, timeout: float = 0) -> None:
        """Send and take what can be, as soon as there is something, or at once."""
        for place, message in self._lines.served(timeout):
            if place == DRIVER:
                self._hear_driver(message)
            elif message is None:
                self._lose(place)
            else:
                try:
                    self._hear(place, message)
                except (WireError, ReductionError):
                    self._lose(place)

    def _hear_driver(self, message: Message | None) -> None:
        if message is None:
            raise ConnectionResetError("the driver is gone")
        if "over" in message[0]:
            self._lacking.add(self._way.place)
            return
        for part in self._holding.parts(*message):
            self._keep_part(DRIVER, *part)
        if monotonic() - self._looked >= LOOK:  # steps may take long
            self._wait_on()

    def _hear(self, place: int, message: Message) -> None:
        """Take what a peer sends: parameters, sums, that these were all, or that it waits itself."""
        header, frames = message
        if "part" in header:
            self._keep_part(place, *message)
        elif "ended" in header:
            self._hear_end(place, header)
        elif "mark" not in header:
            self._hear_sum(place, decode_reply(header, frames))
        elif header["mark"] == LACKS:
            self._lose(place, decode_places(header))

    def _hear_sum(self, place: int, reply: Reply) -> None:
        if not isinstance(reply, Bucket) or replace(reply.task, start=0, stop=self._whole.stop) != self._whole:
            raise WireError(f"A peer must send sums of {self._whole}, however it sent {reply!r:.200}; report this")
        self._check(place, (reply.start, reply.stop))
        if self._routes.adder(reply.offset, (reply.start, reply.stop)) != self._way.place:
            raise WireError(f"A bucket must go to whoever adds it, however {reply!r:.200} did not; report this")
        self._rising.add(reply)

    def _hear_end(self, place: int, header: Header) -> None:
        task, ended, nothing = decode_end(header)
        if task != self._whole:
            raise WireError(f"A peer must end sums of {self._whole}, however it ended some of {task}; report this")
        for node in (*ended, *nothing):
            self._check(place, node)
        for node in nothing:
            self._add_nothing(node)
        self._heed_end(ended)

    def _check(self, place: int, node: Node) -> None:
        """Refuse what is of no node that a peer is to send."""
        of_it = self._senders.get(node) == place or any(
            sender == place and holds(part, node) for part, sender in self._senders.items()
        )
        if not of_it:
            raise WireError(f"Peer {place} must send sums of its nodes, however it sent one of {node}; report this")

    def _keep_part(self, giver: int, header: Header, frames: list[object]) -> None:
        """Take a part of the parameters, and give it those that are to have it from here."""
        task, offset, values = decode_part(header, frames)
        kept = self._parameters[self._stream.cut.place(offset)]
        wanted = self._whole, kept.dtype, len(kept)
        missing = self._missing.get(giver, set())
        if (task, values.dtype, len(values)) != wanted or offset not in missing:
            raise WireError(
                f"Parts of {wanted} must come once, from who gives them, however one at {offset} does not; report this"
            )
        kept[:] = values
        missing.remove(offset)
        if not missing:
            del self._missing[giver]
        for taker in self._routes.takers(self._way.place, offset):
            self._lines.post(taker, *encode_part(task, offset, kept))
