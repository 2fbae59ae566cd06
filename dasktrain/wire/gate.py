"""Where a worker takes connections of other workers of its host, who leave numbers in memory that it reads."""

import os
import selectors
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dasktrain.errors import WireError
from dasktrain.wire.channel import Message
from dasktrain.wire.shared import SharedChannel, Store, follow, is_ours, listen

#: what differs between two runs of a system, and what between those on it that do not see each other's sockets
_BOOT, _NETWORK = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/net")


class Gate:
    """A socket with a name, and the lines of those who came through it.

    Whose turn it is to speak and what is said on a line is not known here.

    Parameters
    ----------
    store
        What the others may read.

    Attributes
    ----------
    name : str
        What others connect to.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._selector = selectors.DefaultSelector()
        self.name, self._listener = listen()
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)

    def heard(self, timeout: float) -> Iterator[tuple[SharedChannel, Message | None]]:
        """Yield what comes within `timeout` seconds, as soon as something does: messages, and None for a line's end."""
        for key, _ in self._selector.select(timeout):
            match key.fileobj:
                case SharedChannel() as line:
                    yield from self._read(line)
                case self._listener:
                    self._accept()
                case descriptors:
                    assert isinstance(descriptors, socket.socket)
                    self._admit(descriptors)

    def fileno(self) -> int:
        """Return what can be read from when there is something to hear."""
        return self._selector.fileno()

    @property
    def lines(self) -> list[SharedChannel]:
        """The lines that are open, as far as is known."""
        return [line for key in self._selector.get_map().values() if isinstance(line := key.fileobj, SharedChannel)]

    def drop(self, line: SharedChannel) -> None:
        """End a line, which its other end sees."""
        with suppress(KeyError, ValueError):  # it has ended
            self._selector.unregister(line)
            line.close()

    def close(self) -> None:
        """End all lines and the socket."""
        for key in list(self._selector.get_map().values()):
            assert not isinstance(key.fileobj, int)
            key.fileobj.close()  # type: ignore[attr-defined]
        self._selector.close()

    def _accept(self) -> None:
        with suppress(OSError):  # whoever came is gone again
            descriptors, _ = self._listener.accept()
            if is_ours(descriptors):
                self._selector.register(descriptors, selectors.EVENT_READ)
            else:  # the name can be read by anyone on the host
                descriptors.close()

    def _admit(self, descriptors: socket.socket) -> None:
        """Go on with a connection whose other end has handed over what there is to talk on."""
        self._selector.unregister(descriptors)
        with suppress(OSError):  # it has not
            line = follow(descriptors, self._store)
            line.unblock()
            self._selector.register(line, selectors.EVENT_READ)

    def _read(self, line: SharedChannel) -> Iterator[tuple[SharedChannel, Message | None]]:
        try:
            while line.fileno() >= 0 and (message := line.poll()) is not None:
                yield line, message
        except (OSError, WireError):
            self.drop(line)
            yield line, None


def host() -> str:
    """Return what is the same for processes that can connect to each other by name and read each other's memory."""
    return f"{_BOOT.read_text().strip()} {_NETWORK.stat().st_ino} {os.getuid()}"
