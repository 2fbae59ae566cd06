"""Workers of one host that send together: one adds up what all of them sum, and the driver's link carries that once.

The others leave their buckets in memory that it reads, and their answers with it, which it passes on after all that
belongs to them. It carries parameters once as well: the one that adds lays them out in memory, from which the others
copy them. Whoever is late or dies costs the others time, and nobody waits without
an end: what cannot be added goes up as it is, whoever is not heard sends for itself, and whoever lacks parameters tells
the driver, which knows whether they are still on their way. What comes twice counts once, so no bit depends on it.
"""

import selectors
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic

import numpy as np

from dasktrain.buckets import Rising
from dasktrain.errors import ReductionError, WireError
from dasktrain.messages import (
    Answer,
    Bucket,
    Failure,
    Header,
    Reply,
    State,
    Stream,
    Task,
    Vector,
    decode_mark,
    decode_part,
    decode_reply,
    encode_mark,
    encode_part,
    encode_reply,
)
from dasktrain.reduce import Node, subtrees
from dasktrain.wire.channel import Channel, Message
from dasktrain.wire.gate import Gate, host
from dasktrain.wire.sharded import LACKS, WAITS
from dasktrain.wire.shared import SharedChannel, Store, connected, lead
from dasktrain.wire.ways import Joint, Via

#: whoever adds waits for the others as long again as it worked itself, and at least so many seconds; as many for
#: those to come that it is to give parameters
LEAST = 0.5
#: seconds after its own work that a worker waits for any sign of whoever adds, before it sends for itself
SILENCE = 3.0
#: seconds between signs while there is nothing to send
SIGN = 0.5
#: what one worker tells another of a task: that its buckets will come, that all is well, that its answer is sent
COMES, WAIT, SENT = "comes", "wait", "sent"
#: what the header of another worker's answer has, which is passed on to the driver
PASSED = "passed"


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where a worker can be met by those of its host."""

    host: str
    gate: str


class Together:
    """A worker's part in sending together: it adds for others, or has one of them add.

    Parameters
    ----------
    channel
        The driver's connection.
    store
        Where this worker's sums lie.
    stream
        What gradients are like.
    """

    def __init__(self, channel: Channel, store: Store, stream: Stream) -> None:
        here = host()
        self._gate = Gate(store)
        self.meeting = Meeting(here, self._gate.name)
        self._adding = Adding(channel, self._gate, store, stream)
        self._passing = Passing(channel, store, stream)

    def begin(self, task: Task, way: Via | Joint, state: State) -> tuple[Callable[[Reply], None], State | None]:
        """Return what sends all that belongs to a task, which is called in one thread, and the task's state.

        There is no state if parameters do not come, which the driver is told.
        """
        if isinstance(way, Joint):
            self._adding.begin(task, way, state.parameters)
            return self._adding.take, state
        self._passing.begin(task, way)
        if not way.given:
            return self._passing.take, state
        parameters = self._passing.parameters(task)
        return self._passing.take, None if parameters is None else replace(state, parameters=parameters)

    def close(self) -> None:
        """End all connections with others."""
        self._passing.close()
        self._gate.close()


class Passing:
    """Gets parameters and sends by way of another worker of this host, or sends by itself from when that one fails."""

    def __init__(self, channel: Channel, store: Store, stream: Stream) -> None:
        self._channel, self._store, self._stream = channel, store, stream
        self._parameters: Vector | None = None  # memory for those that are given
        self._line: SharedChannel | None = None
        self._gate = ""
        self._task: Task | None = None  # that was told to come
        self._kept: list[Reply] = []

    def begin(self, task: Task, way: Via) -> None:
        """Tell another worker that the sums of a task will come."""
        self._kept = []
        if self._gate != way.gate:
            self.close()
        try:
            if self._line is None:
                self._connect(way.gate)
            if self._line is not None and self._task != task:
                self._line.send(encode_mark(COMES, task))
                self._task = task
        except OSError:
            self.close()

    def parameters(self, task: Task) -> Vector | None:
        """Return the parameters of a task once they are given; if they are not, tell the driver, and return None."""
        if self._line is not None:
            try:
                if self._await_parameters(self._line, task):
                    return self._parameters
            except (OSError, WireError):
                self.close()
        self._channel.send(encode_mark(LACKS, task))
        return None

    def _await_parameters(self, line: SharedChannel, task: Task) -> bool:
        """Copy parameters, so that they stay; return whether they came, and did not change meanwhile."""
        deadline = monotonic() + SILENCE
        with selectors.DefaultSelector() as selector:
            selector.register(line, selectors.EVENT_READ)
            while monotonic() < deadline:
                if not selector.select(SIGN):
                    self._channel.send(encode_mark(WAITS, task))  # it is not this worker that is late
                    continue
                header, frames = line.receive(SILENCE)
                if "part" in header:
                    given, _, values = decode_part(header, frames)
                    if replace(given, start=task.start, stop=task.stop) == task:
                        self._copy(values)
                        return not line.stale
        return False  # what came was of earlier rounds

    def _copy(self, values: Vector) -> None:
        wanted = self._stream.cut.numbers, self._stream.dtype
        if (len(values), values.dtype.name) != wanted:
            raise WireError(f"Parameters must be {wanted}, however {len(values)}, {values.dtype} came; report this")
        if self._parameters is None:
            self._parameters = np.empty_like(values)
        self._parameters[:] = values

    def take(self, reply: Reply) -> None:
        """Pass something on, and with an answer wait until it is sent."""
        if isinstance(reply, Failure):  # which ends all that belongs to its task
            self._kept = []
            self.close()
        self._task = self._task if isinstance(reply, Bucket) else None
        self._kept.append(reply)
        if self._line is not None:
            try:
                self._line.send(*encode_reply(reply))
                if isinstance(reply, Answer):
                    self._wait(self._line, reply)
                return
            except (OSError, WireError):
                self.close()
        kept, self._kept = self._kept, []
        for each in kept:
            self._channel.send(*encode_reply(each))

    def close(self) -> None:
        """End the connection with the other worker."""
        self._task = None
        if self._line is not None:
            self._line.close()
            self._line = None

    def _connect(self, gate: str) -> None:
        descriptors = connected(gate)
        if descriptors is not None:
            self._line, self._gate = lead(descriptors, self._store, writable=False), gate
            self._line.limit(SILENCE)

    def _wait(self, line: SharedChannel, answer: Answer) -> None:
        """Wait until an answer is sent, which the driver's next message may tell earlier."""
        with selectors.DefaultSelector() as selector:
            for each in (line, self._channel):
                selector.register(each, selectors.EVENT_READ)
            while ready := selector.select(SILENCE + answer.seconds):
                if any(key.fileobj is self._channel for key, _ in ready):
                    return
                if decode_mark(line.receive(SILENCE)[0]) == (SENT, answer.task):
                    return
        raise TimeoutError("nothing is heard of the worker that sends for this one")


