"""What every observer promises. A new one is one more line of `OBSERVERS`."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

import dasktrain as dt
from dasktrain.errors import BadInput
from tests.small import Watcher, fit, table

SETTINGS: dict[str, Any] = {"epochs": 3, "shards": 4}


def plateau(directory: Path) -> dt.Observer:
    return dt.EarlyStopping("loss", patience=50, restore_best=False)


OBSERVERS: dict[str, Any] = {
    "nothing": lambda directory: dt.Observer(),
    "progress": lambda directory: dt.Progress(),
    "log": lambda directory: dt.Log(str(directory / "log.csv")),
    "lines": lambda directory: dt.Log(str(directory / "log.jsonl")),
    "early stopping": plateau,
    "budget": lambda directory: dt.Budget(seconds=1000),
    "monitor": lambda directory: dt.Monitor(),
    "tracker": lambda directory: dt.TensorBoard(str(directory / "events")),
    "checkpoint": lambda directory: dt.Checkpoint(str(directory / "run"), every="2 rounds"),
}


@pytest.fixture(params=OBSERVERS)
def made(request: pytest.FixtureRequest) -> Any:
    return OBSERVERS[request.param]


def test_it_changes_no_bit(made: Any, tmp_path: Path) -> None:
    assert fit(table(), observers=[made(tmp_path)], **SETTINGS).digest == fit(table(), **SETTINGS).digest


def test_it_may_watch_run_after_run(made: Any, tmp_path: Path) -> None:
    observer = made(tmp_path)
    for number in range(2):
        if isinstance(observer, dt.Checkpoint):
            observer.url = str(tmp_path / str(number))
        assert len(fit(table(), observers=[observer], **SETTINGS).history) == 3


def test_it_can_be_copied_and_sent_before_and_after_a_run(made: Any, tmp_path: Path) -> None:
    observer = made(tmp_path)
    if observer.runs_on == "client":
        return  # is never sent
    pickle.loads(pickle.dumps(copy.deepcopy(observer)))
    fit(table(), observers=[observer], **SETTINGS)
    pickle.loads(pickle.dumps(copy.deepcopy(observer)))


class Fails(dt.Observer):
    """Ends a run by an error."""

    def round(self, record: dict[str, Any]) -> None:
        raise BadInput("enough")


def test_it_is_ended_with_a_run_that_fails(made: Any, tmp_path: Path) -> None:
    observer = made(tmp_path)
    with pytest.raises(BadInput, match="enough"):
        fit(table(), observers=[observer, Fails()], **SETTINGS)
    if isinstance(observer, dt.Checkpoint):
        observer.url = str(tmp_path / "another")
    fit(table(), observers=[observer], **SETTINGS)  # and takes another


def test_it_goes_on_after_a_resume(made: Any, tmp_path: Path) -> None:
    url = str(tmp_path / "kept")
    keeping = dt.Checkpoint(url, every="1 round")
    observer = made(tmp_path)
    others = [] if isinstance(observer, dt.Checkpoint) else [keeping]
    if not others:
        observer.url = url
    fit(table(), observers=[observer, *others], max_rounds=4, **SETTINGS)
    watcher = Watcher()
    result = fit(table(), observers=[observer, *others, watcher], resume=url, **SETTINGS)
    assert result.digest == fit(table(), **SETTINGS).digest
    assert len(result.history.rounds) == 9
