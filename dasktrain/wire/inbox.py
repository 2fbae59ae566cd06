"""Wait for many connections and for what other threads have to tell, all at once."""

import contextlib
import selectors
import socket
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from dasktrain.wire.channel import Channel

T = TypeVar("T")
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Inbox(Generic[T]):
    """One thread waits, any thread tells."""

    def __init__(self) -> None:
        self._news: SimpleQueue[T] = SimpleQueue()
        self._bell, self._rung = socket.socketpair()
        for end in (self._bell, self._rung):
            end.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._rung, READ)

    def tell(self, news: T) -> None:
        """Leave news and wake the thread that waits."""
        self._news.put(news)
        with contextlib.suppress(OSError):  # full: it rings already; closed: nobody listens
            self._bell.send(b"!")

    def news(self) -> list[T]:
        """Take all news there is."""
        found: list[T] = []
        with contextlib.suppress(Empty):
            while True:
                found.append(self._news.get_nowait())
        return found

    def watch(self, name: str, channel: Channel, writing: bool = False) -> None:
        """Wait for a channel from now on: for messages, and for its taking more of ours if `writing`."""
        mask = READ | WRITE if writing else READ
        if channel.fileno() in self._selector.get_map():
            self._selector.modify(channel, mask, name)
        else:
            self._selector.register(channel, mask, name)

    def forget(self, channel: Channel) -> None:
        """Wait for a channel no more; call it before the channel is closed."""
        self._selector.unregister(channel)

    def wait(self, timeout: float) -> list[tuple[str, bool, bool]]:
        """Wait until there are news or channels are ready; return those: name, can be read, can be written."""
        ready = []
        for key, mask in self._selector.select(timeout):
            if key.fileobj is self._rung:
                with contextlib.suppress(OSError):
                    self._rung.recv(4096)
            else:
                ready.append((key.data, bool(mask & READ), bool(mask & WRITE)))
        return ready

    def close(self) -> None:
        """End what belongs to this; channels are their owners'."""
        self._selector.close()
        self._bell.close()
        self._rung.close()
