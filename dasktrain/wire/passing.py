"""A worker that gets parameters, and sends, by way of another of its host, as long as it hears of that one."""

import selectors
from dataclasses import replace
from time import monotonic

import numpy as np

from dasktrain.errors import WireError
from dasktrain.messages import (
    Answer,
    Bucket,
    Failure,
    Reply,
    Stream,
    Task,
    Vector,
    decode_mark,
    decode_part,
    encode_mark,
    encode_reply,
)
from dasktrain.wire.channel import Channel
from dasktrain.wire.member import LACKS, WAITS
from dasktrain.wire.shared import SharedChannel, Store, connected, lead
from dasktrain.wire.ways import Via

#: seconds without a sign of whoever adds, beside those of its own work, after which a worker sends for itself
SILENCE = 3.0
#: seconds between signs while there is nothing to send
SIGN = 0.5
#: what one worker tells another of a task: that its buckets will come, that all is well, that its answer is sent
COMES, WAIT, SENT = "comes", "wait", "sent"


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
                header, frames = line.receive(SILENCE) if selector.select(SIGN) else ({}, [])
                if "part" in header:
                    given, _, values = decode_part(header, frames)
                    if replace(given, start=task.start, stop=task.stop) == task:
                        self._copy(values)
                        return not line.stale
                elif header and decode_mark(header) == (WAIT, task):
                    deadline = monotonic() + SILENCE
                self._channel.send(encode_mark(WAITS, task))  # it is not this worker that is late
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
                self._channel.send(encode_mark(WAITS, answer.task))
        raise TimeoutError("nothing is heard of the worker that sends for this one")
