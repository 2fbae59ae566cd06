"""Fault x phase: the run goes on, ends with the digest it would have had, and leaves nothing."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster
from torch import nn

import dasktrain as dt
from dasktrain.errors import WorkerLost
from tests.leftovers import assert_left, left_on
from tests.problems import PROBLEMS, SETTINGS, expected
from tests.processes import stop
from tests.saboteurs import After, Mortal, Once, Unhurried

PROBLEM = PROBLEMS[2]  # batch normalisation and dropout


@contextmanager
def mortals() -> Iterator[tuple[LocalCluster, Client]]:
    """Start two workers that may be killed; their nannies start others."""
    # or it would give up a worker that is killed twice within so many seconds, with its nanny
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}):
        cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
        with Client(cluster, set_as_default=False) as client:
            yield cluster, client
        with suppress(KeyError):  # LocalCluster.close trips over a worker that it has not seen come back
            cluster.close()


@pytest.fixture(scope="module")
def killed_often() -> Iterator[Client]:
    with mortals() as (_, client):
        yield client


@pytest.fixture
def two(killed_often: Client) -> Iterator[Client]:
    """Two workers, alive, and nothing of ours on them afterwards."""
    yield killed_often
    killed_often.wait_for_workers(2, timeout=60)
    empty = {"workers": dict.fromkeys(killed_often.nthreads(), ([], [], 0)), "scheduler": []}
    assert_left(killed_often, empty)


class Counted(dt.Observer):
    """Keeps which rounds it is told of."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def round(self, record: dict[str, Any]) -> None:
        self.told.append(record["round"])


def fit_mortal(phase: str, once: Once, client: Any) -> dt.Result:
    X, y = PROBLEM.arrays
    trainer = dt.Trainer(
        lambda schema: Mortal(phase, once), nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, lr=0.1), observers=[]
    )
    validation = dt.Arrays(X[:90], y[:90])
    return trainer.fit(PROBLEM.data, validation, epochs=2, batch_size=50, client=client)


@pytest.mark.parametrize("phase", ["attach", "compute", "send", "send in parts", "receive", "evaluate"])
def test_a_worker_killed_in_any_phase_changes_no_bit(two: Client, tmp_path: Path, phase: str) -> None:
    once = Once(tmp_path)
    with dask.config.set({"dasktrain.shared-memory": phase not in ("send", "send in parts", "receive")}):
        result = fit_mortal(phase, once, two)
    assert not once(), "nobody was killed"
    assert result.digest == fit_mortal(phase, once, dt.LocalWire()).digest


def test_a_worker_killed_while_data_is_converted_changes_no_bit(two: Client, tmp_path: Path) -> None:
    once, driver = Once(tmp_path), os.getpid()

    def mortal(block: np.ndarray) -> np.ndarray:
        if os.getpid() != driver and len(block) and once():
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    data = PROBLEM.data
    data.X = data.X.map_blocks(mortal, dtype=data.X.dtype, meta=data.X._meta)
    assert PROBLEM.trainer().fit(data, client=two, **SETTINGS).digest == expected(PROBLEM)  # type: ignore[arg-type]
    assert not once(), "nobody was killed"


def test_a_worker_killed_while_predicting_changes_no_bit(two: Client, tmp_path: Path) -> None:
    once = Once(tmp_path)
    result = fit_mortal("predict", once, dt.LocalWire())
    with two.as_current():
        found = result.predict(PROBLEM.data.X).compute()
    assert not once(), "nobody was killed"
    np.testing.assert_array_equal(found, result.predict(PROBLEM.arrays[0]).compute(scheduler="sync"))


def kill(signal_: signal.Signals) -> Callable[[LocalCluster, Client], None]:
    return lambda cluster, client: os.kill(sorted(client.run(os.getpid).items())[0][1], signal_)


def retire(cluster: LocalCluster, client: Client) -> None:
    client.retire_workers([min(client.nthreads())])


def scale_down(cluster: LocalCluster, client: Client) -> None:
    cluster.scale(1)


