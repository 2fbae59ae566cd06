"""wire/lines.py: connections that are served together, and never wait for each other."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

from dasktrain.wire.channel import MAGIC, Channel
from dasktrain.wire.lines import Lines

PATIENCE = 20.0
#: more than a socket takes
LARGE = np.arange(1 << 20, dtype=np.float32)


@pytest.fixture
def pair() -> Iterator[tuple[Lines, Lines, Channel, Channel]]:
    """Two ends, each of whose lines has the number 7, and their channels."""
    one, other = map(Channel, socket.socketpair())
    with closing(Lines()) as left, closing(Lines()) as right, closing(one), closing(other):
        left.add(7, one)
        right.add(7, other)
        yield left, right, one, other


def exchange(lines: Lines, messages: int) -> list[bytes]:
    """Send large messages and receive as many."""
    came: list[bytes] = []
    for _ in range(messages):
        lines.post(7, {}, [LARGE])
    while len(came) < messages or lines.sending:
        came += [bytes(message[1][0]) for _, message in lines.served(PATIENCE) if message is not None]
    return came


def test_two_that_send_to_each_other_do_not_wait_for_each_other(pair: tuple[Lines, Lines, Channel, Channel]) -> None:
    with ThreadPoolExecutor(2) as threads:
        for came in threads.map(lambda lines: exchange(lines, 3), pair[:2]):
            assert came == [LARGE.tobytes()] * 3


def test_an_end_is_told_once_and_what_is_posted_afterwards_goes_nowhere(
    pair: tuple[Lines, Lines, Channel, Channel],
) -> None:
    left, right, _, _ = pair
    left.drop(7)
    assert list(right.served(PATIENCE)) == [(7, None)]
    for lines in (left, right):
        lines.post(7, {"to": "nobody"})
        assert (7 in lines, len(lines), lines.sending) == (False, 0, set())
        assert list(lines.served(0)) == []


def test_when_something_last_came_and_went_is_known_of_each_line(pair: tuple[Lines, Lines, Channel, Channel]) -> None:
    left, right, _, other = pair
    list(right.served(0))  # the first look is at what may have been read ahead
    began, went = right.came[7], left.went[7]
    left.post(7, {})
    assert (posted := left.went[7]) > went
    list(left.served(PATIENCE))
    assert left.went[7] > posted
    other._socket.recv(1, socket.MSG_PEEK)  # part of a message is there
    list(right.served(PATIENCE))
    assert right.came[7] > began


def test_whoever_is_told_of_an_end_sees_what_was_to_be_sent(pair: tuple[Lines, Lines, Channel, Channel]) -> None:
    left, right, _one, _ = pair
    right.post(7, {}, [bytes(1 << 24)])
    left.drop(7)
    for number, message in right.served(PATIENCE):
        assert (number, message, right.sending) == (7, None, {7})
    assert (right.sending, 7 in right) == (frozenset(), False)


def test_nonsense_ends_a_line(pair: tuple[Lines, Lines, Channel, Channel]) -> None:
    left, right, one, _ = pair
    one._socket.send(MAGIC[::-1] * 3)
    assert list(right.served(PATIENCE)) == [(7, None)]
    assert 7 in left  # which does not know yet
    assert list(left.served(PATIENCE)) == [(7, None)]


def test_a_line_that_is_removed_is_a_channel_as_before(pair: tuple[Lines, Lines, Channel, Channel]) -> None:
    left, right, one, other = pair
    left.post(7, {"posted": 1})
    left.remove(7)
    right.remove(7)
    one.send({"sent": 2})
    assert [other.receive(PATIENCE)[0] for _ in range(2)] == [{"posted": 1}, {"sent": 2}]