class Adding:
    """Gives other workers of this host parameters, adds up what they sum, and sends for all of them."""

    def __init__(self, channel: Channel, gate: Gate, store: Store, stream: Stream) -> None:
        self._channel, self._gate, self._store, self._stream = channel, gate, store, stream
        self._rising = Rising(stream.shards, self._send)
        self._parameters: Vector | None = None  # memory of those that are given
        self._tasks: dict[SharedChannel, Task] = {}  # what comes on each line
        self._answers: dict[SharedChannel, Answer] = {}
        self._gives = False
        self._given: set[SharedChannel] = set()  # who has been given parameters

    def begin(self, task: Task, way: Joint, parameters: Vector) -> None:
        """Expect the sums of other tasks beside those of one's own; give their workers parameters if they lack them."""
        self._task = task
        self._joint = replace(task, stop=way.tasks[-1].stop)
        self._awaited = set(way.tasks)
        stream = self._stream
        tops = subtrees(self._joint.start, self._joint.stop, stream.shards)
        self._rising.start(stream.cut, np.dtype(stream.dtype), tops)
        self._gives, self._given = way.gives, set()
        if way.gives:
            self._give(parameters)

    def _give(self, parameters: Vector) -> None:
        """Lay parameters out for all who come soon; whoever still copies the last ones sees that they change."""
        self._store.turned()
        if self._parameters is None:
            memory = self._store(parameters.nbytes)
            self._parameters = np.frombuffer(memory, dtype=parameters.dtype, count=len(parameters))
        self._parameters[:] = parameters
        for line in self._gate.lines:
            self._give_to(line)
        deadline = monotonic() + LEAST
        while len(self._given) < len(self._awaited) and (rest := deadline - monotonic()) > 0:
            self._hear(rest)

    def _give_to(self, line: SharedChannel) -> None:
        if self._gives and self._parameters is not None and line not in self._given:
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
            self._await_others(monotonic() + max(LEAST, reply.seconds))
        for offset, node, values in self._rising.rest():
            self._send(offset, node, values)
        self._channel.send(*encode_reply(reply))
        for answer in self._answers.values():
            header, arrays = encode_reply(answer)
            self._channel.send(header | {PASSED: True}, arrays)
        for line, task in self._tasks.items():
            if line in self._answers:
                self._tell(line, SENT)
            elif task in self._awaited:
                self._gate.drop(line)  # it sends for itself
        self._tasks, self._answers = {}, {}

    def _await_others(self, deadline: float) -> None:
        """Wait for all that is to come, or until the driver is gone."""
        while self._awaited and (rest := deadline - monotonic()) > 0 and not self._channel.readable(0):
            self._hear(min(rest, SIGN))
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
        if values is not None:
            self._channel.send(*encode_reply(Bucket(self._joint, *node, offset, values)))
            self._sign()

    def _sign(self) -> None:
        """Have those that have done all they can go on waiting."""
        for line in self._answers:
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
        self._awaited.discard(self._tasks.get(line, self._task))
