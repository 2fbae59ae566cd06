"""Figures in TensorBoard, MLflow and W&B: as each tool's own reader finds them."""

import copy
import functools
import json
import math
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dasktrain as dt
from dasktrain.errors import BadInput
from dasktrain.observe import Record
from dasktrain.observers.tracker import PLACES, Tracker
from tests.small import Watcher, fit, table

METRICS = {"accuracy": dt.accuracy}
#: (name, step) -> value, each of which may be there once
Points = dict[tuple[str, int], float]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the tools' own


class Found:
    """What a tool has of one run."""

    def __init__(self) -> None:
        self.points: Points = {}
        self.settings: dict[str, str] = {}
        self.ended: dict[str, str] = {}

    def add(self, name: str, step: int, value: float) -> None:
        assert (name, step) not in self.points, f"{name} was written twice for step {step}"
        self.points[name, step] = value


class TensorBoards:
    """TensorBoard in a directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder / "events")
        self.new: Callable[..., Tracker] = functools.partial(dt.TensorBoard, self.folder)

    def read(self) -> list[Found]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events, found = EventAccumulator(self.folder, size_guidance={"scalars": 0}).Reload(), Found()
        for name in events.Tags()["scalars"]:
            for event in events.Scalars(name):
                found.add(name, event.step, event.value)
        texts = {
            name.removesuffix("/text_summary"): events.Tensors(name)[-1].tensor_proto.string_val[0].decode()
            for name in events.Tags()["tensors"]
        }
        rows = [line.strip("| ").split(" | ") for line in texts.pop("settings").splitlines()[2:]]
        found.settings, found.ended = dict(rows), texts
        return [found]


class MLflows:
    """MLflow in a file of SQLite, whose tables take a second to make."""

    def __init__(self, folder: Path) -> None:
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        shutil.copy(tables_in(folder.parent), folder / "mlflow.db")
        self.new: Callable[..., Tracker] = functools.partial(dt.MLflow, "digits", self.uri)

    def read(self) -> list[Found]:
        from mlflow import MlflowClient

        client, runs = MlflowClient(tracking_uri=self.uri), []
        for run in client.search_runs([client.get_experiment_by_name("digits").experiment_id], order_by=["start_time"]):
            found = Found()
            for name in run.data.metrics:
                for metric in client.get_metric_history(run.info.run_id, name):
                    found.add(name, metric.step, metric.value)
            found.settings = run.data.params
            found.ended = {name: run.data.tags[name] for name in ("ended", "digest") if name in run.data.tags}
            found.ended["status"] = run.info.status
            runs.append(found)
        return runs


@functools.cache
def tables_in(folder: Path) -> Path:
    """Return a data base of MLflow without anything in it."""
    from mlflow import MlflowClient

    path = folder / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


class WandBs:
    """W&B offline: a file for each fit, those of one run together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.new: Callable[..., Tracker] = functools.partial(dt.WandB, "digits", mode="offline", directory=folder)

    def read(self) -> list[Found]:
        import wandb
        from wandb.proto.wandb_internal_pb2 import Record

        wandb.teardown()  # its own process may still write, and has written once it has ended
        runs: dict[str, Found] = {}
        for path in sorted(self.folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
            for data in logged(path.read_bytes()):
                record = Record.FromString(data)
                if record.WhichOneof("record_type") == "run":
                    found = runs.setdefault(record.run.run_id, Found())
                    found.settings |= {each.key: str(json.loads(each.value_json)) for each in record.run.config.update}
                elif record.WhichOneof("record_type") == "history":
                    for item in record.history.item:
                        name = item.key or ".".join(item.nested_key)
                        if not name.startswith("_"):
                            found.add(name, record.history.step.num, json.loads(item.value_json))
                elif record.WhichOneof("record_type") == "summary":
                    for item in record.summary.update:
                        name = item.key or ".".join(item.nested_key)
                        found.ended |= {name: json.loads(item.value_json)} if name in ("ended", "digest") else {}
        return list(runs.values())


def logged(data: bytes) -> Iterator[bytes]:
    """Yield the records of LevelDB's log format, which .wandb files are in: blocks of fragments, each with a header."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last fragment
            yield whole
            whole = b""


@pytest.fixture(params=[TensorBoards, MLflows, WandBs], ids=["tensorboard", "mlflow", "wandb"])
def tool(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield request.param(tmp_path)
    if request.param is WandBs:
        import wandb

        wandb.teardown()


def points_of(history: dt.History, every: int = 1, rounds_per_epoch: int = 3) -> Points:
    """Return what is to be found of a history."""
    points: Points = {}
    for of, records in (("round", history.rounds), ("epoch", list(history))):
        for record in records:
            done = record["rounds"] if of == "epoch" else record["round"] + 1
            step = record["epoch"] * rounds_per_epoch + done
            if of == "epoch" or step % every == 0:
                points |= {(f"{of}/{name}", step): value for name, value in record.items() if name not in PLACES}
    return points


def same(found: Points, expected: Points) -> None:
    assert found.keys() == expected.keys()
    for place, value in expected.items():
        assert found[place] == pytest.approx(value, rel=1e-6)


def test_tool_has_every_figure_the_settings_and_the_digest(tool: Any) -> None:
    settings = {"epochs": 2, "validation": table(20), "metrics": METRICS}
    result = fit(table(), observers=[tool.new(every=1)], **settings)
    assert result.digest == fit(table(), **settings).digest
    [found] = tool.read()
    same(found.points, points_of(result.history))
    assert found.ended["digest"] == result.digest
    assert found.ended["ended"] == "epochs"
    expected = {"rows": "60", "shards": "8", "batch_size": "20", "seed": "0", "optimizer": "SGD", "epochs": "2"}
    assert expected.items() <= found.settings.items()


def test_tool_has_the_digest_of_the_epoch_that_a_run_goes_back_to(tool: Any) -> None:
    stopping = dt.EarlyStopping("loss", patience=1, min_delta=1e9)
    result = fit(table(), epochs=5, observers=[stopping, tool.new()])
    assert len(result.history) == 2
    [found] = tool.read()
    assert found.ended["digest"] == result.digest == fit(table(), epochs=1).digest


def test_rounds_may_be_thinned(tool: Any) -> None:
    result = fit(table(), epochs=3, observers=[tool.new(every=4)])
    [found] = tool.read()
    same(found.points, points_of(result.history, every=4))


@pytest.mark.parametrize("lost", [False, True], ids=["stopped", "lost its latest rounds"])
def test_resumed_run_goes_on_without_writing_a_step_twice(tool: Any, tmp_path: Path, lost: bool) -> None:
    url = str(tmp_path / "checkpoints")

    def run(observers: list[dt.Observer], **settings: Any) -> dt.Result:
        keep = dt.Checkpoint(url, every="2 rounds")
        return fit(table(), epochs=3, observers=[*observers, keep], validation=table(20), **settings)

    class Dies(dt.Observer):
        order = 2

        def round(self, record: Record) -> None:
            if (record["epoch"], record["round"]) == (1, 1):
                raise KeyError("the machine")

    if lost:
        with pytest.raises(KeyError):  # after round 5, whose checkpoint is that after round 4
            run([tool.new(every=1), Dies(), Unsettled()])
        [found] = tool.read()
        assert ("round/loss", 5) in found.points
        assert found.ended["ended"] == "failed"
        assert "digest" not in found.ended
        assert found.ended.get("status", "FAILED") == "FAILED"
    else:
        run([tool.new(every=1)], max_rounds=4)
    result = run([tool.new(every=1)], resume=url)
    *earlier, found = tool.read()
    assert len(earlier) == isinstance(tool, WandBs)  # offline it is another run, with all that was before
    expected = points_of(result.history)
    if not lost:  # the partial epoch was evaluated, which is no point of the whole run's history
        found.points = {place: value for place, value in found.points.items() if place in expected or place[1] != 4}
    assert found.points.keys() == expected.keys()
    settled = {place: value for place, value in expected.items() if "loss" in place[0]}  # seconds are others
    same({place: found.points[place] for place in settled}, settled)
    assert found.ended["digest"] == result.digest


class Unsettled(dt.Observer):
    """Has the last checkpoint of a run that fails not be written, as if its machine were gone."""

    order = 3

    def start(self, run: Any) -> None:
        self._run = run

    def end(self) -> None:
        self._run.cursor.settled = False


def test_run_that_another_tool_watched_is_written_from_its_beginning(tool: Any, tmp_path: Path) -> None:
    url = str(tmp_path / "checkpoints")
    fit(table(), epochs=3, max_rounds=4, observers=[dt.Checkpoint(url)])
    with pytest.warns(UserWarning, match="it starts anew"):
        result = fit(table(), epochs=3, observers=[tool.new(every=1), dt.Checkpoint(url)], resume=url)
    [found] = tool.read()
    same(found.points, points_of(result.history))


def test_each_run_is_another_to_the_tool(tool: Any) -> None:
    tracker = tool.new(every=1)
    for seed in (1, 2):
        result = fit(table(), seed=seed, observers=[tracker])
    *_, found = tool.read()
    assert len(tool.read()) == (1 if isinstance(tool, TensorBoards) else 2)
    same(found.points, points_of(result.history))
    assert found.settings["seed"] == "2"


@pytest.mark.parametrize("every", [0, -1, 2.5])
def test_every_must_be_a_number_of_rounds(tool: Any, every: Any) -> None:
    with pytest.raises(BadInput, match=r"every must be a whole number of rounds and at least 1, however"):
        tool.new(every=every)


@pytest.mark.parametrize(
    ("package", "new"),
    [("tensorboard", lambda: dt.TensorBoard("runs")), ("mlflow", dt.MLflow), ("wandb", dt.WandB)],
)
def test_tool_that_is_not_installed_is_told_before_anything_begins(
    package: str, new: Callable[[], Tracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(BadInput, match=rf"{package} must be installed.* pip install 'dasktrain\[{package}\]'"):
        new()


def test_wandb_of_another_mode_is_refused() -> None:
    with pytest.raises(BadInput, match="mode must be one of"):
        dt.WandB(mode="local")  # type: ignore[arg-type]


class Full(Tracker):
    """A tool whose disk is full after some figures."""

    def open(self, run: Any, place: str | None) -> tuple[str, Any]:
        self.taken = 0
        return "here", {"round": 0, "epoch": 0}

    def put(self, figures: dict[str, float], step: int) -> None:
        if self.taken == 2:
            raise OSError("no space left")
        self.taken += 1

    def close(self, ended: str, digest: str | None) -> None:
        raise OSError("no space left")


def test_tool_that_fails_is_told_once_and_the_run_goes_on() -> None:
    with pytest.warns(RuntimeWarning, match="Full must take a run's figures, however OSError: no space left") as told:
        result = fit(table(), epochs=2, observers=[Full(1)])
    assert len(told) == 1
    assert result.digest == fit(table(), epochs=2).digest


def test_driver_that_is_started_anew_goes_on_in_the_same_place(tmp_path: Path) -> None:
    from dasktrain.relay import Relay, Replay

    tool, messages = TensorBoards(tmp_path), []
    url = str(tmp_path / "checkpoints")
    fit(table(), epochs=3, max_rounds=4, observers=[Relay("r-1", messages.append), dt.Checkpoint(url)])
    result = fit(table(), epochs=3, observers=[Relay("r-2", messages.append), dt.Checkpoint(url)], resume=url)
    for message in messages:
        if "start" in message:
            message["start"]["id"] = message["attempt"]
    tracker = tool.new(every=1)
    replay = Replay([tracker])
    for message in messages:
        replay.play(message)
    replay.end()
    [found] = tool.read()
    expected = points_of(result.history)
    assert {place for place in found.points if place in expected or place[1] != 4} == expected.keys()
    assert not any(math.isnan(value) for value in found.points.values())
    assert found.ended == {"ended": "epochs"}


def test_tracker_that_was_in_a_run_is_copied_without_it(tool: Any) -> None:
    tracker = tool.new(every=1)
    fit(table(), max_rounds=1, observers=[tracker])
    for copied in (copy.deepcopy(tracker), pickle.loads(pickle.dumps(tracker))):
        fit(table(), max_rounds=1, observers=[copied])
    assert len(tool.read()) == (1 if isinstance(tool, TensorBoards) else 3)


def test_observers_of_a_lower_order_come_first_and_end_last() -> None:
    seen: list[str] = []

    class Named(Watcher):
        def __init__(self, name: str, order: int) -> None:
            super().__init__()
            self.name, self.order = name, order

        def round(self, record: Record) -> None:  # type: ignore[override]
            seen.append(self.name)

        def end(self) -> None:
            seen.append(self.name)

    fit(table(), max_rounds=1, observers=[Named("c", 1), Named("b", 0), Named("a", -1)])
    assert seen == ["a", "b", "c", "c", "b", "a"]
