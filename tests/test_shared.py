"""wire/shared.py: numbers are read where they lie, what makes no sense is refused, and nothing is left."""

import ctypes
import fcntl
import gc
import multiprocessing
import os
import signal
import socket
import struct
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasktrain.errors import WireError
from dasktrain.wire import shared
from dasktrain.wire.channel import Channel
from dasktrain.wire.shared import POSSIBLE, SharedChannel, Store, accept, offer
from tests.processes import all_named_sockets, mapped, named_sockets, opened

#: seconds for whatever is awaited; for a process that imports torch
PATIENCE, START = 20.0, 60.0
NOBODY = 65534
NEW_NETWORK = 0x40000000
#: of fcntl: add seals; against less memory, and against writing
SEAL, NO_SHRINK, NO_WRITING = 1033, 2, 8

pytestmark = pytest.mark.skipif(not POSSIBLE, reason="This system must have anonymous memory that can be sealed")
as_root = pytest.mark.skipif(os.getuid() != 0, reason="Only root can become somebody else")


def numbers(store: Store, count: int, value: float = 0.0) -> np.ndarray:
    """Return so many numbers in new memory of a store."""
    array = np.frombuffer(store(count * 8), dtype=np.float64, count=count)
    array[:] = value
    return array


def received(channel: Channel) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return the next message, its frames as numbers."""
    header, frames = channel.receive(PATIENCE)
    return header, [np.frombuffer(frame, dtype=np.float64) for frame in frames]


@contextmanager
def sharing(ours: Store, theirs: Store) -> Iterator[tuple[SharedChannel, SharedChannel]]:
    """Have a connection become one that shares memory; return the driver's end and the worker's."""
    one, other = map(Channel, socket.socketpair())
    with ThreadPoolExecutor(1) as thread:
        accepted = thread.submit(lambda: accept(other, other.receive(PATIENCE)[0], theirs))
        driver, worker = offer(one, ours, PATIENCE), accepted.result(PATIENCE)
    with closing(driver), closing(worker):
        assert isinstance(driver, SharedChannel)
        assert isinstance(worker, SharedChannel)
        yield driver, worker


# -- where they lie ---------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=7))
def test_arrays_arrive_in_their_order_wherever_they_lie(parts: list[tuple[bool, int]]) -> None:
    stores = Store(), Store()
    with sharing(*stores) as ends:
        for store, sender, receiver in zip(stores, ends, ends[::-1], strict=True):
            sent = [
                numbers(store, count, place) if lies_there else np.full(count, float(place))
                for place, (lies_there, count) in enumerate(parts)
            ]
            sender.send({"a": 1}, sent)
            header, arrays = received(receiver)
            assert header == {"a": 1}
            assert [array.tolist() for array in arrays] == [array.tolist() for array in sent]


def test_what_is_written_later_is_read_where_it_lies() -> None:
    ours, theirs = Store(), Store()
    with sharing(ours, theirs) as (driver, worker):
        parameters, answer = numbers(ours, 1000, 1.0), numbers(theirs, 10, 2.0)
        driver.send({}, [parameters])
        _, (read,) = received(worker)
        parameters[-1] = 3.0
        assert (read[0], read[-1]) == (1.0, 3.0)
        worker.send({}, [answer])
        _, (taken,) = received(driver)
        taken += 1.0  # the driver sums in place
        assert answer.tolist() == [3.0] * 10


@pytest.mark.parametrize("share", [True, False])
def test_numbers_cross_the_connection_only_if_memory_is_not_shared(share: bool) -> None:
    (messages, raw), (descriptors, theirs) = socket.socketpair(), socket.socketpair()
    store = Store()
    channel = SharedChannel(messages, descriptors, store, writable=True) if share else Channel(messages)
    with raw, descriptors, theirs, closing(channel):
        arrays = [numbers(store, 4000), numbers(store, 4000)]
        channel.send({"task": "some"}, arrays)
        assert (len(raw.recv(1 << 20)) < 300) == share
        channel.send({"task": "some"}, [np.zeros(4000)])
        assert len(raw.recv(1 << 20)) > 32_000


@given(start=st.integers(0, 9), count=st.integers(0, 9), others=st.integers(0, 5))
def test_a_part_of_an_array_is_read_where_it_lies(start: int, count: int, others: int) -> None:
    ours = Store()
    with sharing(ours, Store()) as (driver, worker):
        whole = [numbers(ours, 10) for _ in range(others + 1)][others // 2]
        whole[:] = np.arange(10)
        part = whole[start : start + count]
        driver.send({}, [part])
        _, (read,) = received(worker)
        assert read.tolist() == part.tolist()
        whole += 1
        assert read.tolist() == part.tolist()


def test_memory_is_handed_over_once_and_not_with_every_message() -> None:
    ours = Store()
    with sharing(ours, Store()) as (driver, worker):
        array = numbers(ours, 5)
        driver.send({}, [array])
        received(worker)
        before = opened(os.getpid())
        for _ in range(20):
            driver.send({}, [array, array])
            received(worker)
        assert opened(os.getpid()) == before


def test_what_was_sent_is_stale_once_the_round_is_over() -> None:
    ours = Store()
    with sharing(ours, Store()) as (driver, worker):
        array = numbers(ours, 5)
        for _ in range(3):
            driver.send({}, [array])
            received(worker)
            assert not worker.stale
            ours.turned()
            assert worker.stale


# -- another process --------------------------------------------------------------------------------------------------


@contextmanager
def process(act: Callable[[Channel, dict[str, Any]], None]) -> Iterator[tuple[Channel, BaseProcess]]:
    """Have another process act on the first message of a connection; it must end soon after the block."""
    ours, theirs = socket.socketpair()
    other = multiprocessing.get_context("forkserver").Process(target=acting, args=(act, theirs))
    with theirs:
        other.start()
    with closing(Channel(ours)) as channel:
        try:
            channel.receive(START)  # or the time for it to start would be that for it to connect
            yield channel, other
            other.join(PATIENCE)
            assert other.exitcode is not None
        finally:
            other.kill()
            other.join(PATIENCE)


def acting(act: Callable[[Channel, dict[str, Any]], None], connected: socket.socket) -> None:
    """Act; a process that fails ends with 1."""
    with closing(Channel(connected)) as channel:
        channel.send({"here": True})
        act(channel, channel.receive(PATIENCE)[0])


def reads(channel: Channel, header: dict[str, Any]) -> None:
    """Answer with the sum of what has been written since the message came."""
    store = Store()
    with closing(accept(channel, header, store)) as worker:
        _, (read,) = received(worker)
        received(worker)
        worker.send({"rights": mapped(os.getpid())}, [numbers(store, 3, read.sum())])


def writes(channel: Channel, header: dict[str, Any]) -> None:
    """Write to what may only be read."""
    with closing(accept(channel, header, Store())) as worker:
        _, (read,) = received(worker)
        assert not read.flags.writeable
        ctypes.memset(read.ctypes.data, 1, read.nbytes)


def does_without(channel: Channel, header: dict[str, Any]) -> None:
    """Say what was received over the connection."""
    assert accept(channel, header, Store()) is channel
    channel.send({"sum": received(channel)[1][0].sum()})


def does_without_as_nobody(channel: Channel, header: dict[str, Any]) -> None:
    os.setuid(NOBODY)
    does_without(channel, header)


def does_without_elsewhere(channel: Channel, header: dict[str, Any]) -> None:
    if ctypes.CDLL(None).unshare(NEW_NETWORK):
        channel.send({"shared": False})
        channel.receive(PATIENCE)
        channel.send({"cannot": "have a network of its own"})
    else:
        does_without(channel, header)


def pushes_in(channel: Channel, header: dict[str, Any]) -> None:
    """Connect as somebody else before the worker does."""
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(PATIENCE)
        os.seteuid(NOBODY)
        stranger.connect(f"\0{header['share']}")
        os.seteuid(0)
        with closing(accept(channel, header, Store())) as worker:
            worker.send({"stranger got": stranger.recv(1).decode(), "sum": received(worker)[1][0].sum()})


def test_another_process_reads_what_is_written_after_it_was_sent() -> None:
    ours = Store()
    with process(reads) as (channel, other), closing(offer(channel, ours, PATIENCE)) as driver:
        parameters = numbers(ours, 100, 1.0)
        driver.send({}, [parameters])
        parameters[:] = 2.0
        driver.send({})
        header, (answer,) = received(driver)
        assert answer.tolist() == [200.0] * 3
        assert "r--s" in header["rights"], "what is the driver's may only be read"
    assert other.exitcode == 0


def test_a_worker_that_writes_to_parameters_dies_and_they_are_as_they_were() -> None:
    ours = Store()
    with process(writes) as (channel, other), closing(offer(channel, ours, PATIENCE)) as driver:
        parameters = numbers(ours, 100, 1.0)
        driver.send({}, [parameters])
        with pytest.raises(OSError, match=r"closed|reset"):
            driver.receive(PATIENCE)
        assert parameters.tolist() == [1.0] * 100
    assert other.exitcode == -signal.SIGSEGV


@as_root
@pytest.mark.parametrize("act", [does_without_as_nobody, does_without_elsewhere])
def test_who_cannot_share_goes_on_with_the_connection(act: Callable[[Channel, dict[str, Any]], None]) -> None:
    ours = Store()
    with process(act) as (channel, other):
        driver = offer(channel, ours, PATIENCE)
        assert driver is channel
        driver.send({}, [numbers(ours, 1000, 1.0)])
        found = driver.receive(PATIENCE)[0]
        if "cannot" in found:
            pytest.skip(f"Somebody else must be able to {found['cannot']}, however this machine does not allow it")
        assert found == {"sum": 1000.0}
    assert other.exitcode == 0
    assert not named_sockets(os.getpid())


@as_root
def test_a_stranger_who_connects_first_gets_nothing_and_keeps_nobody_out() -> None:
    ours = Store()
    with process(pushes_in) as (channel, other), closing(offer(channel, ours, PATIENCE)) as driver:
        assert isinstance(driver, SharedChannel)
        driver.send({}, [numbers(ours, 10, 1.0)])
        assert driver.receive(PATIENCE)[0] == {"stranger got": "", "sum": 10.0}
    assert other.exitcode == 0


@pytest.mark.parametrize(("ours", "theirs"), [(None, None), (None, Store), (Store, None)])
def test_memory_is_shared_only_if_both_ends_want_to(ours: Any, theirs: Any) -> None:
    one, other = map(Channel, socket.socketpair())
    with ThreadPoolExecutor(1) as thread, closing(one), closing(other):
        accepted = thread.submit(lambda: accept(other, other.receive(PATIENCE)[0], theirs and theirs()))
        assert offer(one, ours and ours(), PATIENCE) is one
        assert accepted.result(PATIENCE) is other


# -- what makes no sense ----------------------------------------------------------------------------------------------


@pytest.fixture
def known() -> Iterator[tuple[SharedChannel, SharedChannel]]:
    """Return a receiver, and a sender of whom it knows the blocks 0 and 1, which has 24 bytes."""
    store = Store()
    with sharing(store, Store()) as (sender, receiver):
        sender.send({}, [numbers(store, 3)])
        received(receiver)
        yield receiver, sender


NAMES: list[Any] = [
    *([[0, number, 0, 24]] for number in (-1, 2, 10**30, 1.0, "1", None, [])),
    *([[0, 1, start, 8]] for start in (17, -1, 10**30, 0.5, "0", None)),
    *([[0, 1, 0, size]] for size in (25, -1, 10**30, 2.5, "24", None)),
    *([[place, 1, 0, 24]] for place in (1, -1, 10**30, 0.0, "0", None)),
    *([[0, 1]], [[0, 1, 24]], [[0, 1, 0, 24, 1]], [0], [[]], "abc", {"abc": 1}, None, 5),
]


@pytest.mark.parametrize("names", NAMES, ids=str)
def test_names_that_make_no_sense_are_refused(known: tuple[SharedChannel, SharedChannel], names: Any) -> None:
    receiver, sender = known
    sender.send({"shared": names, "turn": 0})
    with pytest.raises(WireError, match="must be"):
        receiver.receive(PATIENCE)


@pytest.mark.parametrize("turn", [{}, *({"turn": turn} for turn in (None, "x", [], float("inf"), float("nan")))])
def test_turns_that_make_no_sense_are_refused(known: tuple[SharedChannel, SharedChannel], turn: dict[str, Any]) -> None:
    receiver, sender = known
    sender.send({"shared": [[0, 1, 0, 24]]} | turn)
    with pytest.raises(WireError, match="must be named by numbers"):
        receiver.receive(PATIENCE)


def memory(size: int, *seals: int) -> tuple[int, str]:
    """Return the descriptor of memory with seals, and its name."""
    name = f"odd-{uuid.uuid4().hex}"
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    for seal in seals:
        fcntl.fcntl(descriptor, SEAL, seal)
    return descriptor, name


def pipe() -> tuple[int, str]:
    """Return the descriptor of something that is no memory, and its name."""
    ours, theirs = os.pipe()
    os.close(theirs)
    return ours, os.readlink(f"/proc/self/fd/{ours}")


BLOCKS: dict[str, tuple[Callable[[], tuple[int, str]], bytes]] = {
    "not sealed": (lambda: memory(4096), struct.pack("<Q", 4096)),
    "too small": (lambda: memory(4095, NO_SHRINK), struct.pack("<Q", 4096)),
    "nothing": (lambda: memory(4096, NO_SHRINK), struct.pack("<Q", 0)),
    "more than there can be": (lambda: memory(4096, NO_SHRINK), b"\xff" * 8),
    "not to be written to": (lambda: memory(4096, NO_SHRINK, NO_WRITING), struct.pack("<Q", 4096)),
    "no size": (lambda: memory(4096, NO_SHRINK), b"x"),
    "no memory": (pipe, struct.pack("<Q", 4096)),
}


@pytest.mark.parametrize(("make", "size"), BLOCKS.values(), ids=BLOCKS.keys())
def test_memory_that_could_be_taken_away_is_refused_and_closed(
    make: Callable[[], tuple[int, str]], size: bytes
) -> None:
    (messages, raw), (descriptors, theirs) = socket.socketpair(), socket.socketpair()
    with theirs, closing(Channel(raw)) as peer, closing(SharedChannel(messages, descriptors, Store(), True)) as channel:
        descriptor, name = make()
        socket.send_fds(theirs, [size], [descriptor])
        os.close(descriptor)
        peer.send({"shared": [[0, 0, 0, 8]], "turn": 0})
        with pytest.raises(WireError, match="Shared memory must"):
            channel.receive(PATIENCE)
        assert opened(os.getpid(), name) == 0


def test_a_size_without_memory_is_refused() -> None:
    (messages, raw), (descriptors, theirs) = socket.socketpair(), socket.socketpair()
    with theirs, closing(Channel(raw)) as peer, closing(SharedChannel(messages, descriptors, Store(), True)) as channel:
        theirs.sendall(struct.pack("<Q", 4096))
        peer.send({"shared": [[0, 0, 0, 8]], "turn": 0})
        with pytest.raises(WireError, match="must be handed over before it is named"):
            channel.receive(PATIENCE)


@pytest.mark.parametrize("header", [{}, *({"share": name} for name in (None, 5, "x", "\ud800", "/tmp/.X11-unix/X0"))])
def test_offers_that_make_no_sense_are_refused(header: dict[str, Any]) -> None:
    one, other = map(Channel, socket.socketpair())
    with closing(one), closing(other), pytest.raises(WireError, match="offered by a name of ours"):
        accept(other, header, Store())


@pytest.mark.parametrize("answers", [True, False])
def test_an_offer_that_nobody_takes_up_ends(answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "CONNECT", 0.05)
    one, other = map(Channel, socket.socketpair())
    with closing(one), closing(other):
        if answers:
            other.send({"shared": True})
        with pytest.raises(TimeoutError):
            offer(one, Store(), 0.05)
    assert not named_sockets(os.getpid())


# -- what is left -----------------------------------------------------------------------------------------------------


def test_nothing_is_left_of_memory_names_and_descriptors() -> None:
    def held() -> tuple[int, int]:
        gc.collect()
        return len(mapped(os.getpid())), opened(os.getpid())

    def used() -> set[str]:
        ours, theirs = Store(), Store()
        with sharing(ours, theirs) as (driver, worker):
            driver.send({}, [numbers(ours, 5)])
            worker.send({}, [numbers(theirs, 5)])
            read = received(worker), received(driver)
            assert held() > before, read
            return named_sockets(os.getpid())

    before = held()
    names = used()
    assert len(names) == 1
    assert held() == before
    assert not names & all_named_sockets()


def test_descriptors_are_not_for_programs_that_a_worker_starts() -> None:
    store = Store()
    with sharing(store, Store()) as (driver, worker):
        driver.send({}, [numbers(store, 5)])
        received(worker)
        ours = [worker._descriptors.fileno(), worker.fileno(), *(block.descriptor for block in worker._theirs)]
        assert not any(map(os.get_inheritable, ours))