def scale_up(cluster: LocalCluster, client: Client) -> None:
    cluster.scale(3)


CHANGES = {
    "killed": kill(signal.SIGKILL),
    "terminated": kill(signal.SIGTERM),
    "retired": retire,
    "scaled down": scale_down,
    "scaled up": scale_up,
}


@pytest.mark.parametrize("change", CHANGES)
def test_workers_come_and_go_between_rounds_without_a_trace(change: str) -> None:
    told = "joined" if change == "scaled up" else "went away"

    class Until(Unhurried):
        """Asks to stop once the change has been seen, and some rounds later."""

        def round(self, record: dict[str, Any]) -> bool:
            super().round(record)
            return any(told in text for text in after.told) and after.run.cursor.done >= 60 and record["round"] == 3

    with mortals() as (cluster, client):
        after = After(20, lambda: CHANGES[change](cluster, client))
        result = PROBLEM.trainer([after, Until()]).fit(PROBLEM.data, client=client, **(SETTINGS | {"epochs": 10_000}))
    done = len(result.history.rounds)
    assert result.digest == PROBLEM.fit(dt.LocalWire(), epochs=None, max_rounds=done).digest


def test_a_stopped_worker_is_backed_up_and_its_late_answer_dropped(two: Client) -> None:
    pid = min(two.run(os.getpid).items())[1]
    stopped = After(20, lambda: stop(pid))

    def go_on() -> None:
        with suppress(ProcessLookupError):  # its nanny has ended it: its data was needed
            os.kill(pid, signal.SIGCONT)

    try:
        with dask.config.set({"dasktrain.timeouts.silence": "3s"}):
            result = PROBLEM.trainer([stopped, After(24, go_on)]).fit(
                PROBLEM.data, client=two, **(SETTINGS | {"epochs": 6})
            )
    finally:
        go_on()
    assert result.digest == PROBLEM.fit(dt.LocalWire(), epochs=6).digest
    slowest = max(result.history.rounds, key=lambda record: record["seconds"])
    assert (slowest["epoch"], slowest["round"]) == divmod(20, 9)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_what_shards_have_kept_is_made_anew(two: Client, blow: signal.Signals, shared: bool) -> None:
    pid = min(two.run(os.getpid).items())[1]
    trainer = PROBLEM.trainer([After(13, lambda: os.kill(pid, blow)), rounds := Counted()])
    trainer.compression = dt.TopK(0.1, every=8)
    alone = PROBLEM.trainer([])
    alone.compression = trainer.compression
    settings = SETTINGS | {"epochs": 4}
    try:
        with dask.config.set({"dasktrain.timeouts.silence": "3s", "dasktrain.shared-memory": shared}):
            result = trainer.fit(PROBLEM.data, client=two, **settings)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    assert result.digest == alone.fit(PROBLEM.data, client=dt.LocalWire(), **settings).digest
    assert rounds.told == list(range(9)) * 4


def test_no_worker_left_is_an_error_within_the_deadline() -> None:
    with mortals() as (cluster, client):
        after = After(5, lambda: cluster.scale(0))
        with (
            dask.config.set({"dasktrain.timeouts.workers": "0.5s"}),
            pytest.raises(WorkerLost, match=r"0\.5 s, however none did after worker tcp://.* went away"),
        ):
            PROBLEM.trainer([after]).fit(PROBLEM.data, batch_size=50, max_rounds=100_000, client=client)


def test_two_runs_at_once_end_with_their_own_bits(clean: Client) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(problem.fit, clean) for problem in (PROBLEMS[0], PROBLEM)]
        assert [run.result(60).digest for run in runs] == [expected(PROBLEMS[0]), expected(PROBLEM)]


def test_leftovers_are_noticed(clean: Client) -> None:
    """The helper that the tests above rely on."""
    before = left_on(clean)
    future = clean.submit(sum, [1], pure=False)
    future.result()
    with pytest.raises(AssertionError):
        assert_left(clean, before, patience=0.2)
    del future
