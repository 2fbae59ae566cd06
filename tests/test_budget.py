"""A run ends once it has taken its time, or its money."""

from typing import Any

import pytest

import dasktrain as dt
from dasktrain.errors import BadInput
from dasktrain.observe import Record
from dasktrain.observers import budget
from tests.small import Watcher, fit, table


class Clock(Watcher):
    """A clock that a round takes so many seconds by, and the way to the first one another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, round: float = 10.0, first: float = 100.0) -> None:
        super().__init__()
        self.now, self._round, self._first = 0.0, round, first
        monkeypatch.setattr(budget, "monotonic", lambda: self.now)

    def stage(self, text: str) -> None:
        if text.startswith("building"):
            self.now += self._first

    def step(self) -> None:
        self.now += self._round


def train(clock: Clock, spend: dt.Budget, *more: dt.Observer, workers: int = 1, **settings: Any) -> dt.Result:
    return fit(table(), dt.LocalWire(workers), observers=[clock, spend, *more], **({"epochs": 5} | settings))


@pytest.mark.parametrize(
    ("settings", "workers", "rounds", "ended"),
    [
        ({"seconds": 130.0}, 1, 3, "observer"),
        ({"seconds": 131.0}, 1, 4, "observer"),
        ({"seconds": 1.0}, 1, 1, "observer"),
        ({"seconds": 1e9}, 1, 15, "epochs"),
        ({"cost": 2 * 139 / 3600, "cost_per_worker_hour": 1.0}, 2, 4, "observer"),
        ({"cost": 4 * 119 / 3600, "cost_per_worker_hour": 2.0}, 2, 2, "observer"),
        ({"seconds": 120.0, "cost": 1e9, "cost_per_worker_hour": 2.0}, 2, 2, "observer"),
    ],
    ids=str,
)
def test_run_ends_after_the_round_by_which_all_is_spent(
    settings: dict[str, float], workers: int, rounds: int, ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spend = dt.Budget(**settings)
    result = train(Clock(monkeypatch), spend, workers=workers)
    assert (len(result.history.rounds), result.ended) == (rounds, ended)
    assert spend.seconds_spent == 100 + 10 * rounds
    hours = workers * spend.seconds_spent / 3600
    assert spend.spent == pytest.approx(hours * settings.get("cost_per_worker_hour", 0))
    assert result.digest == fit(table(), epochs=None, max_rounds=rounds).digest


def test_next_run_has_a_budget_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, spend = Clock(monkeypatch), dt.Budget(seconds=130)
    for _ in range(2):
        assert len(train(clock, spend).history.rounds) == 3


def test_resumed_run_has_what_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    clock, url = Clock(monkeypatch), str(tmp_path)
    train(clock, dt.Budget(seconds=1e9), dt.Checkpoint(url), max_rounds=4)
    clock.now += 1e6  # which nobody worked
    spend = dt.Budget(seconds=280)
    result = train(clock, spend, dt.Checkpoint(url), resume=url)
    assert (len(result.history.rounds), result.ended, spend.seconds_spent) == (8, "observer", 280)


def test_run_goes_on_if_it_is_resumed_with_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    clock, url = Clock(monkeypatch), str(tmp_path)
    assert len(train(clock, dt.Budget(seconds=120), dt.Checkpoint(url)).history.rounds) == 2
    assert len(train(clock, dt.Budget(seconds=120), dt.Checkpoint(url), resume=url).history.rounds) == 2
    result = train(clock, dt.Budget(seconds=1e9), dt.Checkpoint(url), resume=url)
    assert (len(result.history.rounds), result.ended) == (15, "epochs")
    assert result.digest == fit(table(), epochs=5).digest


class Wishing(dt.Observer):
    """Asks for the end after every round."""

    def round(self, record: Record) -> bool:
        return True


def test_what_another_observer_wished_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    clock, url = Clock(monkeypatch), str(tmp_path)
    observers = [clock, Wishing(), dt.Budget(seconds=110), dt.Checkpoint(url)]
    assert len(fit(table(), observers=observers).history.rounds) == 1
    observers = [clock, Watcher(), dt.Budget(seconds=1e9), dt.Checkpoint(url)]
    result = fit(table(), observers=observers, resume=url)
    assert (len(result.history.rounds), result.ended) == (1, "observer")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cost": 1.0},
        {"cost_per_worker_hour": 1.0},
        {"seconds": 0},
        {"seconds": 1.0, "cost": -1.0, "cost_per_worker_hour": 1.0},
        {"seconds": float("nan")},
    ],
    ids=str,
)
def test_budget_of_nothing_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=r"however (they are|it is)"):
        dt.Budget(**settings)
