"""A driver on the cluster: it outlives its client and its worker, and the client sees what it would have seen."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Any

import pytest
import torch
from distributed import Client
from torch import nn

import dasktrain as dt
from dasktrain.errors import BadInput, NonFinite
from dasktrain.remote import RemoteRun, launch
from dasktrain.wire.dask import DaskWire
from tests.cluster.test_survival import mortals
from tests.drivers import driving, said_of_a_round
from tests.leftovers import assert_left, left_on
from tests.problems import PROBLEMS, SETTINGS, expected
from tests.small import Watcher

PROBLEM = PROBLEMS[2]
LONG = SETTINGS | {"epochs": 60}
SECONDS = 60.0


class Beside(Watcher):
    """Watches from the client."""

    runs_on = "client"


def waited_for(happened: Any) -> None:
    """Wait until `happened()` is true."""
    deadline, tick = monotonic() + SECONDS, Event()
    while not happened():
        assert monotonic() < deadline, "it did not happen"
        tick.wait(0.05)


def started(client: Client, observers: list[dt.Observer], **settings: Any) -> RemoteRun:
    """Start a run and return its handle, which fit waits for."""
    found: list[RemoteRun] = []

    class NotWaitedFor:
        def __init__(self, fitting: Any, client: Client) -> None:
            found.append(launch(fitting, client))

        def result(self) -> None:
            """Return at once."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dasktrain.trainer.launch", NotWaitedFor)
        PROBLEM.trainer(observers).fit(PROBLEM.data, client=client, driver="cluster", **settings)
    return found[0]


def test_driver_on_the_cluster_gives_the_same_bits_and_shows_the_same(clean: Client) -> None:
    beside, here = Beside(), Watcher()
    settings = SETTINGS | {"client": clean}
    result = PROBLEM.trainer([beside]).fit(PROBLEM.data, driver="cluster", **settings)  # type: ignore[arg-type]
    PROBLEM.trainer([here]).fit(PROBLEM.data, driver="client", **settings)  # type: ignore[arg-type]
    assert result.digest == expected(PROBLEM)
    assert beside.ends == 1
    stages = [[text for text in seen.stages if not text.startswith("worker ")] for seen in (beside, here)]
    assert stages[0][1:] == stages[1]  # after where to find the run; whoever is late is of another run's making
    for told, seen in ((beside.rounds, here.rounds), (beside.epochs, here.epochs)):
        assert [record["loss"] for record in told] == [record["loss"] for record in seen]
    assert [record["loss"] for record in result.history.rounds] == [record["loss"] for record in here.rounds]


