"""Memory that two processes of one host have in common: numbers are written once, and read where they lie.

Memory is anonymous (memfd) and its descriptors travel over a Unix socket, so nothing has a name that could be left
behind, /dev/shm may be of any size or missing, and all of it is gone when the last process that maps it is.
"""

import contextlib
import fcntl
import mmap
import os
import re
import secrets
import socket
import struct
from bisect import bisect_right, insort
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, cast

import numpy as np
from typing_extensions import Buffer

from dasktrain.errors import WireError
from dasktrain.messages import Header, Vector
from dasktrain.wire.channel import Channel, Message

#: whether this system has anonymous memory whose size can be sealed, and abstract sockets: Linux has
POSSIBLE = hasattr(os, "memfd_create") and hasattr(socket, "SO_PEERCRED")
#: seconds for the other end to connect, which it does at once or not at all
CONNECT = 5.0
#: what a socket is called whose name may be told to a peer
NAME = re.compile(r"dasktrain-[0-9a-f]{32}")
#: what keeps a peer from cutting memory off while we read it
_SEAL, _READ_SEALS, _NO_MORE, _NO_SHRINK, _NO_GROWTH = 1033, 1034, 1, 2, 4
#: what goes along with a descriptor; what the system tells of a peer: process, user, group
_SIZE, _CREDENTIALS = struct.Struct("<Q"), struct.Struct("3i")
#: seconds and microseconds, as the system takes them
_TIME = struct.Struct("@ll")


class Block:
    """Some memory of one owner.

    Attributes
    ----------
    memory : mmap.mmap
        Filled with zeros at first; for peers, that may only read it or write to it as well.
    address : int
        Where it lies in this process.
    """

    def __init__(self, descriptor: int, size: int, writable: bool) -> None:
        rights = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.memory = mmap.mmap(descriptor, size, mmap.MAP_SHARED, rights)
        self.descriptor = descriptor  # once nothing can fail: whoever made it closes it until then
        self.address: int = np.frombuffer(self.memory, dtype=np.uint8).__array_interface__["data"][0]

    @staticmethod
    def new(size: int) -> "Block":
        """Make memory of at least a number."""
        size = max(_SIZE.size, size)
        descriptor = os.memfd_create("dasktrain", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, _SEAL, _NO_SHRINK | _NO_GROWTH | _NO_MORE)
        return Block(descriptor, size, writable=True)

    @staticmethod
    def of_peer(descriptor: int, size: int, writable: bool) -> "Block":
        """Map what another process made, if it cannot be taken away again; the descriptor is taken over."""
        with contextlib.suppress(OSError):  # it is no memory, or must not be written to
            kept = fcntl.fcntl(descriptor, _READ_SEALS) & _NO_SHRINK
            if kept and _SIZE.size <= size <= os.fstat(descriptor).st_size:
                return Block(descriptor, size, writable)
        os.close(descriptor)
        raise WireError(f"Shared memory must have {size} bytes and keep them, however it need not; report this")

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self.descriptor)


class Store:
    """The blocks of one owner, found by what lies in them.

    The first of them counts how often what lies in the others has changed, for peers that still read it.
    """

    def __init__(self) -> None:
        self.blocks = [Block.new(8)]
        self._places: list[tuple[int, int]] = []  # address and number of each block that is given out, by address
        self._turns = np.frombuffer(self.blocks[0].memory, dtype=np.uint64)

    def __call__(self, size: int) -> mmap.mmap:
        """Return new memory of so many bytes, writable."""
        block = Block.new(size)
        insort(self._places, (block.address, len(self.blocks)))
        self.blocks.append(block)
        return block.memory

    def find(self, array: Vector | bytes) -> tuple[int, int] | None:
        """Return the number of the block that an array lies in, if there is one, and the byte it begins at there."""
        if isinstance(array, bytes) or not array.nbytes:
            return None
        address: int = array.__array_interface__["data"][0]
        place = bisect_right(self._places, address, key=itemgetter(0)) - 1
        if place < 0:
            return None
        start, number = self._places[place]
        return (number, address - start) if address - start < len(self.blocks[number].memory) else None

    @property
    def turn(self) -> int:
        """How often it was turned."""
        return int(self._turns[0])

    def turned(self) -> None:
        """Tell peers that what they may still read changes from now on."""
        self._turns[0] += 1


