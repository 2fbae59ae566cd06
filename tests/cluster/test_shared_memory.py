"""Workers on the driver's host compute in its memory: the same bits as without, and nothing left whoever dies."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

import dask
import pytest
from distributed import Client
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.fitting import CANARY_ROWS
from dasktrain.wire import lease
from dasktrain.wire.shared import POSSIBLE
from tests.cluster.test_survival import mortals
from tests.drivers import driving, said_of_a_round
from tests.problems import PROBLEMS, expected
from tests.processes import all_named_sockets, mapped, named_sockets, opened
from tests.saboteurs import Mortal, Once

PROBLEM = PROBLEMS[0]
PATIENCE = 20.0
#: of the run in which a worker is stopped: its shards, and the calls of its module after which it is
SHARDS, DOZES = 8, 40
#: how a worker has what is the driver's
READABLE = "r--s"

pytestmark = pytest.mark.skipif(not POSSIBLE, reason="This system must have anonymous memory that can be sealed")


@pytest.fixture(scope="module")
def killed_often() -> Iterator[Client]:
    with mortals() as (_, client):
        yield client


@pytest.fixture
def two(killed_often: Client) -> Iterator[Client]:
    """Two workers, alive, that share nothing with anybody afterwards."""
    killed_often.wait_for_workers(2, timeout=60)
    yield killed_often
    killed_often.wait_for_workers(2, timeout=60)
    eventually(lambda: held_by_workers(killed_often), [([], 0)] * 2)
    assert not named_sockets(os.getpid())


def held_by_workers(client: Client) -> list[tuple[list[str], int]]:
    """Return the memory that each worker has mapped, and how many descriptors of it."""
    client.run(gc.collect)
    return [(mapped(pid), opened(pid)) for pid in pids(client)]


def pids(client: Client) -> list[int]:
    """Return the workers' processes in the order of their addresses."""
    return [pid for _, pid in sorted(client.run(os.getpid).items())]


def eventually(found: Callable[[], Any], wanted: Any) -> None:
    """Wait until something is as it should be; raise AssertionError if it takes too long."""
    deadline, tick = monotonic() + PATIENCE, Event()
    while (last := found()) != wanted:
        assert monotonic() < deadline, f"{last} is left, not {wanted}"
        tick.wait(0.05)


def sharers(workers: list[int]) -> list[bool]:
    """Return of each worker whether it reads in its driver's memory."""
    return [READABLE in mapped(worker) for worker in workers]


class Sees(dt.Observer):
    """Calls a function after so many rounds and keeps what it returns."""

    def __init__(self, rounds: int, look: Callable[[], Any]) -> None:
        self._rounds, self._look = rounds, look
        self.seen: Any = None

    def round(self, record: dict[str, Any]) -> None:
        if record["epoch"] == 0 and record["round"] == self._rounds:
            self.seen = self._look()


def fit(client: Client, *observers: dt.Observer) -> dt.Result:
    """Train the first problem as its reference does."""
    return PROBLEM.trainer(list(observers)).fit(PROBLEM.data, client=client, epochs=2, batch_size=50, seed=7)


# -- who shares -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [True, False])
def test_workers_share_memory_unless_they_are_not_to(two: Client, share: bool) -> None:
    workers = pids(two)
    sees = Sees(3, lambda: sharers(workers))
    with dask.config.set({"dasktrain.shared-memory": share}):
        result = fit(two, sees)
    assert sees.seen == [share, share]
    assert result.digest == expected(PROBLEM)


def test_a_fleet_of_which_one_worker_shares_uses_both_ways_in_one_round(two: Client) -> None:
    def able(possible: bool) -> None:
        lease.POSSIBLE = possible

    workers = pids(two)
    sees = Sees(3, lambda: sharers(workers))
    two.run(able, False, workers=[min(two.nthreads())])
    try:
        assert fit(two, sees).digest == expected(PROBLEM)
    finally:
        two.run(able, POSSIBLE)
    assert sees.seen == [False, True]


def test_a_run_leaves_its_driver_nothing(two: Client) -> None:
    def held() -> tuple[int, int]:
        gc.collect()
        return len(mapped(os.getpid())), opened(os.getpid())

    before = held()
    fit(two)
    assert held() == before


