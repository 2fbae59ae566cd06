"""Watching a run: what is recorded, who may stop it, and what the learning rate did."""

import csv
import io
import json
import math
from functools import partial
from pathlib import Path
from typing import Any, Literal

import fsspec
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.optim import lr_scheduler

import dasktrain as dt
from dasktrain.errors import BadInput, NonFinite
from dasktrain.observe import PARTS, Record
from dasktrain.observers import progress
from dasktrain.relay import Relay, Replay
from tests.small import Watcher, closed, fit, table

METRICS = {"accuracy": dt.accuracy}
LAST = ["learning_rate", "seconds", "rows_per_second"]
ROUND = ["epoch", "round", "rows", "loss", "accuracy", *LAST, *PARTS]
EPOCH = ["epoch", "rounds", "rows", "loss", "accuracy", "valid_loss", "valid_accuracy", *LAST]


class Raising(dt.Observer):
    """Raises in one of its hooks."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.fail)

    def fail(self, *_: Any) -> None:
        raise LookupError("an observer's own error")


# -- history --------------------------------------------------------------------------------------------------


def test_history_has_a_record_of_each_epoch_and_round() -> None:
    watcher = Watcher()
    result = fit(table(), epochs=2, validation=table(20), metrics=METRICS, observers=[watcher])
    history = result.history
    assert [(record["epoch"], record["round"]) for record in history.rounds] == [
        (e, r) for e in (0, 1) for r in (0, 1, 2)
    ]
    assert [list(record) for record in history] == [EPOCH] * 2
    assert [list(record) for record in history.rounds] == [ROUND] * 6
    assert [record["rows"] for record in history] == [60, 60]
    assert [record["rows"] for record in history.rounds] == [20] * 6
    assert [record["rounds"] for record in history] == [3, 3]
    assert (watcher.epochs, watcher.rounds) == (list(history), history.rounds)
    assert watcher.ends == 1
    assert result.ended == "epochs"


def test_epoch_is_the_mean_of_its_rounds_over_rows() -> None:
    result = fit(table(50), batch_size=20, metrics=METRICS)
    rounds = result.history.to_frame("rounds")
    assert rounds["rows"].tolist() == [17, 17, 16]
    for name in ("loss", "accuracy"):
        mean = (rounds[name] * rounds["rows"]).sum() / 50
        assert result.history[0][name] == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize(("of", "columns", "rows"), [("epochs", EPOCH, 2), ("rounds", ROUND, 6)])
def test_history_as_a_frame(of: Literal["epochs", "rounds"], columns: list[str], rows: int) -> None:
    history = fit(table(), epochs=2, validation=table(20), metrics=METRICS).history
    found = history.to_frame(of)
    assert list(found.columns) == columns
    assert found.to_dict("records") == (list(history) if of == "epochs" else history.rounds)
    assert len(found) == rows


def test_history_of_nothing_is_an_empty_frame() -> None:
    assert dt.History().to_frame().empty


# -- who ends a run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "ended", "rounds"),
    [
        ({"epochs": 2}, "epochs", [3, 3]),
        ({"epochs": None, "max_rounds": 5}, "max_rounds", [3, 2]),
        ({"epochs": 4, "max_rounds": 6}, "max_rounds", [3, 3]),
        ({"epochs": 1, "max_rounds": 100}, "epochs", [3]),
        ({"epochs": None, "max_rounds": 1}, "max_rounds", [1]),
        ({"epochs": 4, "observers": [Watcher(stop_after_rounds=4)]}, "observer", [3, 1]),
        ({"epochs": 4, "observers": [Watcher(stop_after_rounds=3)]}, "observer", [3]),
        ({"epochs": 4, "observers": [Watcher(), Watcher(stop_after_rounds=1), Watcher()]}, "observer", [1]),
    ],
    ids=[
        "epochs",
        "max_rounds",
        "both at an end",
        "epochs first",
        "one round",
        "in an epoch",
        "at its end",
        "one of 3",
    ],
)
def test_run_ends_where_it_was_asked_to(settings: dict[str, Any], ended: str, rounds: list[int]) -> None:
    result = fit(table(), validation=table(20), **settings)
    assert result.ended == ended
    assert [record["rounds"] for record in result.history] == rounds
    assert len(result.history.rounds) == sum(rounds)
    assert all("valid_loss" in record for record in result.history)


def test_ten_epochs_unless_told_otherwise() -> None:
    assert len(fit(table(20), epochs=None).history) == 10


def test_run_cut_short_has_the_state_of_its_last_round() -> None:
    long = fit(table(), epochs=2, observers=[Watcher(stop_after_rounds=4)])
    assert long.digest == fit(table(), epochs=None, max_rounds=4).digest != fit(table(), epochs=2).digest


def test_observers_may_know_the_run() -> None:
    watcher = Watcher()
    fit(table(), dt.LocalWire(2), shards=4, observers=[watcher])
    [run] = watcher.runs
    facts = (run.workers, run.shards, run.threads, run.rows, run.parameters, run.rounds_per_epoch, run.epochs)
    assert facts == (["local-000", "local-001"], 4, 1, 60, 9, 3, 1)
    assert watcher.stages[0] == "looking for workers"


@pytest.mark.parametrize("hook", ["start", "step", "round", "epoch", "end"])
def test_observer_that_fails_ends_the_others_and_the_wire(hook: str) -> None:
    wire, before, after = dt.LocalWire(2), Watcher(), Watcher()
    with pytest.raises(LookupError, match="own error"):
        fit(table(), wire, observers=[before, Raising(hook), after])
    assert before.ends == 1
    assert after.ends == len(after.runs)
    assert closed(wire)


def test_observers_are_ended_when_the_run_fails() -> None:
    watcher = Watcher()
    with pytest.raises(NonFinite):
        fit(table(), loss=lambda output, target: output[:, 0] * math.nan, observers=[watcher])
    assert (watcher.ends, watcher.rounds) == (1, [])


# -- early stopping -------------------------------------------------------------------------------------------


class Scripted(dt.Observer):
    """Puts a figure of our choice into the epoch records, before other observers read them."""

    def __init__(self, name: str, values: list[float]) -> None:
        self.name, self.values = name, values

    def epoch(self, record: Record) -> None:
        record[self.name] = self.values[record["epoch"]]


@pytest.mark.parametrize(
    ("monitor", "values", "settings", "last", "best"),
    [
        ("valid_loss", [3.0, 1.0, 2.0, 1.5, 0.5], {"patience": 2}, 3, 1),
        ("valid_loss", [3.0, 2.0, 1.0, 0.5, 0.1], {"patience": 1}, 4, 4),
        ("valid_accuracy", [0.1, 0.9, 0.3, 0.9, 1.0], {"patience": 2}, 3, 1),
        ("valid_accuracy", [0.9, 0.1, 0.0, 0.0, 1.0], {"patience": 2, "mode": "min"}, 4, 2),
        ("valid_loss", [1.0, 0.9, 0.4, 0.3, 0.2], {"patience": 2, "min_delta": 0.25}, 4, 2),
        ("valid_loss", [math.nan, 2.0, 1.0, 3.0, 3.0], {"patience": 2}, 4, 2),
    ],
    ids=["loss", "never", "accuracy", "mode", "min_delta", "nan first"],
)
def test_early_stopping_stops_at_the_right_epoch_and_goes_back(
    monitor: str, values: list[float], settings: dict[str, Any], last: int, best: int
) -> None:
    def train(observers: list[dt.Observer], epochs: int) -> dt.Result:
        optimizer, scheduler = partial(torch.optim.AdamW, lr=0.1), partial(lr_scheduler.StepLR, step_size=1, gamma=0.5)
        return fit(table(), optimizer=optimizer, scheduler=scheduler, observers=observers, epochs=epochs)

    stopping = dt.EarlyStopping(monitor, **settings)
    result = train([Scripted(monitor, values), stopping], epochs=5)
    assert len(result.history) - 1 == last
    assert result.ended == ("observer" if last < 4 or best + settings["patience"] == 4 else "epochs")
    assert stopping.best_epoch == best
    assert stopping.best == values[best] or -stopping.best == values[best]
    assert result.digest == train([], epochs=best + 1).digest


def test_early_stopping_may_keep_the_last_epoch() -> None:
    script = Scripted("valid_loss", [0.0, 1.0, 2.0])
    stopping = dt.EarlyStopping(patience=2, restore_best=False)
    kept = fit(table(), epochs=5, observers=[script, stopping])
    assert kept.digest == fit(table(), epochs=3).digest


def test_early_stopping_restores_batch_normalisation() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    script, settings = Scripted("valid_loss", [1.0, 0.0, 1.0]), {"model": model, "shards": 2}
    result = fit(table(), epochs=3, observers=[script, dt.EarlyStopping()], **settings)
    assert result.digest == fit(table(), epochs=2, **settings).digest


def test_early_stopping_watches_another_run_afresh() -> None:
    stopping = dt.EarlyStopping(patience=1)
    runs = [fit(table(), epochs=4, observers=[Scripted("valid_loss", [0.0, 1.0]), stopping]) for _ in range(2)]
    assert [len(run.history) for run in runs] == [2, 2]
    assert runs[0].digest == runs[1].digest


def test_early_stopping_on_a_figure_there_is_not_offers_the_nearest() -> None:
    with pytest.raises(BadInput, match=r"'valid_los' is none; did you mean 'valid_loss'"):
        fit(table(), validation=table(20), observers=[dt.EarlyStopping("valid_los")])


@pytest.mark.parametrize("settings", [{"patience": 0}, {"min_delta": -1.0}, {"mode": "least"}], ids=str)
def test_early_stopping_that_cannot_be_met(settings: dict[str, Any]) -> None:
    [name] = settings
    with pytest.raises(BadInput, match=name):
        dt.EarlyStopping(**settings)


# -- logs -----------------------------------------------------------------------------------------------------


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return what a log holds; CSV has text only, so numbers are read back."""
    with path.open(newline="") as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file]
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("every", ["epoch", "round"])
def test_log_holds_the_history(tmp_path: Path, suffix: str, every: Literal["epoch", "round"]) -> None:
    path = tmp_path / f"log{suffix}"
    path.write_text("an older run")
    history = fit(table(), epochs=2, validation=table(20), metrics=METRICS, observers=[dt.Log(path, every)]).history
    expected = list(history) if every == "epoch" else history.rounds
    found = read_log(path)
    assert found == expected
    assert [list(record) for record in found] == [list(record) for record in expected]


