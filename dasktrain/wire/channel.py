"""Headers and arrays over one blocking socket that Dask connected and authenticated.

Dask's own messages cost about a millisecond a round in event-loop hand-offs and allocate anew for every array. Here the
thread that computes is the thread that reads and writes, into memory that is used again. Nothing is ever unpickled.

A message is: magic, header bytes, number of frames (4s, u32, u32); a u64 length for each frame; the header as JSON; the
frames.
"""

import json
import select
import socket
import struct
from collections.abc import Sequence
from typing import Any, cast

from distributed.comm import Comm
from typing_extensions import Buffer

from dasktrain.errors import AttachError, WireError
from dasktrain.messages import Header, Vector

MAGIC = b"dtr1"
PREFIX = struct.Struct("<4sII")
#: what a peer may announce, so that a stray byte does not become an allocation of terabytes
MOST_HEADER, MOST_FRAMES, MOST_BYTES = 1 << 26, 1 << 12, 1 << 36
#: below so many bytes a message is sent in one piece
SMALL = 1 << 16


class Channel:
    """One end of a connection.

    Parameters
    ----------
    connected
        A connected stream socket (TCP, TLS or a pair); taken over.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._socket.setblocking(True)
        self._memory: list[bytearray] = []

    def fileno(self) -> int:
        """Return the socket's descriptor, for selectors."""
        return self._socket.fileno()

    def send(self, header: Header, arrays: Sequence[Vector | bytes] = ()) -> None:
        """Send a message; the arrays may change as soon as this returns.

        Raises
        ------
        OSError
            The connection was closed or lost.
        """
        frames: list[memoryview] = [memoryview(cast(Buffer, array)) for array in arrays]
        text = json.dumps(header).encode()
        lengths = struct.pack(f"<{len(frames)}Q", *(frame.nbytes for frame in frames))
        head = PREFIX.pack(MAGIC, len(text), len(frames)) + lengths + text
        bodies = [frame.cast("B") for frame in frames if frame.nbytes]
        if len(head) + sum(len(body) for body in bodies) <= SMALL:
            self._socket.sendall(b"".join([head, *bodies]))
            return
        self._socket.sendall(head)
        for body in bodies:
            self._socket.sendall(body)

    def receive(self, timeout: float | None = None) -> tuple[Header, list[Any]]:
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
        self._socket.settimeout(timeout)
        try:
            magic, header_bytes, frames = PREFIX.unpack(self._exactly(bytearray(PREFIX.size)))
            if magic != MAGIC or header_bytes > MOST_HEADER or frames > MOST_FRAMES:
                raise WireError(f"A message must begin with {MAGIC!r} and be of modest size, however {magic!r} came")
            lengths = struct.unpack(f"<{frames}Q", self._exactly(bytearray(8 * frames)))
            if sum(lengths) > MOST_BYTES:
                raise WireError(f"A message must be under {MOST_BYTES} bytes, however {sum(lengths)} were announced")
            header = self._header(self._exactly(bytearray(header_bytes)))
            return header, [self._exactly(self._reused(place, length)) for place, length in enumerate(lengths)]
        finally:
            self._socket.settimeout(None)

    def readable(self, timeout: float) -> bool:
        """Wait until a message, or the end of the connection, can be read; False after `timeout` seconds."""
        return bool(select.select([self._socket], [], [], timeout)[0])

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def _exactly(self, into: bytearray) -> bytearray:
        rest = memoryview(into)
        while rest:
            count = self._socket.recv_into(rest)
            if not count:
                raise ConnectionResetError("the other end closed the connection")
            rest = rest[count:]
        return into

    def _reused(self, place: int, length: int) -> bytearray:
        """Return memory for a frame: that of the last message's frame at the same place if it fits."""
        while len(self._memory) <= place:
            self._memory.append(bytearray())
        if len(self._memory[place]) != length:
            self._memory[place] = bytearray(length)
        return self._memory[place]

    @staticmethod
    def _header(text: bytearray) -> Header:
        try:
            header = json.loads(text.decode())
        except ValueError as error:
            raise WireError(f"A header must be JSON, however {error}") from error
        if not isinstance(header, dict):
            raise WireError(f"A header must be a JSON object, however it is {type(header).__name__}")
        return header


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