def test_a_client_that_cannot_reach_the_workers_gets_a_driver_on_the_cluster(
    clean: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert DaskWire(clean).reachable()
    monkeypatch.setattr(DaskWire, "reachable", lambda wire: False)
    beside = Beside()
    assert PROBLEM.trainer([beside]).fit(PROBLEM.data, client=clean, **SETTINGS).digest == expected(PROBLEM)  # type: ignore[arg-type]
    assert "has its driver on the cluster" in beside.stages[0]


def test_workers_behind_an_address_that_takes_no_connection_are_not_reachable(
    clean: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean, "nthreads", lambda: {"tcp://127.0.0.1:1": 1, "tcp://127.0.0.1:2": 1})
    monkeypatch.setattr("dasktrain.wire.leases.REACH", 0.5)
    assert not DaskWire(clean).reachable()


def test_a_stopped_run_returns_its_result_so_far(clean: Client) -> None:
    run = started(clean, [], **LONG)
    waited_for(lambda: len(run.progress().rounds) > 3)
    run.stop()
    result = dt.attach(run.id, clean, observers=[]).result(SECONDS)
    assert result.ended == "interrupt"
    done = len(result.history.rounds)
    assert result.digest == PROBLEM.fit(dt.LocalWire(), epochs=None, max_rounds=done).digest


def test_what_the_run_raises_is_raised_beside_the_client(clean: Client) -> None:
    with pytest.raises(BadInput, match="must be on the cluster until its result was fetched, however 'nothing'"):
        dt.attach("nothing", clean)
    trainer = dt.Trainer(nn.Linear(6, 3), lambda output, _: output.sum() * torch.inf, torch.optim.SGD, observers=[])
    with pytest.raises(NonFinite, match="epoch 0, round 0"):
        trainer.fit(PROBLEM.data, client=clean, driver="cluster")
    with pytest.raises(BadInput, match="must have a Dask cluster"):
        PROBLEM.trainer().fit(PROBLEM.data, client=dt.LocalWire(), driver="cluster")


def test_figures_are_written_beside_the_client(clean: Client, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    observers = [dt.TensorBoard(tmp_path, every=1), dt.Monitor(), dt.Budget(seconds=1e9)]
    trainer = PROBLEM.trainer(observers)
    result = trainer.fit(PROBLEM.data, client=clean, driver="cluster", batch_size=50, epochs=2)
    assert result.digest == PROBLEM.trainer([]).fit(PROBLEM.data, client=dt.LocalWire(), batch_size=50, epochs=2).digest
    events = EventAccumulator(str(tmp_path)).Reload()
    for name in ("loss", "gradient_norm"):
        found = [event.value for event in events.Scalars(f"round/{name}")]
        assert found == pytest.approx([record[name] for record in result.history.rounds], rel=1e-6)
    assert events.Tensors("ended/text_summary")[0].tensor_proto.string_val == [b"epochs"]


def test_waiting_has_a_deadline_and_leaves_the_run_going(clean: Client) -> None:
    run = started(clean, [], **LONG)
    with pytest.raises(TimeoutError, match=run.id):
        run.result(timeout=0.1)
    run.stop()
    assert run.result(SECONDS).ended == "interrupt"


def test_the_client_may_die_and_another_finds_the_run(clean: Client) -> None:
    settings = SETTINGS | {"epochs": 20}
    with driving(clean, 2, driver="cluster", **settings) as (_, said):
        run = said_of_a_round(said)[0].split()[1]
    beside = Beside()
    result = dt.attach(run, clean, observers=[beside]).result(SECONDS)
    assert result.digest == PROBLEM.fit(dt.LocalWire(), epochs=20).digest
    assert len(beside.rounds) == len(result.history.rounds)


@pytest.fixture
def killable() -> Iterator[Client]:
    with mortals() as (_, client):
        yield client


def kill_driver(client: Client, run: str) -> None:
    """Kill the worker that runs the driver."""

    def where(dask_scheduler: Any) -> str:
        return str(dask_scheduler.tasks[f"dasktrain-driver-{run}"].processing_on.address)

    address = client.run_on_scheduler(where)
    os.kill(client.run(os.getpid, workers=[address])[address], signal.SIGKILL)


def test_a_driver_whose_worker_is_killed_goes_on_from_its_newest_checkpoint(killable: Client, tmp_path: Path) -> None:
    before = left_on(killable)["scheduler"]
    epochs, url = 40, str(tmp_path / "checkpoints")
    beside = Beside()
    run = started(killable, [dt.Checkpoint(url, "20 rounds"), beside], **(SETTINGS | {"epochs": epochs}))
    results: list[dt.Result] = []
    waiting = Thread(target=lambda: results.append(run.result()), name="test-waiting")
    waiting.start()
    for lives in (1, 2):
        waited_for(lambda lives=lives: len(beside.runs) == lives and len(beside.rounds) > 25 * lives)
        kill_driver(killable, run.id)
    waiting.join(SECONDS)
    (result,) = results
    assert result.digest == PROBLEM.fit(dt.LocalWire(), epochs=epochs).digest
    assert len(result.history.rounds) == 9 * epochs
    assert [run.cursor.done > 0 for run in beside.runs] == [False, True, True]
    killable.wait_for_workers(2, timeout=SECONDS)
    assert_left(killable, {"workers": dict.fromkeys(killable.nthreads(), ([], [], 0)), "scheduler": before})