def test_log_of_a_run_that_fails_is_closed_and_keeps_its_rounds(tmp_path: Path) -> None:
    log = dt.Log(tmp_path / "log.jsonl", every="round")
    with pytest.raises(LookupError):
        fit(table(), observers=[log, Raising("epoch")])
    assert [record["round"] for record in read_log(Path(log.path))] == [0, 1, 2]


def test_log_is_closed_when_another_observer_does_not_start(tmp_path: Path) -> None:
    log = dt.Log(str(tmp_path / "log.csv"))
    with pytest.raises(LookupError):
        fit(table(), observers=[log, Raising("start")])
    left_open = log._file
    log.end()
    assert left_open is None


def test_log_may_lie_behind_any_url() -> None:
    with fsspec.open("memory://logs/log.jsonl", "w") as file:
        file.write("an older run")
    history = fit(table(), epochs=2, observers=[dt.Log("memory://logs/log.jsonl")]).history
    with fsspec.open("memory://logs/log.jsonl") as file:
        assert [json.loads(line) for line in file] == list(history)


@pytest.mark.parametrize("arguments", [("log.txt",), ("log",), ("log.csv", "batch")], ids=str)
def test_log_of_another_kind_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(BadInput, match=r"\.csv or \.jsonl, every epoch or round"):
        dt.Log(*arguments)


