"""What ``dasktrain`` can be asked to do."""

import functools
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import dask
from distributed import Client, LocalCluster
from rich.console import Console
from rich.table import Table

import dasktrain
from dasktrain.capacity import plan_cluster
from dasktrain.cli import main
from dasktrain.config import seconds
from dasktrain.errors import AttachError, BadInput, DasktrainError
from dasktrain.inspection import Report
from dasktrain.jobs import read_job, read_model
from dasktrain.recipe import READERS, opened, read_data, read_recipe, read_yaml
from dasktrain.remote import attach
from dasktrain.result import Result
from dasktrain.running import runs, stop

#: exit codes besides 0; click's own for wrong usage is 2 as well
FAILED, BAD, INTERRUPTED = 1, 2, 130


def reported(function: Callable[..., tuple[dict[str, Any] | Report, int]]) -> Callable[..., None]:
    """Have a command print what it returns, as lines or as JSON, and leave with its exit code.

    With ``--json`` everything else a command prints goes to standard error.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and progress to standard error.")
    @functools.wraps(function)
    def command(as_json: bool, **options: Any) -> None:
        try:
            with redirect_stdout(sys.stderr if as_json else sys.stdout):
                found, code = function(**options)
        except (DasktrainError, OSError) as error:
            notes = "\n".join(getattr(error, "__notes__", []))
            click.echo("\n".join(filter(None, (f"Error: {error}", notes))), err=True)
            code = BAD if isinstance(error, BadInput) else FAILED
            _print({"error": type(error).__name__, "message": str(error)} if as_json else {}, as_json)
        else:
            _print(found, as_json)
        sys.exit(code)

    return command


def _print(found: dict[str, Any] | Report, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found.to_json() if isinstance(found, Report) else found))
        return
    if isinstance(found, Report):
        click.echo(str(found))
        return
    for name, value in found.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            Console(highlight=False).print(_table(value))
        elif value is not None:
            click.echo(f"{name}: {', '.join(value) or 'none' if isinstance(value, list) else value}")


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    return table


# -- the cluster --------------------------------------------------------------------------------------------------

on_cluster = click.option(
    "--scheduler",
    "-s",
    help="Address of a scheduler, or its scheduler file. Default: scheduler-address of Dask's configuration "
    "(DASK_SCHEDULER_ADDRESS). Certificates are those of Dask's configuration.",
)


@contextmanager
def connected(scheduler: str | None, workers: int | None = None) -> Iterator[Client]:
    """Be a cluster's client; without a scheduler, have a LocalCluster of so many workers."""
    scheduler = scheduler or dask.config.get("scheduler-address", None)
    if scheduler is None:
        local = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")
        with local as cluster, Client(cluster) as client:
            yield client
        return
    where = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
    with Client(**where) as client:
        if workers is not None:
            _wait_for(workers, client)
        yield client


def _wait_for(workers: int, client: Client) -> None:
    patience = seconds("timeouts.workers")
    try:
        client.wait_for_workers(workers, timeout=patience)
    except TimeoutError:
        here = len(client.nthreads())
        raise AttachError(
            f"{workers} workers must be there within {patience:g} s, however {here} are; start more, ask for fewer, or "
            "raise dasktrain.timeouts.workers"
        ) from None


def _needed(scheduler: str | None) -> str:
    """Return the address of a cluster that must be there already."""
    found: str | None = scheduler or dask.config.get("scheduler-address", None)
    if found is None:
        raise BadInput("A scheduler must be named, however none is; give --scheduler tcp://host:8786")
    return found


# -- commands -----------------------------------------------------------------------------------------------------


@main.command()
@click.argument("job")
@on_cluster
@click.option("--workers", "-n", type=click.IntRange(1), help="Workers to wait for, or of the LocalCluster.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Override a setting; VALUE is YAML.")
@click.option("--resume", metavar="URL", help="Go on from the newest checkpoint there.")
@click.option("--save", metavar="URL", help="Where the result goes; also one that was interrupted.")
@reported
def fit(
    job: str, scheduler: str | None, workers: int | None, settings: Sequence[str], resume: str | None, save: str | None
) -> tuple[dict[str, Any], int]:
    """Train as JOB says: job.py (its function `fit`), job.py:function, or job.yaml.

    Without a scheduler it trains on a LocalCluster of its own. SIGTERM and Ctrl-C end it after the round under way.
    """
    train, given = read_job(job), dict(map(_setting, settings))
    if resume is not None:
        given["resume"] = resume
    with connected(scheduler, workers), _terminable():
        return _kept(train(**given), save)


