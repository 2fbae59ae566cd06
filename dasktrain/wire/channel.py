"""Headers and arrays over one blocking socket that Dask connected and authenticated.

Dask's own messages cost about a millisecond a round in event-loop hand-offs and allocate anew for every array. Here the
thread that computes is the thread that reads and writes, into memory that is used again. Nothing is ever unpickled.

A message is: magic, header bytes, number of frames (4s, u32, u32); a u64 length for each frame; the header as JSON; the
frames.
"""

import asyncio
import contextlib
import fcntl
import json
import select
import socket
import ssl
import struct
import termios
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any, Protocol, cast

from distributed.comm import Comm
from typing_extensions import Buffer

from dasktrain.errors import AttachError, WireError
from dasktrain.messages import Header, Vector

MAGIC = b"dtr1"
PREFIX = struct.Struct("<4sII")
#: what a peer may announce, so that a stray byte does not become an allocation of terabytes
MOST_HEADER, MOST_FRAMES, MOST_BYTES = 1 << 26, 1 << 12, 1 << 36
Message = tuple[Header, list[Any]]
#: what a socket that does not block raises when it would have to
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
#: below so many bytes a message is sent in one piece
SMALL = 1 << 16
#: bytes taken on a peer's word that more will come; beyond it memory grows as they do
CREDIT = 1 << 20


class Selectable(Protocol):
    """What has a descriptor that tells whether there is something to read."""

    def fileno(self) -> int:
        """Return it."""


def readable(timeout: float, *ends: Selectable) -> bool:
    """Wait until something, or its end, can be read from one of some ends; False after `timeout` seconds."""
    return _ready(timeout, select.POLLIN, *ends)


def _ready(timeout: float, events: int, *ends: Selectable) -> bool:
    poll = select.poll()  # select itself takes no descriptor above 1,023
    for end in ends:
        poll.register(end, events)
    return bool(poll.poll(1000 * timeout))


