"""Pictures and pages of a run show what its records say."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import nn

import dasktrain as dt
from dasktrain.coordinator import Timing
from dasktrain.errors import BadInput
from dasktrain.observe import History
from dasktrain.pictures import curves, timeline
from tests.small import fit, table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def result() -> dt.Result:
    return fit(table(), dt.LocalWire(2), validation=table(45), epochs=3, metrics={"accuracy": dt.accuracy})


def lines(axis: Any) -> dict[str, list[float]]:
    return {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in axis.get_lines()}


# -- pictures -----------------------------------------------------------------------------------------------------


def test_curves_have_every_figure_of_training_and_validation(result: dt.Result) -> None:
    loss, accuracy = result.plot().axes
    frame = result.history.to_frame()
    assert (loss.get_title(loc="left"), accuracy.get_title(loc="left")) == ("loss", "accuracy")
    for axis, name in ((loss, "loss"), (accuracy, "accuracy")):
        assert lines(axis)["training"] == frame[name].tolist()
        assert lines(axis)["validation"] == frame[f"valid_{name}"].tolist()
    each = next(ys for label, ys in lines(loss).items() if label not in ("training", "validation"))
    assert each == [record["loss"] for record in result.history.rounds]


def test_a_figure_of_validation_alone_is_drawn() -> None:
    figure = curves(
        History([{"epoch": 0, "loss": 1.0, "valid_only": 0.5}, {"epoch": 1, "loss": 0.5, "valid_only": 0.7}])
    )
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["loss", "only"]


def test_a_timeline_has_a_row_for_each_worker_and_what_became_of_it() -> None:
    timings = [Timing("train", 0, n, worker, 0.5, 0.1, ended=n + 1.0) for n in range(3) for worker in "ab"]
    figure = timeline(timings, [(1.5, "worker b left")])
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "b"]
    waits, work = axis.collections[:2]
    assert waits.get_label() == "wait_data"
    left, right = work.get_paths()[0].get_extents().intervalx
    assert (left, right) == pytest.approx((0.6, 1.0))
    assert "1  1.50 s  worker b left" in figure.texts[0].get_text()


def test_answers_are_timed_from_the_runs_beginning(result: dt.Result) -> None:
    ended = [timing.ended for timing in result.timings]
    assert ended == sorted(ended)
    assert all(timing.ended >= timing.seconds for timing in result.timings)
    assert len(result.plot("timeline").axes[0].get_yticklabels()) == 2


def test_confusion_is_that_of_the_assessment(result: dt.Result) -> None:
    axis = result.plot("confusion", table()).axes[0]
    counts = [int(text.get_text()) for text in axis.texts]
    assert counts == result.assess(table()).confusion.to_numpy().ravel().tolist()
    assert [text.get_text() for text in axis.get_xticklabels()] == ["high", "low", "middle"]


def test_calibration_is_that_of_the_assessment(result: dt.Result) -> None:
    above, _ = result.plot("calibration", table()).axes
    assert lines(above)["low"] == result.assess(table()).calibration("low")["frequency"].tolist()
    two = dt.Table(pd.DataFrame({"a": np.linspace(-1, 1, 40), "y": np.arange(40) % 3 == 0}), target="y", categorical=[])
    above, _ = fit(two, model=nn.Linear(1, 2)).plot("calibration", two).axes
    assert len(above.get_lines()) == 2


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("curve", "A picture must be one of"),
        ("confusion", "must have data to count"),
    ],
)
def test_what_cannot_be_drawn_is_refused(result: dt.Result, what: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        result.plot(what)


def test_what_is_empty_cannot_be_drawn() -> None:
    with pytest.raises(BadInput, match="Curves must have epochs"):
        curves(History())
    with pytest.raises(BadInput, match="A timeline must have answers"):
        timeline([], [])


# -- the page -----------------------------------------------------------------------------------------------------


def test_a_report_says_all_and_needs_nothing_beside_it(result: dt.Result, tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    result.report(str(path), table())
    page = path.read_text()
    for wanted in (
        result.digest,
        "valid_accuracy",
        "batch_size=20, shards=8, seed=0",
        "ended by",
        "numeric columns",
        "a, b",
    ):
        assert wanted in page
    assert page.count('src="data:image/png;base64,') == 5
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "<script" not in page


def test_a_report_of_a_loaded_result_leaves_out_what_it_does_not_know(result: dt.Result, tmp_path: Path) -> None:
    result.save(str(tmp_path / "saved"))
    loaded = dt.load(str(tmp_path / "saved"), nn.Linear(2, 3))
    assert loaded.happened == result.happened
    loaded.report(str(tmp_path / "run.html"))
    assert (tmp_path / "run.html").read_text().count("data:image/png") == 2


def test_names_in_a_report_are_text(tmp_path: Path) -> None:
    rows = pd.DataFrame({"<b>x</b>": [0.0, 1.0] * 20, "y": [0, 1] * 20})
    fit(dt.Table(rows, target="y", categorical=[]), model=nn.Linear(1, 2)).report(str(tmp_path / "run.html"))
    assert "&lt;b&gt;x" in (tmp_path / "run.html").read_text()


def test_a_report_is_a_page(result: dt.Result) -> None:
    with pytest.raises(BadInput, match=r"must be written to an \.html file"):
        result.report("run.txt")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_the_report(result: dt.Result, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    page = tmp_path / "run.html"
    result.report(str(page), table())
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1100,4200", "--virtual-time-budget=5000"]
    shot = tmp_path / "run.png"
    subprocess.run(
        [CHROMIUM, *flags, f"--screenshot={shot}", page.as_uri()], check=True, timeout=120, capture_output=True
    )
    done = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", page.as_uri()], check=True, timeout=120, capture_output=True, text=True
    )
    assert shot.stat().st_size > 50_000
    assert done.stdout.count("<img") == 5
    assert "To do it again" in done.stdout
