"""A worker that gives others of its host parameters, adds up what they sum, and sends for all of them."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
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
    decode_mark,
    decode_reply,
    encode_mark,
    encode_part,
    encode_reply,
)
from dasktrain.reduce import Node, subtrees
from dasktrain.wire import passing
from dasktrain.wire.channel import Channel, Message, readable
from dasktrain.wire.gate import Gate
from dasktrain.wire.member import Member
from dasktrain.wire.passing import COMES, SENT, WAIT
from dasktrain.wire.shared import SharedChannel, Store
from dasktrain.wire.ways import Joint, whole

#: whoever adds waits for the others as long again as it worked itself, giving them parameters and computing, and at
#: least so many seconds; as many for those to come that it is to give them to
LEAST = 0.5
#: what the header of another worker's answer has, which is passed on to the driver
PASSED = "passed"


class Adding:
    """Gives other workers of this host parameters, adds up what they sum, and sends for all of them."""

    def __init__(self, channel: Channel, gate: Gate, store: Store, stream: Stream) -> None:
        self._channel, self._gate, self._store, self._stream = channel, gate, store, stream
        self._rising = Rising(stream.shards, self._send)
        self._parameters: Vector | None = None  # memory of those that are given
        self._tasks: dict[SharedChannel, Task] = {}  # what comes on each line
        self._answers: dict[SharedChannel, Answer] = {}
        self._member: Member | None = None  # among peers that sums are for
        self._can_give = False  # whether parameters are laid out
        self._given: set[SharedChannel] = set()  # who has been given them
        self._began = 0.0  # when, on the monotonic clock, there was something to compute
        self._signed = 0.0  # when, on the monotonic clock, others were last told to wait on

    def recut(self, stream: Stream) -> None:
        """Add gradients that are cut in some way from the next task on."""
        self._stream = stream

    def begin(self, task: Task, way: Joint, parameters: Vector, member: Member | None) -> Vector | None:
        """Expect the sums of other tasks beside those of one's own; give their workers parameters if they lack them.

        Return the parameters, or None if they do not come from peers.
        """
        self._task, self._joint = task, whole(task, way)
        self._awaited = set(way.tasks)
        self._tasks = {line: told for line, told in self._tasks.items() if told in self._awaited}
        self._can_give, self._given, self._member = False, set(), None
        stream = self._stream
        tops = subtrees(self._joint.start, self._joint.stop, stream.shards)
        self._rising.start(stream.cut, np.dtype(stream.dtype), tops)
        if way.among is not None:
            assert member is not None  # or the driver could not know of a way
            self._member, known = member, member.begin(task, way.among, self._welcome)
            if known is None:
                return None
            parameters = known
        self._began = monotonic()
        if way.gives:
            self._give(parameters)
        return parameters

    def _welcome(self) -> None:
        """Hear who comes, and have those wait on for parameters that are on their way from peers."""
        self._hear(0)
        self._sign()

    def _give(self, parameters: Vector) -> None:
        """Lay parameters out for all who come soon; whoever still copies the last ones sees that they change."""
        self._store.turned()
        if self._parameters is None:
            memory = self._store(parameters.nbytes)
            self._parameters = np.frombuffer(memory, dtype=parameters.dtype, count=len(parameters))
        self._parameters[:] = parameters
        self._can_give = True
        for line in self._gate.lines:
            self._give_to(line)
        deadline = monotonic() + LEAST
        while len(self._given & self._tasks.keys()) < len(self._awaited) and (rest := deadline - monotonic()) > 0:
            self._hear(rest)

    def _give_to(self, line: SharedChannel) -> None:
        if self._can_give and self._parameters is not None and line not in self._given:
            self._given.add(line)
            self._post(line, *encode_part(self._task, 0, self._parameters))

    def take(self, reply: Reply) -> None:
        """Add what this worker sums; after its answer wait for the others and send what is left."""
        if isinstance(reply, Bucket):
            self._rising.add(reply)
            self._hear(0)
            return
        if isinstance(reply, Answer):
            self._add_nothing(reply)
            self._await_others()
        elif self._member is not None:
            self._fail(reply, self._member)
            return
        for offset, node, values in self._rising.rest():
            self._send(offset, node, values)
        header, arrays = encode_reply(reply)
        if isinstance(reply, Answer) and self._member is not None:
            header |= self._member.finish(self._with_others(reply), self._sign)
        for answer in self._answers.values():
            told, sums = encode_reply(answer)
            self._tell_driver(told | {PASSED: True}, sums)
        self._tell_driver(header, arrays)
        for line in list(self._tasks):
            if line in self._answers:
                self._tell(line, SENT)
            else:
                self._drop(line)  # it sends for itself
        self._tasks, self._answers = {}, {}

    def _fail(self, failure: Reply, member: Member) -> None:
        """Tell the driver what fails, and have others send for themselves what peers may not get any more."""
        for line in list(self._tasks):
            self._drop(line)
        self._answers = {}
        member.take(failure)

    def _with_others(self, answer: Answer) -> Answer:
        """Return an answer to all that is added here."""
        partials = [each.partials for each in (answer, *self._answers.values())]
        return replace(answer, task=self._joint, partials=tuple(chain.from_iterable(partials)))

    def _await_others(self) -> None:
        """Wait for all that is to come, half as long as peers would; or until the driver is gone."""
        worked = monotonic() - self._began
        deadline = monotonic() + (
            max(LEAST, worked) if self._member is None else max(self._member.patience, worked) / 2
        )
        while self._awaited and (rest := deadline - monotonic()) > 0 and not self._channel.readable(0):
            if self._member is None:
                self._hear(min(rest, passing.SIGN))
            else:
                readable(min(rest, passing.SIGN), self._gate, self._member)
                self._member.serve()
                self._hear(0)
            self._sign()

    def _hear(self, timeout: float) -> None:
        """Take what others send."""
        for line, message in self._gate.heard(timeout):
            try:
                if message is None:
                    raise WireError("A worker must stay until its answer is sent, however it is gone")
                self._heed(line, message)
            except (WireError, ReductionError):
                self._drop(line)

    def _heed(self, line: SharedChannel, message: Message) -> None:
        header, frames = message
        if "mark" in header:
            mark, task = decode_mark(header)
            if mark != COMES or task not in self._awaited or task in self._tasks.values():
                raise WireError(f"Sums of {task} must be awaited from this worker, however they are not; report this")
            line.reclaim()
            self._tasks[line] = task
            self._give_to(line)
            return
        reply, own = decode_reply(header, frames), self._tasks.get(line)
        if own is None or reply.task != own or line in self._answers:
            raise WireError(f"A worker must send sums of {own}, however it sent some of {reply.task}; report this")
        if isinstance(reply, Bucket):
            if not own.start <= reply.start < reply.stop <= own.stop:
                raise WireError(f"Sums of {own} must be of its shards, however one is of {reply.start}; report this")
            self._rising.add(reply)
        elif isinstance(reply, Answer):
            self._add_nothing(reply)
            self._answers[line] = reply
            self._awaited.discard(own)
        else:
            raise WireError("A worker must tell the driver itself what fails, however it told another; report this")

    def _add_nothing(self, answer: Answer) -> None:
        """Have the siblings of nodes without rows, of which there are no buckets, go up."""
        for partial in answer.partials:
            if partial.sums is None:
                for offset in self._stream.cut.offsets:
                    self._rising.put(offset, (partial.start, partial.stop), None)

    def _send(self, offset: int, node: Node, values: Vector | None) -> None:
        if values is None:
            return
        if self._member is not None:
            self._member.take(Bucket(self._joint, *node, offset, values.copy()))
            self._sign()
        else:
            self._tell_driver(*encode_reply(Bucket(self._joint, *node, offset, values)))

    def _tell_driver(self, header: Header, arrays: Sequence[Vector]) -> None:
        """Send the driver something, and have others wait on, however long that takes."""
        self._channel.unblock()
        self._channel.post(header, arrays)
        while not self._channel.flush():
            self._sign()
            self._channel.writable(passing.SIGN)
        self._channel.block()
        self._sign()

    def _sign(self) -> None:
        """Have those wait on that have come, now and then; who has not read the last sign needs no other."""
        if monotonic() - self._signed < passing.SIGN:
            return
        self._signed = monotonic()
        for line in list(self._tasks):
            if not line.left:
                self._tell(line, WAIT)

    def _tell(self, line: SharedChannel, mark: str) -> None:
        self._post(line, encode_mark(mark, self._tasks[line]))

    def _post(self, line: SharedChannel, header: Header, arrays: Sequence[Vector] = ()) -> None:
        with suppress(OSError):  # it is gone, or does not listen
            line.post(header, arrays)
            if line.flush():
                return
        self._drop(line)

    def _drop(self, line: SharedChannel) -> None:
        """End a line, and wait for nothing more of it."""
        self._gate.drop(line)
        self._given.discard(line)
        self._awaited.discard(self._tasks.pop(line, self._task))