class SharedChannel(Channel):
    """A connection on which arrays that lie in shared memory are named instead of sent.

    Parameters
    ----------
    connected
        A connected stream socket, for messages; taken over.
    descriptors
        A connected Unix socket on which memory is handed over; taken over.
    ours
        What the peer may read.
    writable
        Whether this end may write to the peer's memory.
    """

    def __init__(self, connected: socket.socket, descriptors: socket.socket, ours: Store, writable: bool) -> None:
        super().__init__(connected)
        self._descriptors, self._ours, self._writable = descriptors, ours, writable
        self._descriptors.setblocking(False)  # what is handed over is there before it is named
        self._introduced = 0
        self._theirs: list[Block] = []
        self._turn = 0  # of the peer's memory, when it sent what came last

    def close(self) -> None:
        """End the connection."""
        super().close()
        self._descriptors.close()

    def limit(self, seconds: float) -> None:
        """Have `send` raise an OSError once the peer has taken nothing for so long."""
        whole, part = divmod(seconds, 1.0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIME.pack(int(whole), int(part * 1e6)))

    @property
    def stale(self) -> bool:
        """Whether the peer has changed its memory since it sent what came last."""
        return bool(self._theirs) and int(np.frombuffer(self._theirs[0].memory, dtype=np.uint64)[0]) != self._turn

    def post(self, header: Header, arrays: Sequence[Vector | bytes] = ()) -> None:
        """Have a message sent by later calls of `flush`; arrays in shared memory are read where they lie."""
        named, sent = [], list[Vector | bytes]()
        for place, array in enumerate(arrays):
            found = self._ours.find(array)
            if found is None:
                sent.append(array)
            else:
                named.append((place, *found, memoryview(cast(Buffer, array)).nbytes))
        if named:
            self._introduce()
            header = {**header, "shared": named, "turn": self._ours.turn}
        super().post(header, sent)

    def _introduce(self) -> None:
        """Hand over the blocks that the peer does not have."""
        while self._introduced < len(self._ours.blocks):
            block = self._ours.blocks[self._introduced]
            socket.send_fds(self._descriptors, [_SIZE.pack(len(block.memory))], [block.descriptor])
            self._introduced += 1

    def poll(self) -> Message | None:
        """Return the next message if all of it is here; what was named is valid as long as the peer leaves it alone.

        Raises
        ------
        OSError
            The connection was closed or lost.
        WireError
            What came was not a message.
        """
        message = super().poll()
        if message is None or "shared" not in message[0]:
            return message
        header, frames = message
        try:
            self._turn = int(header.pop("turn"))
            for place, number, start, size in header.pop("shared"):
                self._insert(frames, place, number, start, size)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise WireError(f"Shared memory must be named by numbers, however {error}; report this") from error
        return header, frames

    def _insert(self, frames: list[Any], place: int, number: int, start: int, size: int) -> None:
        memory = self._block(number).memory
        if not (0 <= place <= len(frames) and 0 <= start <= start + size <= len(memory)):
            raise ValueError(f"there is no frame {place}, or no {size} bytes for it from {start} on")
        frames.insert(place, memoryview(memory)[start : start + size])

    def _block(self, number: int) -> Block:
        if number < 0:
            raise ValueError(f"no block has number {number}")
        while number >= len(self._theirs):
            size, descriptor = _handed_over(self._descriptors)
            self._theirs.append(Block.of_peer(descriptor, size, self._writable))
        return self._theirs[number]