class Channel:
    """One end of a connection.

    A thread that has nothing else to do uses `send` and `receive`, which block. One that serves many channels calls
    `unblock` once, then `post`, `flush` and `poll`, none of which waits for the peer.

    Parameters
    ----------
    connected
        A connected stream socket (TCP, TLS or a pair); taken over.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._socket.setblocking(True)
        self._out: deque[memoryview] = deque()
        self._lent: list[bytearray] = []  # memory of frames that were handed out
        self._free: list[bytearray] = []
        self._rest = memoryview(b"")  # of the memory that is being filled
        self._parser = self._parsed()

    def fileno(self) -> int:
        """Return the socket's descriptor, for selectors."""
        return self._socket.fileno()

    @property
    def stale(self) -> bool:
        """Whether what came last has changed since; what is sent does not."""
        return False

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def abort(self) -> None:
        """Have whoever reads or writes in another thread get an OSError."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    # -- out --------------------------------------------------------------------------------------------------

    def send(self, header: Header, arrays: Sequence[Vector | bytes] = ()) -> None:
        """Send a message; the arrays may change as soon as this returns.

        Raises
        ------
        OSError
            The connection was closed or lost.
        """
        self.post(header, arrays)
        while self._out:
            self._socket.sendall(self._out.popleft())

    def post(self, header: Header, arrays: Sequence[Vector | bytes] = ()) -> None:
        """Have a message sent by later calls of `flush`; the arrays may change after those or after `keep`."""
        frames: list[memoryview] = [memoryview(cast(Buffer, array)) for array in arrays]
        text = json.dumps(header).encode()
        lengths = struct.pack(f"<{len(frames)}Q", *(frame.nbytes for frame in frames))
        head = PREFIX.pack(MAGIC, len(text), len(frames)) + lengths + text
        pieces = [memoryview(head), *(frame.cast("B") for frame in frames if frame.nbytes)]
        small = sum(len(piece) for piece in pieces) <= SMALL
        self._out.extend([memoryview(b"".join(pieces))] if small else pieces)

    def flush(self) -> bool:
        """Send as much as the connection takes now; return whether all that was posted is sent.

        Raises
        ------
        OSError
            The connection was closed or lost.
        """
        try:
            while self._out:
                sent = self._socket.send(self._out[0])
                self._out[0] = self._out[0][sent:]
                if not self._out[0]:
                    self._out.popleft()
        except WOULD_BLOCK:
            return False
        return True

    @property
    def left(self) -> int:
        """Bytes that are posted and have not reached the peer's system, or of a pair that nobody has read.

        Linux tells of those that left this process (``SIOCOUTQ``, tcp(7)).
        """
        sent = 0
        with contextlib.suppress(OSError):  # other systems do not tell
            (sent,) = struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))
        return sum(len(piece) for piece in self._out) + sent

    def keep(self) -> None:
        """Copy what is posted and not sent."""
        self._out = deque(memoryview(bytes(piece)) for piece in self._out)

    # -- in ---------------------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> Message:
        """Return the next message's header and frames; the frames are valid until the next call.

        Parameters
        ----------
        timeout
            Seconds without a byte after which TimeoutError is raised; None: as long as the connection lives.

        Raises
        ------
        OSError
            The connection was closed or lost.
        WireError
            What came was not a message.
        """
        self.reclaim()
        self._socket.settimeout(timeout)
        try:
            message = self.poll()
            assert message is not None  # only an unblocked socket has nothing to give
            return message
        finally:
            self._socket.settimeout(None)

    def unblock(self) -> None:
        """Have `flush` and `poll` return instead of waiting."""
        self._socket.setblocking(False)

    def block(self) -> None:
        """Take `unblock` back."""
        self._socket.setblocking(True)

    def poll(self) -> Message | None:
        """Return the next message if all of it is here; its frames are valid until `reclaim`.

        Raises
        ------
        OSError
            The connection was closed or lost.
        WireError
            What came was not a message.
        """
        while True:
            while not self._rest:
                try:
                    self._rest = memoryview(next(self._parser))
                except StopIteration as done:
                    self._parser = self._parsed()
                    return cast(Message, done.value)
            try:
                count = self._socket.recv_into(self._rest)
            except WOULD_BLOCK:
                return None
            if not count:
                raise ConnectionResetError("the other end closed the connection")
            self._rest = self._rest[count:]

    def reclaim(self) -> None:
        """Use the memory of all frames that were handed out again."""
        self._free, self._lent = self._lent, []

    def reuse(self, frames: Sequence[Any]) -> None:
        """Use the memory of some frames that were handed out again."""
        ids = {id(frame) for frame in frames}
        self._free += [frame for frame in self._lent if id(frame) in ids]
        self._lent = [frame for frame in self._lent if id(frame) not in ids]

    def readable(self, timeout: float) -> bool:
        """Wait until a message, or the end of the connection, can be read; False after `timeout` seconds."""
        return readable(timeout, self)

    def writable(self, timeout: float) -> bool:
        """Wait until something more can be sent; False after `timeout` seconds."""
        return _ready(timeout, select.POLLOUT, self)

    def _parsed(self) -> Generator[Buffer, None, Message]:
        """Yield memory to be filled, piece by piece; return the message."""
        prefix = bytearray(PREFIX.size)
        yield prefix
        magic, header_bytes, frames = PREFIX.unpack(prefix)
        if magic != MAGIC or header_bytes > MOST_HEADER or frames > MOST_FRAMES:
            raise WireError(f"A message must begin with {MAGIC!r} and be of modest size, however {magic!r} came")
        yield (announced := bytearray(8 * frames))
        lengths = struct.unpack(f"<{frames}Q", announced)
        if sum(lengths) > MOST_BYTES:
            raise WireError(f"A message must be under {MOST_BYTES} bytes, however {sum(lengths)} were announced")
        header = self._header((yield from _growing(header_bytes)))
        bodies = []
        for length in lengths:
            bodies.append((yield from self._frame(length)))
        return header, bodies

    def _frame(self, length: int) -> Generator[Buffer, None, bytearray]:
        """Yield the memory of a frame to be filled: that of an earlier one of the same length, if there is any."""
        place = next((place for place, free in enumerate(self._free) if len(free) == length), None)
        if place is None:
            memory = yield from _growing(length)
        else:
            yield (memory := self._free.pop(place))
        self._lent.append(memory)
        return memory

    @staticmethod
    def _header(text: bytearray) -> Header:
        try:
            header = json.loads(text.decode())
        except (ValueError, RecursionError) as error:
            raise WireError(f"A header must be JSON, however {error}") from error
        if not isinstance(header, dict):
            raise WireError(f"A header must be a JSON object, however it is {type(header).__name__}")
        return header


def _growing(length: int) -> Generator[Buffer, None, bytearray]:
    """Yield memory to be filled, never much more than came: what a peer announces costs it something."""
    memory = bytearray(min(length, CREDIT))
    yield memory
    while (filled := len(memory)) < length:
        grown = bytearray(min(2 * filled, length))  # not in place: a profiler's sample of a thread may hold on to views
        grown[:filled] = memory
        memory = grown
        yield memoryview(memory)[filled:]
    return memory


async def handed_over(comm: Comm, request: dict[str, Any]) -> socket.socket:
    """Ask the other end of a comm to take its socket out, and return that of this end; the other must speak first."""
    await comm.write(request)
    while comm.stream.writing():
        await asyncio.sleep(0)
    return detach(comm)


def detach(comm: Comm) -> socket.socket:
    """Take the socket out of a ``tcp://`` or ``tls://`` comm; call it on the comm's own event loop.

    The comm is closed afterwards. Nothing may be on its way in: the peer must wait for our first bytes, or we for its.

    Raises
    ------
    AttachError
        The comm has no socket of its own, or had already read from it.
    """
    stream = getattr(comm, "stream", None)
    if stream is None or not isinstance(getattr(stream, "socket", None), socket.socket):
        raise AttachError(
            f"Workers must be on tcp://, tls:// or inproc://, however this one is at {comm.peer_address}; "
            "start the cluster with another protocol"
        )
    if stream._read_buffer_size or stream.writing():
        raise AttachError("A connection must be idle when it is taken over, however bytes were under way; report this")
    stream.set_close_callback(None)
    stream.io_loop.remove_handler(stream.fileno())
    taken: socket.socket = stream.socket
    stream.socket, stream._closed = None, True
    comm.stream, comm._closed = None, True
    comm._finalizer.detach()
    return taken