@main.command()
@click.argument("saved")
@click.argument("data")
@click.argument("output")
@click.option("--model", required=True, help="job.yaml, job.py:name, package.module:name, or one of dasktrain.models.")
@click.option("--reader", type=click.Choice(sorted(READERS)), help="How DATA is read. Default: by its ending.")
@click.option("--proba", is_flag=True, help="Probabilities of the classes, and not the likeliest.")
@click.option("--keep", multiple=True, metavar="COLUMN", help="A column of DATA to write beside.")
@on_cluster
@reported
def predict(
    saved: str,
    data: str,
    output: str,
    model: str,
    reader: str | None,
    proba: bool,
    keep: Sequence[str],
    scheduler: str | None,
) -> tuple[dict[str, Any], int]:
    """Write the predictions of the model SAVED for DATA to the Parquet data set OUTPUT, row for row."""
    result = dasktrain.load(saved, read_model(model))
    with connected(scheduler):
        frame = read_data(reader or _reader_of(data), data)
        predicted = result.predict_proba(frame) if proba else result.predict(frame)
        table = predicted.to_frame() if predicted.ndim == 1 else predicted
        table = table.rename(columns=("probability_{}" if proba else "predicted_{}").format)
        table.assign(**{column: frame[column] for column in keep}).to_parquet(output)
        return {"written": output, "columns": [*table.columns, *keep], "digest": result.digest}, 0


@main.command(name="check")
@click.argument("scheduler", required=False)
@click.option("--job", help="job.yaml, whose model and data must fit in memory.")
@click.option("--workers", "-n", type=click.IntRange(1), help="Workers to wait for, or of a LocalCluster.")
@reported
def check_cluster(scheduler: str | None, job: str | None, workers: int | None) -> tuple[Report, int]:
    """Find out whether the cluster at SCHEDULER is fit to train on: exit code 1 if it is not."""
    trainer, settings = (None, {}) if job is None else opened(read_recipe(job))
    with connected(scheduler, workers) as client:
        report = dasktrain.check(client, trainer, settings.get("data"))
    return report, 0 if report.ok else FAILED


@main.command(name="runs")
@on_cluster
@reported
def list_runs(scheduler: str | None) -> tuple[dict[str, Any], int]:
    """List the runs on a cluster."""
    with connected(_needed(scheduler)) as client:
        return {"runs": [asdict(run) for run in runs(client)]}, 0


@main.command(name="attach")
@click.argument("run")
@on_cluster
@click.option("--save", metavar="URL", help="Where the result goes.")
@reported
def attach_to(run: str, scheduler: str | None, save: str | None) -> tuple[dict[str, Any], int]:
    """Show the progress of RUN, whose driver is on the cluster, and fetch its result, which the cluster then forgets.

    Ctrl-C stops the run, a second one leaves it going.
    """
    with connected(_needed(scheduler)) as client:
        return _kept(attach(run, client).result(), save)


@main.command(name="stop")
@click.argument("run")
@on_cluster
@reported
def stop_run(run: str, scheduler: str | None) -> tuple[dict[str, Any], int]:
    """Ask RUN to end after the round under way; whoever waits for it has the result so far."""
    with connected(_needed(scheduler)) as client:
        stop(run, client)
        return {"asked to stop": run}, 0


@main.command(name="plan")
@click.option("--parameters", type=float, required=True, help="How many the model has: 25e6.")
@click.option("--rows-per-second", type=float, required=True, help="Whose gradients one worker computes in a second.")
@click.option("--batch-size", type=int, required=True, help="Rows of a round, all workers together.")
@click.option("--bandwidth", type=float, required=True, help="Bits a second of each host's link: 10e9.")
@click.option("--workers", "-n", type=int, help="Default: as many as help.")
@click.option("--workers-per-host", type=int, default=1, show_default=True)
@click.option("--shards", type=int, help="Default: what a run takes on so many workers.")
@click.option("--steps", type=int, default=1, show_default=True, help="Rounds from one sum to the next.")
@reported
def plan(rows_per_second: float, **given: Any) -> tuple[dict[str, Any], int]:
    """Predict what a round takes on a cluster, and how many workers help; nothing is measured."""
    planned = plan_cluster(worker_rows_per_second=rows_per_second, **given)
    table: list[Any] = planned.to_frame().to_dict("records")
    found = planned.to_row() | {"most_workers": planned.most_workers}
    return _rounded(found) | {"table": [*map(_rounded, table)]}, 0


# -- between the two ----------------------------------------------------------------------------------------------


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise BadInput(f"--set must be NAME=VALUE, however it is {text!r}")
    return name, read_yaml(value, f"The value of --set {name}")


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}


def _kept(result: Result, url: str | None) -> tuple[dict[str, Any], int]:
    """Save a result if asked to; return what there is to say of it."""
    if url is not None:
        result.save(url)
    last = result.history[-1] if result.history else {}
    shown = {name: value for name, value in last.items() if name == "loss" or name.startswith("valid_")}
    found = {"run": result.settings["run"], "ended": result.ended, **shown, "saved": url, "digest": result.digest}
    return found, INTERRUPTED if result.ended == "interrupt" else 0


def _reader_of(url: str) -> str:
    endings = {".csv": "csv", ".json": "json", ".jsonl": "json", ".txt": "lines"}
    return endings.get(Path(url).suffix, "parquet")


@contextmanager
def _terminable() -> Iterator[None]:
    """Have SIGTERM, which containers and batch systems send first, end a run as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