# -- progress -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["terminal", "plain"])
def console(request: pytest.FixtureRequest) -> Console:
    """A console that writes to memory."""
    return Console(file=io.StringIO(), force_terminal=request.param == "terminal", width=140, highlight=False)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_progress_shows_each_epoch(console: Console) -> None:
    progress = dt.Progress(console)
    history = fit(table(), epochs=2, validation=table(20), metrics=METRICS, observers=[progress]).history
    text = shown(console)
    for word in ("epoch", "round", "3/3", "loss", "accuracy", "valid_loss", "valid_accuracy", "rows/s"):
        assert word in text
    for record in history:
        assert f"{record['valid_loss']:.4f}" in text
    assert "60 rows, 3 rounds an epoch, 9 parameters, 8 shards on 1 workers x 1 threads" in text
    assert text.index("looking for workers") < text.index("reading the data") < text.index("building replicas")


def test_progress_shows_the_running_epoch(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    for screen in (progress._Terminal, progress._Log):
        monkeypatch.setattr(screen, "pause", -1.0)
    fit(table(), observers=[dt.Progress(console)])
    assert [f"{rounds}/3" in shown(console) for rounds in (2, 3)] == [True, True]


def test_progress_says_that_surplus_workers_are_spares(console: Console) -> None:
    fit(table(), dt.LocalWire(5), shards=3, observers=[dt.Progress(console)])
    assert "2 workers beyond 3 shards are spares for deaths and backups; raise shards=" in shown(console)


def test_progress_leaves_the_terminal_when_the_run_fails(console: Console) -> None:
    progress = dt.Progress(console)
    with pytest.raises(LookupError):
        fit(table(), observers=[progress, Raising("round")])
    assert progress._screen is None
    fit(table(), observers=[progress])  # a console that is still live refuses a second table
    assert "3/3" in shown(console)


def test_progress_shows_the_latest_epochs_where_a_terminal_has_no_room_for_all() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=9, highlight=False)
    fit(table(), epochs=12, observers=[dt.Progress(console)])
    text = shown(console)
    assert "..." not in text
    assert [text.count(f"│ {epoch} ") for epoch in (1, 12)] == [
        5,
        2,
    ]  # while it was among the last four, and at the end


