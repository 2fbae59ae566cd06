"""Connections that one thread serves together: whatever can be sent is sent, and none of them is waited for."""

import selectors
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from time import monotonic

from dasktrain.errors import WireError
from dasktrain.messages import Header, Vector
from dasktrain.wire.channel import Channel, Message

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Lines:
    """Channels by number, of which two ends that send to each other never wait for each other.

    Attributes
    ----------
    came, went : dict
        When, on the monotonic clock, something last came on each line, or went; or when there was first something to.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._lines: dict[int, Channel] = {}
        self._sending: set[int] = set()
        self._unread: set[int] = set()  # that may hold what no selector sees: TLS reads ahead
        self.came: dict[int, float] = {}
        self.went: dict[int, float] = {}

    def __contains__(self, number: int) -> bool:
        """Whether a line is there, and has not been dropped."""
        return number in self._lines

    def __len__(self) -> int:
        """How many there are."""
        return len(self._lines)

    def fileno(self) -> int:
        """Return what can be read from when there is something to serve."""
        return self._selector.fileno()

    @property
    def sending(self) -> frozenset[int]:
        """Lines on which something was posted that is not sent."""
        return frozenset(self._sending)

    def add(self, number: int, channel: Channel) -> None:
        """Serve a channel as well."""
        channel.unblock()
        self._lines[number] = channel
        self._selector.register(channel, READ, number)
        self._unread.add(number)
        self.came[number] = self.went[number] = monotonic()

    def remove(self, number: int) -> None:
        """Serve a channel no more, which is as it was before; what was posted there is sent with what follows."""
        channel = self._lines.pop(number, None)
        self._sending.discard(number)
        self._unread.discard(number)
        if channel is not None:
            self._selector.unregister(channel)
            channel.block()

    def drop(self, number: int) -> None:
        """End a line, which its other end sees."""
        channel = self._lines.get(number)
        with suppress(OSError):  # it has ended
            self.remove(number)
        if channel is not None:
            channel.close()

    def close(self) -> None:
        """End all lines."""
        for number in list(self._lines):
            self.drop(number)
        self._selector.close()

    def post(self, number: int, header: Header, arrays: Sequence[Vector | bytes] = ()) -> None:
        """Have a message sent; its arrays may change when nothing is being sent. A line that is not there gets none."""
        channel = self._lines.get(number)
        if channel is not None:
            channel.post(header, arrays)
            if number not in self._sending:
                self._sending.add(number)
                self.went[number] = monotonic()
                self._selector.modify(channel, READ | WRITE, number)

    def silent(self, numbers: Iterable[int], began: float, patience: float) -> set[int]:
        """Return from which of some lines nothing has come for so many seconds, and all to which nothing has gone.

        The seconds count from `began` on, on the monotonic clock.
        """
        long_ago = monotonic() - patience
        silent = {number for number in numbers if max(began, self.came.get(number, began)) < long_ago}
        return silent | {number for number in self._sending if max(began, self.went[number]) < long_ago}

    def idle(self, numbers: Iterable[int], seconds: float) -> set[int]:
        """Return to which of some lines nothing goes, and has not for so many seconds."""
        long_ago = monotonic() - seconds
        return {number for number in set(numbers) - self._sending if self.went.get(number, 0.0) <= long_ago}

    def flush(self) -> None:
        """Send what can be at once, and take nothing; the end of a line is seen by whoever takes something."""
        for number in self.sending:
            with suppress(OSError):
                self._write(number, self._lines[number])

    def _write(self, number: int, channel: Channel) -> None:
        if channel.flush():
            self._sending.discard(number)
            self._selector.modify(channel, READ, number)

    def served(self, timeout: float) -> Iterator[tuple[int, Message | None]]:
        """Send what can be; yield what comes within `timeout` seconds: messages, good until the next, or a line's end.

        That is None, and whoever gets it still sees what was to be sent.
        """
        ready = dict.fromkeys(self._unread, READ)
        self._unread.clear()
        for key, mask in self._selector.select(0 if ready else timeout):
            ready[key.data] = ready.get(key.data, 0) | mask
        for number, mask in ready.items():
            if number in self._lines:
                yield from self._serve(number, self._lines[number], mask)

    def _serve(self, number: int, channel: Channel, mask: int) -> Iterator[tuple[int, Message | None]]:
        try:
            if mask & WRITE:
                self.went[number] = monotonic()
                self._write(number, channel)
            if mask & READ:
                self.came[number] = monotonic()
            while mask & READ and number in self._lines and (message := channel.poll()) is not None:
                yield number, message
                channel.reuse(message[1])
        except (OSError, WireError):
            yield number, None
            self.drop(number)