# -- who dies ---------------------------------------------------------------------------------------------------------


def test_a_worker_killed_in_the_middle_of_a_round_takes_nothing_with_it(two: Client, tmp_path: Path) -> None:
    once, workers = Once(tmp_path), pids(two)
    sees = Sees(0, lambda: sharers(workers))

    def trained(client: Any, *observers: dt.Observer) -> dt.Result:
        trainer = PROBLEM.trainer(list(observers))
        trainer.model = lambda schema: Mortal("compute", once)
        return trainer.fit(PROBLEM.data, epochs=3, batch_size=50, client=client)

    result = trained(two, sees)
    assert sees.seen == [True, True]
    assert not once(), "nobody was killed"
    assert result.digest == trained(dt.LocalWire()).digest


def test_a_driver_killed_in_the_middle_of_a_run_leaves_workers_without_its_memory(two: Client) -> None:
    workers = pids(two)
    with driving(two, 0, batch_size=50, max_rounds=10**9) as (driver, said):
        assert said_of_a_round(said)
        assert sharers(workers) == [True, True]
        names = named_sockets(driver.pid or 0)
        assert names
    eventually(lambda: held_by_workers(two), [([], 0)] * 2)
    assert not names & all_named_sockets()
    assert fit(two).digest == expected(PROBLEM)


# -- who is late ------------------------------------------------------------------------------------------------------


class Dozes(nn.Module):
    """Stops the first worker that is between its layers, and says so, and when that worker is in later rounds again.

    What it then computes with is partly of the round it was asked in and partly of another. By then it and the other
    one have all rows, so that nobody has to end it for those it has.
    """

    def __init__(self, once: Once, again: Path) -> None:
        super().__init__()
        self.once, self.again, self.driver = once, again, os.getpid()
        self.calls, self.dozed = 0, False
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, 6) -> (rows, 3)."""
        if os.getpid() == self.driver or len(x) == CANARY_ROWS:
            return self.second(self.first(x).relu())
        self.calls += 1
        if self.dozed and self.calls == DOZES + 3 * SHARDS:
            self.again.touch()
        hidden = self.first(x).relu()
        if self.calls == DOZES and self.once():
            os.kill(os.getpid(), signal.SIGSTOP)
            self.dozed = True
        return self.second(hidden)


class Wakes(dt.Observer):
    """Wakes the worker that was stopped some rounds later; asks to stop once it has been asked again."""

    def __init__(self, workers: list[int], struck: Path, again: Path) -> None:
        self._workers, self._struck, self._again = workers, struck, again
        self._rounds = 0

    def round(self, record: dict[str, Any]) -> bool:
        self._rounds += self._struck.exists()
        if self._rounds >= 5:
            self.wake()
        return self._again.exists()

    def wake(self) -> None:
        for worker in self._workers:
            with suppress(ProcessLookupError):  # somebody ended it, and the run will not see it again
                os.kill(worker, signal.SIGCONT)


def test_a_worker_that_was_stopped_while_parameters_changed_answers_nothing(two: Client, tmp_path: Path) -> None:
    again, struck = tmp_path / "again", tmp_path / "struck"
    once, workers = Once(tmp_path), pids(two)
    wakes, sees = Wakes(workers, struck, again), Sees(0, lambda: sharers(workers))

    settings: dict[str, Any] = {"batch_size": 50, "shards": SHARDS, "shuffle": "global"}

    def trained(client: Any, *observers: dt.Observer, **ends: int) -> dt.Result:
        trainer = PROBLEM.trainer(list(observers))
        trainer.model = lambda schema: Dozes(once, again)
        return trainer.fit(PROBLEM.data, client=client, **settings, **ends)  # type: ignore[arg-type]

    try:
        result = trained(two, wakes, sees, max_rounds=5_000)
    finally:
        wakes.wake()
    assert sees.seen == [True, True]
    assert result.ended == "observer"
    assert result.digest == trained(dt.LocalWire(), max_rounds=len(result.history.rounds)).digest
