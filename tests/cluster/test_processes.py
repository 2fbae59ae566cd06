"""A scheduler and workers started by hand, as on any real cluster."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client
from torch import nn

import dasktrain as dt
from dasktrain.errors import AttachError
from dasktrain.wire import leases
from tests.problems import PROBLEMS, expected


@contextmanager
def started(*command: str, environment: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Run ``dask ...`` with more in its environment; end it afterwards."""
    dask = str(Path(sys.executable).with_name("dask"))
    process = subprocess.Popen(
        [dask, *command],
        env=os.environ | environment,
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def hand_made(
    folder: Path, workers: list[dict[str, str]], scheduler: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Client]:
    """Start a scheduler and workers, each with more in its environment."""
    file = str(folder / "scheduler.json")
    with (
        started(
            "scheduler",
            "--port",
            "0",
            "--no-dashboard",
            "--scheduler-file",
            file,
            "--host",
            "127.0.0.1",
            environment=scheduler,
        ),
        ExitStack() as stack,
    ):
        for environment in workers:
            stack.enter_context(started_worker(folder, environment))
        with Client(scheduler_file=file, set_as_default=False, timeout=30) as client:
            client.wait_for_workers(len(workers), timeout=60)
            yield client


def started_worker(folder: Path, environment: Mapping[str, str] = MappingProxyType({})) -> AbstractContextManager[None]:
    """Start a worker of the scheduler that `hand_made` started in the same folder."""
    options = ("--nthreads", "1", "--no-dashboard", "--local-directory", str(folder))
    return started("worker", "--scheduler-file", str(folder / "scheduler.json"), *options, environment=environment)


def shadow(folder: Path, **packages: str) -> dict[str, str]:
    """Return the environment of a process in which each of `packages` is a module of the given source."""
    folder.mkdir()
    for name, source in packages.items():
        (folder / f"{name}.py").write_text(source)
    return {"PYTHONPATH": str(folder)}


ABSENT = "raise ModuleNotFoundError('not installed on the scheduler')"


def test_scheduler_needs_neither_torch_nor_dasktrain(tmp_path: Path) -> None:
    bare = shadow(tmp_path / "bare", torch=ABSENT, dasktrain=ABSENT)
    frame = pd.DataFrame({"x": np.arange(40.0), "y": ["a", "b"] * 20})
    frame.to_parquet(tmp_path / "rows.parquet")
    with hand_made(tmp_path, [{}, {}], scheduler=bare) as client, client.as_current():
        assert PROBLEMS[2].fit(client).digest == expected(PROBLEMS[2])
        table = dd.read_parquet(tmp_path / "rows.parquet")
        trainer = dt.Trainer(nn.Linear(1, 2), nn.CrossEntropyLoss(), torch.optim.SGD, observers=[])
        result = trainer.fit(dt.Table(table, target="y"), epochs=1, client=client)
        assert set(result.predict(table).compute()) <= {"a", "b"}
        with pytest.raises(dt.errors.ReplicaError, match="round 0"):
            dt.Trainer(_OnlyHere(os.getpid()), nn.CrossEntropyLoss(), torch.optim.SGD, observers=[]).fit(
                PROBLEMS[0].data, client=client
            )


class _OnlyHere(nn.Module):
    """Raises away from the driver; lives in a test module, which the workers do not have."""

    def __init__(self, driver: int) -> None:
        super().__init__()
        self.linear, self.driver = nn.Linear(6, 3), driver

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if os.getpid() != self.driver:
            raise ValueError("away")
        return self.linear(x)


@pytest.mark.parametrize("package", ["python", "torch", "dasktrain"])
def test_worker_without_a_package_is_refused_by_name(
    clean: Client, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    wanted = leases.versions() | {package: "9.9"}
    monkeypatch.setattr(leases, "versions", lambda: wanted)
    with pytest.raises(AttachError, match=rf"driver's {package} 9\.9, however on tcp://.* it is .*; install"):
        PROBLEMS[0].fit(clean)
    found = dt.check(clean)
    assert not found.ok
    assert [row["domain"] for row in found.workers] == ["", ""]
    assert all(f"driver's {package} 9.9" in finding.text for finding in found.findings if finding.level == "error")


def test_worker_with_another_torch_is_refused_by_name(tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "torch-9.9.dist-info").mkdir(parents=True)
    (other / "torch-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9\n")
    with (
        hand_made(tmp_path, [{"PYTHONPATH": str(other)}]) as client,
        pytest.raises(AttachError, match=r"torch .* on tcp://.* it is 9\.9"),
    ):
        PROBLEMS[0].fit(client)