@pytest.mark.parametrize("colours", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_progress_in_a_log_moves_no_cursor(
    colours: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(colours, "1")
    fit(table(), epochs=2, observers=[dt.Progress()])
    text = capsys.readouterr().out
    assert text.count("3/3") == 2
    assert "\x1b" not in text


def test_progress_is_what_a_trainer_shows_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    fit(table(), observers=None)
    assert "3/3" in capsys.readouterr().out


# -- learning rates -------------------------------------------------------------------------------------------


def rates(of: Literal["epochs", "rounds"], **settings: Any) -> list[float]:
    return [float(rate) for rate in fit(table(), epochs=3, **settings).history.to_frame(of)["learning_rate"]]


def test_schedule_of_epochs() -> None:
    halving = partial(lr_scheduler.StepLR, step_size=1, gamma=0.5)
    assert rates("rounds", scheduler=halving) == [0.1] * 3 + [0.05] * 3 + [0.025] * 3
    assert rates("epochs", scheduler=halving) == [0.1, 0.05, 0.025]


def test_schedule_of_rounds() -> None:
    halving = partial(lr_scheduler.StepLR, step_size=2, gamma=0.5)
    assert rates("rounds", scheduler=halving, schedule_every="round") == [
        0.1 / 2**halvings for halvings in (0, 0, 1, 1, 2, 2, 3, 3, 4)
    ]


@pytest.mark.parametrize("validation", [None, table(20)], ids=["loss", "valid_loss"])
def test_schedule_by_plateau_is_given_a_loss(validation: dt.Table | None) -> None:
    given: list[float] = []

    class Recording(lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics: Any, epoch: None = None) -> None:
            given.append(metrics)
            super().step(metrics)

    result = fit(table(), epochs=3, validation=validation, scheduler=partial(Recording, patience=0, threshold=1e9))
    name = "loss" if validation is None else "valid_loss"
    assert given == result.history.to_frame()[name].tolist()
    assert result.history.to_frame()["learning_rate"].tolist() == pytest.approx([0.1, 0.01, 0.001])


def test_schedule_changes_what_is_learned() -> None:
    off = partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: float(epoch == 0))
    assert fit(table(), epochs=3, scheduler=off).digest == fit(table(), epochs=1).digest


def test_run_is_shown_without_its_state() -> None:
    watcher = Watcher()
    fit(table(), observers=[watcher])
    assert "state" not in repr(watcher.runs[0])


def test_a_log_has_columns_for_what_only_later_rounds_have(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    fit(table(), epochs=2, observers=[dt.Monitor(every=2), dt.Log(path, every="round")])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert [bool(row["gradient_norm"]) for row in rows] == [False, True] * 3


@pytest.mark.parametrize("every", ["epoch", "round"])
def test_a_log_beside_a_client_has_what_its_driver_elsewhere_tells(every: Any, tmp_path: Path) -> None:
    messages: list[Any] = []
    fit(table(), epochs=3, observers=[dt.Monitor(every=2), Relay("a", messages.append)])
    replay = Replay([dt.Log(tmp_path / "log.csv", every=every)])
    for message in messages:
        replay.play(message)
    with (tmp_path / "log.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == (3 if every == "epoch" else 9)
