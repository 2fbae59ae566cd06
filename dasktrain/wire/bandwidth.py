"""What links carry: measured where the way of rounds depends on it, and with no more bytes than tell."""

from collections.abc import Callable, Collection
from contextlib import suppress
from threading import Lock
from time import perf_counter

from dasktrain.wire.channel import Channel

#: workers whose links are measured, as long as they stay
WORKERS = 4
#: bytes of the first probe, and how many times as many the next one has, until one has the most bytes, or takes so many
#: seconds that what a message costs, and what a switch holds for a moment, is little of it
FIRST, GROWTH, MOST, LONG = 1 << 15, 4, 1 << 23, 0.1
#: seconds for a probe to arrive
PATIENCE = 5.0


class Gauge:
    """Measures links of a run, one at a time, or they would share the driver's.

    Parameters
    ----------
    depends
        Returns whether the way of rounds depends on links if some workers are those on other hosts.
    """

    def __init__(self, depends: Callable[[Collection[str]], bool]) -> None:
        self._depends = depends
        self._measured: dict[str, bool] = {}  # workers on other hosts, and whether their links were measured
        self._alone = Lock()

    def rate(self, worker: str, channel: Channel) -> float | None:
        """Return the bytes a second that a worker's connection carries, or None if nothing depends on it.

        Called in threads of workers that attach, when their connections are idle. The first few of them, with whom
        there is nothing to choose yet, are not measured.
        """
        with self._alone:
            self._measured[worker] = False
            if sum(self._measured.copy().values()) == WORKERS or not self._depends(list(self._measured)):
                return None
            self._measured[worker] = True
            return carried(channel)

    def forget(self, worker: str) -> None:
        """Take note of a worker's end, in any thread."""
        self._measured.pop(worker, None)


def carried(channel: Channel) -> float:
    """Return the bytes a second that a connection carries; it is at most that if not even the first probe arrives."""
    size = FIRST
    while (took := _seconds(channel, size)) < LONG and size < MOST:
        size *= GROWTH
    return size / took


def _seconds(channel: Channel, size: int) -> float:
    """Return how long a probe takes to arrive, or how long it was waited for; whoever reads on passes over the echo."""
    began = perf_counter()
    channel.send({"probe": True}, [bytes(size)])
    with suppress(TimeoutError):  # a slow link is none that is lost
        channel.receive(PATIENCE)
    return perf_counter() - began
