"""Workers of another kind, data that is not the same twice, a scheduler that dies: on processes started by hand."""

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

import dasktrain as dt
from dasktrain.checkpoint import Store
from dasktrain.errors import AttachError, DataError, SchedulerLost
from tests.cluster.test_processes import hand_made, started_worker
from tests.cluster.test_survival import mortals
from tests.problems import PROBLEMS, SETTINGS, expected
from tests.saboteurs import After, Unhurried

PROBLEM = PROBLEMS[2]
SCALAR = {"ATEN_CPU_CAPABILITY": "default"}  # torch's kernels without vector instructions


def test_workers_of_another_kernel_path_are_kept_apart(tmp_path: Path) -> None:
    """One test, as each would start a cluster."""
    with hand_made(tmp_path, [{}, {}, SCALAR]) as client:
        one_is_refused_by_name_and_the_run_goes_on(client)
        without_determinism_it_computes_too_and_that_is_said(client)
        usual = client.run(lambda: "ATEN_CPU_CAPABILITY" not in os.environ)
        client.retire_workers([worker for worker, so in usual.items() if so])
        a_resume_where_all_are_of_another_kind_is_refused(client, str(tmp_path / "checkpoints"))


def one_is_refused_by_name_and_the_run_goes_on(client: Client) -> None:
    after = After(0, lambda: None)
    result = PROBLEM.trainer([after]).fit(PROBLEM.data, client=client, **SETTINGS)
    refused = [text for text in after.told if "is let go" in text]
    assert len(refused) == 1
    assert "must be in the run's determinism domain, however its" in refused[0]
    assert "kernel path is DEFAULT and the run's AVX" in refused[0]
    assert result.digest == expected(PROBLEM)
    # It is left to other work.
    assert len(client.nthreads()) == 3


def without_determinism_it_computes_too_and_that_is_said(client: Client) -> None:
    after = After(0, lambda: None)
    result = PROBLEM.trainer([after]).fit(PROBLEM.data, client=client, determinism="off", **SETTINGS)
    assert result.ended == "epochs"
    told = "\n".join(after.told)
    assert "determinism is off" in told
    assert "it computes all the same, and this run's bits cannot be had again" in told


def a_resume_where_all_are_of_another_kind_is_refused(client: Client, url: str) -> None:
    PROBLEM.trainer([dt.Checkpoint(url)]).fit(PROBLEM.data, client=dt.LocalWire(), **(SETTINGS | {"epochs": 1}))
    with pytest.raises(AttachError, match="kernel path is DEFAULT"):
        PROBLEM.trainer().fit(PROBLEM.data, client=client, resume=url, **SETTINGS)


def test_a_partition_that_is_another_when_computed_again_is_an_error_that_names_it() -> None:
    def noisy(block: np.ndarray) -> np.ndarray:
        return block + np.random.default_rng().normal(size=block.shape).astype(np.float32)

    data = PROBLEM.data
    data.X = data.X.map_blocks(noisy, dtype=data.X.dtype, meta=data.X._meta)
    with mortals() as (_, client):
        pid = min(client.run(os.getpid).items())[1]
        trainer = PROBLEM.trainer([After(5, lambda: os.kill(pid, signal.SIGKILL))])
        with pytest.raises(DataError, match=r"partition \d of the train data now has fingerprint"):
            trainer.fit(data, client=client, **(SETTINGS | {"epochs": 1000}))


def test_a_worker_joins_by_hand_and_then_the_scheduler_dies(tmp_path: Path) -> None:
    """One test, as each would start a cluster."""
    with hand_made(tmp_path, [{}]) as client, ExitStack() as stack:
        a_worker_that_joins_by_hand_is_used(client, lambda: stack.enter_context(started_worker(tmp_path)))
        assert len(client.nthreads()) == 2
        a_scheduler_that_dies_leaves_a_checkpoint_and_one_clear_error(client, str(tmp_path / "checkpoints"))


def a_worker_that_joins_by_hand_is_used(client: Client, join: Callable[[], None]) -> None:
    """From the next round on; its data comes from the others, or is computed again."""
    after = After(20, join)

    class Until(Unhurried):
        def round(self, record: dict[str, Any]) -> bool:
            super().round(record)
            return any("joined" in text for text in after.told) and record["round"] == 8

    trainer = PROBLEM.trainer([after, Until()])
    result = trainer.fit(PROBLEM.data, client=client, **(SETTINGS | {"epochs": 10_000}))
    done = len(result.history.rounds)
    assert result.digest == PROBLEM.fit(dt.LocalWire(), epochs=None, max_rounds=done).digest


def a_scheduler_that_dies_leaves_a_checkpoint_and_one_clear_error(client: Client, url: str) -> None:
    settings: dict[str, Any] = SETTINGS | {"epochs": None, "max_rounds": 10**6}
    pid = client.run_on_scheduler(os.getpid)
    dies = After(40, lambda: os.kill(pid, signal.SIGKILL))
    trainer = PROBLEM.trainer([dies, Unhurried(), dt.Checkpoint(url, "1 h")])
    with pytest.raises(SchedulerLost, match="start the cluster again and resume from a checkpoint"):
        trainer.fit(PROBLEM.data, client=client, **settings)
    (done,) = Store(url).numbers()
    assert done >= 40
    more = {"epochs": None, "max_rounds": done + 5}
    result = PROBLEM.trainer().fit(PROBLEM.data, client=dt.LocalWire(3), resume=url, **(SETTINGS | more))
    assert result.digest == PROBLEM.fit(dt.LocalWire(), **more).digest
