"""The command line, against a cluster that is there: exit codes, JSON, and runs that someone else drives."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from distributed import Client

import dasktrain as dt
from dasktrain.cli import main
from tests.cluster.test_remote import Beside, started, waited_for
from tests.small import frame

LONG = 2000


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Write data and a recipe for it."""
    frame().to_parquet(tmp_path / "data.parquet")
    recipe = {
        "data": {"parquet": str(tmp_path / "data.parquet"), "table": {"target": "label", "numeric": ["a", "b"]}},
        "model": "MLP",
        "loss": "CrossEntropyLoss",
        "optimizer": {"SGD": {"lr": 0.1}},
        "epochs": 2,
        "batch_size": 20,
    }
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


def run(*arguments: Any) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_fit_and_predict(clean: Client, job: Path) -> None:
    address, saved, written = clean.scheduler.address, job.parent / "saved", job.parent / "predicted"
    done = run("fit", job, "--scheduler", address, "--workers", 2, "--save", saved, "--set", "epochs=1")
    assert done.exit_code == 0, done.output
    assert "epoch 1" in done.stdout
    assert f"digest: {dt.load(str(saved), dt.models.MLP(2, 3)).digest}" in done.stdout
    arguments = (saved, job.parent / "data.parquet", written, "--model", job, "--scheduler", address)
    assert run("predict", *arguments, "--keep", "label").exit_code == 0
    table = pd.read_parquet(written)
    assert list(table.columns) == ["predicted_label", "label"]
    assert set(table.predicted_label) <= set(table.label)
    assert len(table) == len(frame())
    assert run("predict", *arguments, "--proba").exit_code == 0
    assert list(pd.read_parquet(written).columns) == ["probability_high", "probability_low", "probability_middle"]


def test_json_is_all_there_is_on_stdout(clean: Client, job: Path) -> None:
    address = clean.scheduler.address
    done = run("fit", job, "--scheduler", address, "--json")
    found = json.loads(done.stdout)
    assert found["ended"] == "epochs"
    assert len(found["digest"]) == 64
    assert "epoch 1" in done.stderr
    refused = run("fit", job, "--scheduler", address, "--json", "--set", "model=MPL")
    assert refused.exit_code == 2
    assert json.loads(refused.stdout)["error"] == "BadInput"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("fit", "nowhere.yaml"), 2, "there is no file"),
        (("fit", "JOB", "--set", "epochs"), 2, "--set must be NAME=VALUE"),
        (("fit", "JOB", "--set", "epochs=[", "--scheduler", "CLUSTER"), 2, "must be YAML"),
        (("fit", "JOB", "--workers", "0"), 2, "--workers"),
        (("fit", "JOB", "--set", "optimizer.SGD.lr=1e30", "--scheduler", "CLUSTER"), 1, "must be finite"),
        (("fit", "JOB", "--workers", "9", "--scheduler", "CLUSTER"), 1, "9 workers must be there within"),
        (("runs",), 2, "A scheduler must be named"),
        (("stop", "nothing", "--scheduler", "CLUSTER"), 2, "'nothing' is none of"),
        (("attach", "nothing", "--scheduler", "CLUSTER"), 2, "'nothing' is none of"),
        (("predict", "nowhere", "x", "y", "--model", "MLP"), 2, "nowhere"),
    ],
)
def test_exit_code_tells_who_is_to_blame(
    cluster: Client, job: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, message: str
) -> None:
    monkeypatch.setattr("dasktrain.commands.seconds", lambda name: 0.2)
    places = {"JOB": str(job), "CLUSTER": cluster.scheduler.address}
    done = run(*(places.get(argument, argument) for argument in arguments))
    assert done.exit_code == code, done.output
    assert message in done.stderr


def test_check_finds_a_cluster_fit(clean: Client, job: Path) -> None:
    address = clean.scheduler.address
    done = run("check", address, "--job", job)
    assert done.exit_code == 0, done.output
    assert done.stdout.rstrip().endswith("fit to train on")
    found = json.loads(run("check", address, "--workers", 2, "--json").stdout)
    assert found["ok"]
    assert {row["worker"] for row in found["workers"]} == set(clean.nthreads())
    assert all(0 < row["latency"] < 1 and row["bandwidth"] > 1e6 for row in found["workers"])


def test_runs_are_listed_attached_to_and_stopped(clean: Client) -> None:
    address, watcher = clean.scheduler.address, Beside()
    remote = started(clean, [watcher], epochs=LONG)
    waited_for(lambda: remote.progress().rounds)
    (listed,) = json.loads(run("runs", "--scheduler", address, "--json").stdout)["runs"]
    assert (listed["id"], listed["driver"], listed["state"]) == (remote.id, "cluster", "running")
    assert listed["workers"] >= 1
    assert listed["round"] is not None
    assert remote.id in run("runs", "--scheduler", address).stdout
    assert run("stop", remote.id, "--scheduler", address).exit_code == 0
    attached = run("attach", remote.id, "--scheduler", address, "--json")
    assert attached.exit_code == 130, attached.output
    assert json.loads(attached.stdout)["ended"] == "interrupt"
    assert dt.runs(clean) == []


@pytest.mark.parametrize("how", ["SIGTERM", "stop"])
def test_run_beside_a_client_ends_with_the_result_so_far(clean: Client, job: Path, how: str) -> None:
    address, saved = clean.scheduler.address, job.parent / "saved"
    command = [str(Path(sys.executable).with_name("dasktrain")), "fit", str(job), "--scheduler", address]
    command += ["--set", f"epochs={LONG * 100}", "--save", str(saved), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        waited_for(lambda: dt.runs(clean))
        (listed,) = dt.runs(clean)
        assert (listed.driver, listed.round) == ("client", None)
        if how == "stop":
            dt.stop(listed.id, clean)
        else:
            os.kill(process.pid, signal.SIGTERM)
        found = json.loads(process.communicate(timeout=60)[0])
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert dt.load(str(saved), dt.models.MLP(2, 3)).digest == found["digest"]
