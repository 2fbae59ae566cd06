"""wire/channel.py: what is sent arrives, and what is not a message is refused without harm."""

import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing
from time import monotonic

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasktrain.errors import WireError
from dasktrain.wire.channel import CREDIT, MAGIC, MOST_BYTES, MOST_FRAMES, PREFIX, Channel


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    """Return a channel and the raw socket at its other end."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    yield channel, theirs
    channel.close()
    theirs.close()


def exchange(header: dict[str, object], frames: list[bytes]) -> tuple[dict[str, object], list[bytes]]:
    """Send a message through a pair of channels."""
    one, other = map(Channel, socket.socketpair())
    sender = threading.Thread(target=one.send, args=(header, frames), name="dasktrain-test-sender")
    sender.start()
    try:
        got, received = other.receive(10)
        return got, [bytes(frame) for frame in received]
    finally:
        sender.join(10)
        one.close()
        other.close()


@settings(max_examples=60, deadline=None)
@given(
    header=st.dictionaries(st.text(max_size=9), st.integers() | st.text(max_size=20) | st.none(), max_size=5),
    frames=st.lists(st.binary(max_size=200), max_size=6),
)
def test_any_message_arrives_as_it_was_sent(header: dict[str, object], frames: list[bytes]) -> None:
    assert exchange(header, frames) == (header, frames)


def test_message_larger_than_the_socket_takes_at_once_arrives() -> None:
    frames = [np.arange(3_000_000).tobytes(), b"", b"x"]
    assert exchange({"a": 1}, frames) == ({"a": 1}, frames)


class Sampled(socket.socket):
    """A socket to which memory is given in frames that a profiler, which a worker has, holds on to."""

    def __init__(self, end: socket.socket) -> None:
        super().__init__(fileno=end.detach())
        self.seen: list[memoryview] = []

    def recv_into(self, buffer: memoryview, *args: int) -> int:  # type: ignore[override]
        """Receive as ever."""
        self.seen.append(buffer)
        return super().recv_into(buffer, *args)


def test_memory_can_grow_while_somebody_holds_on_to_it() -> None:
    frame = np.arange(CREDIT).tobytes()
    ours, theirs = socket.socketpair()
    one, other = Channel(ours), Channel(Sampled(theirs))
    sender = threading.Thread(target=one.send, args=({}, [frame]), name="dasktrain-test-sender")
    sender.start()
    try:
        assert other.receive(10)[1] == [frame]
    finally:
        other.close()
        sender.join(10)
        one.close()


def test_what_is_left_is_all_that_has_not_reached_the_other_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        channel = Channel(socket.create_connection(listener.getsockname()))
        peer, _ = listener.accept()
    with peer, closing(channel):
        channel.unblock()
        channel.post({}, [bytes(1 << 25)])
        left, taken = [channel.left], 0
        assert left[0] > 1 << 25
        while taken < left[0]:
            channel.flush()
            left.append(channel.left)
            taken += len(peer.recv(1 << 20))
        deadline = monotonic() + 10
        while channel.left and monotonic() < deadline:  # the system that has it tells this one when it likes
            left.append(channel.left)
        assert channel.left == 0
        assert left == sorted(left, reverse=True)


def test_memory_of_frames_is_used_again(ends: tuple[Channel, socket.socket]) -> None:
    channel, raw = ends
    sender = Channel(raw)
    addresses = set()
    for value in range(3):
        sender.send({}, [np.full(100, value)])
        _, (frame,) = channel.receive(10)
        array = np.frombuffer(frame, dtype=np.int64)
        assert (array == value).all()
        addresses.add(array.ctypes.data)
    assert len(addresses) == 1


def test_closed_connection_is_an_oserror(ends: tuple[Channel, socket.socket]) -> None:
    channel, raw = ends
    raw.sendall(PREFIX.pack(MAGIC, 2, 0)[:7])
    raw.close()
    with pytest.raises(ConnectionResetError, match="closed"):
        channel.receive(10)


def test_silence_is_a_timeout(ends: tuple[Channel, socket.socket]) -> None:
    channel, _ = ends
    assert not channel.readable(0.01)
    with pytest.raises(TimeoutError):
        channel.receive(0.01)


@pytest.mark.parametrize(
    "raw",
    [
        PREFIX.pack(b"GET ", 2, 0),
        PREFIX.pack(MAGIC, 2**32 - 1, 0),
        PREFIX.pack(MAGIC, 2, MOST_FRAMES + 1),
        PREFIX.pack(MAGIC, 2, 1) + struct.pack("<Q", MOST_BYTES + 1),
        PREFIX.pack(MAGIC, 2, 0) + b"{]",
        PREFIX.pack(MAGIC, 2, 0) + b"[]",
        PREFIX.pack(MAGIC, 2, 0) + b"\xff\xff",
    ],
    ids=["magic", "header size", "frame count", "frame size", "json", "object", "utf-8"],
)
def test_what_is_not_a_message_is_refused(ends: tuple[Channel, socket.socket], raw: bytes) -> None:
    channel, peer = ends
    peer.sendall(raw)
    with pytest.raises(WireError, match="must"):
        channel.receive(10)


@settings(max_examples=300, deadline=None)
@given(noise=st.binary(min_size=1, max_size=80), prefix=st.booleans())
def test_noise_never_does_anything_but_raise(noise: bytes, prefix: bool) -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    theirs.sendall((MAGIC if prefix else b"") + noise)
    theirs.close()
    try:
        header, _ = channel.receive(10)
        assert json.dumps(header)
    except (WireError, OSError):
        pass
    finally:
        channel.close()