def _handed_over(descriptors: socket.socket) -> tuple[int, int]:
    """Return the size and descriptor of a block that a peer has handed over."""
    packed, received = _descriptor(descriptors, _SIZE.size)
    if len(packed) != _SIZE.size or received is None:
        if received is not None:
            os.close(received)
        raise WireError("Shared memory must be handed over before it is named, however it was not; report this")
    return _SIZE.unpack(packed)[0], received


def _descriptor(connection: socket.socket, size: int) -> tuple[bytes, int | None]:
    """Return so many bytes and the descriptor that came with them, if they did."""
    with contextlib.suppress(BlockingIOError):
        packed, received, _, _ = socket.recv_fds(connection, size, 1)
        for descriptor in received:
            os.set_inheritable(descriptor, False)
        return packed, received[0] if received else None
    return b"", None


# -- from a connection to shared memory -------------------------------------------------------------------------


def offer(channel: Channel, ours: Store | None, timeout: float) -> Channel:
    """Offer the other end of a connection to share memory; return what to go on with, which may be the same.

    Whether it is on this host shows when it finds a socket whose name it is told. The name can be read by anyone on
    the host, so both ends see to it that the other is of their own user.
    """
    if ours is None:
        channel.send({"share": ""})
        return channel
    name, listener = listen()
    with listener:
        listener.settimeout(CONNECT)
        channel.send({"share": name})
        if not channel.receive(timeout)[0].get("shared"):
            return channel
        descriptors = _accepted(listener)
    shared = lead(descriptors, ours, writable=True)
    channel.close()
    return shared


def accept(channel: Channel, header: Header, ours: Store | None) -> Channel:
    """Take an offer up if that can be done; return what to go on with."""
    name = header.get("share")
    if name == "":
        return channel
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise WireError(f"Shared memory must be offered by a name of ours, however it is {name!r:.80}; report this")
    descriptors = connected(name) if ours is not None else None
    channel.send({"shared": descriptors is not None})
    if descriptors is None or ours is None:
        return channel
    shared = follow(descriptors, ours)
    channel.close()
    return shared


def lead(descriptors: socket.socket, ours: Store, writable: bool) -> SharedChannel:
    """Make a connection for messages beside one for descriptors, which is taken over, and hand its other end over."""
    with contextlib.ExitStack() as failing:
        failing.enter_context(descriptors)
        messages, theirs = socket.socketpair()
        failing.enter_context(messages)
        with theirs:
            socket.send_fds(descriptors, [b"!"], [theirs.fileno()])
        failing.pop_all()
    return SharedChannel(messages, descriptors, ours, writable)


def follow(descriptors: socket.socket, ours: Store) -> SharedChannel:
    """Take the end that `lead` hands over; what the peer has can be read from then on."""
    with contextlib.ExitStack() as failing:
        failing.enter_context(descriptors)
        _, messages = _descriptor(descriptors, 1)
        if messages is None:
            raise ConnectionResetError("the other end took back what it offered")
        failing.pop_all()
    return SharedChannel(socket.socket(fileno=messages), descriptors, ours, writable=False)


def listen() -> tuple[str, socket.socket]:
    """Return a socket that processes of this host can connect to, after its name."""
    name = f"dasktrain-{secrets.token_hex(16)}"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{name}")
    listener.listen()
    return name, listener


def _accepted(listener: socket.socket) -> socket.socket:
    """Return the first connection of our own user; others may have seen the name, and get nothing."""
    while True:
        connection, _ = listener.accept()
        if is_ours(connection):
            return connection
        connection.close()


def connected(name: str) -> socket.socket | None:
    """Return a connection to a process of our own user that listens by that name, if there is one."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(CONNECT)
    with contextlib.suppress(OSError):  # it is on another host, or in another container
        connection.connect(f"\0{name}")
        if is_ours(connection):
            return connection
    connection.close()
    return None


def is_ours(connection: socket.socket) -> bool:
    """Whether a process of our own user is at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(credentials)[1] == os.getuid())
