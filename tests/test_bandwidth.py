"""wire/bandwidth.py: links are measured where something depends on it, and a slow one is none that is lost."""

from collections.abc import Collection, Sequence
from typing import Any, cast

import pytest

from dasktrain.wire import bandwidth
from dasktrain.wire.bandwidth import FIRST, LONG, MOST, PATIENCE, WORKERS, Gauge, carried
from dasktrain.wire.channel import Channel

#: seconds for the smallest message there and back
LATENCY = 1e-3


class Link:
    """A connection of a given rate, in time that passes while something is on its way."""

    def __init__(self, rate: float, clock: pytest.MonkeyPatch) -> None:
        self.rate, self.now, self.probes, self._due = rate, 0.0, list[int](), 0.0
        clock.setattr(bandwidth, "perf_counter", lambda: self.now)

    def send(self, header: dict[str, Any], arrays: Sequence[bytes]) -> None:
        self.probes.append(sum(map(len, arrays)))
        self._due = self.now + LATENCY + self.probes[-1] / self.rate

    def receive(self, timeout: float) -> None:
        self.now = min(self._due, self.now + timeout)
        if self.now < self._due:
            raise TimeoutError

    @property
    def channel(self) -> Channel:
        return cast(Channel, self)


@pytest.mark.parametrize("rate", [1e5, 1e6, 1e7, 1e8, 1e9])
def test_a_rate_is_found_with_bytes_that_suit(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(rate, monkeypatch)
    assert carried(link.channel) == pytest.approx(rate, rel=0.15)
    assert sum(link.probes) <= max(FIRST, 6 * LONG * rate), "no more than shows it"
    assert max(link.probes) <= MOST


def test_a_link_that_takes_too_long_is_taken_for_as_slow_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(FIRST / PATIENCE / 10, monkeypatch)
    assert carried(link.channel) == FIRST / PATIENCE
    assert link.probes == [FIRST]


def three(workers: Collection[str]) -> bool:
    return len(workers) >= 3


def test_nothing_is_sent_while_nothing_depends_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(1e8, monkeypatch)
    gauge = Gauge(three)
    assert [gauge.rate(worker, link.channel) for worker in "ab"] == [None, None]
    gauge.forget("b")
    assert gauge.rate("c", link.channel) is None
    assert link.probes == []
    assert gauge.rate("d", link.channel) is not None


def test_some_are_measured_and_others_when_these_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(1e8, monkeypatch)
    gauge = Gauge(three)
    measured = [worker for worker in "abcdefgh" if gauge.rate(worker, link.channel) is not None]
    assert measured == list("cdefgh"[:WORKERS])
    gauge.forget(measured[0])
    assert gauge.rate("i", link.channel) is not None
    assert gauge.rate("j", link.channel) is None
