"""Pictures of a run: learning curves, what workers did when, and how good a classifier is."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd

from dasktrain.assessment import Assessment
from dasktrain.coordinator import Timing
from dasktrain.data.source import Source
from dasktrain.errors import BadInput
from dasktrain.observe import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dasktrain.result import Result

Picture = Literal["curves", "timeline", "confusion", "calibration"]
#: figures of epochs that are no curves
NO_CURVES = {"epoch", "rounds", "rows", "seconds", "rows_per_second", "learning_rate"}
TRAINED, VALIDATED, FAULT = "#1b9e77", "#d95f02", "#e7298a"
#: labels whose cells of a confusion matrix have room for their counts, and labels whose calibration is drawn
WRITTEN, CALIBRATED = 12, 6
#: curves side by side
ACROSS = 3


def plot(result: "Result", what: Picture = "curves", data: Source | None = None) -> "Figure":
    """Draw something of a run; see :meth:`dasktrain.Result.plot`."""
    if what not in get_args(Picture):
        raise BadInput(f"A picture must be one of {get_args(Picture)}, however it is {what!r}")
    if what == "curves":
        return curves(result.history)
    if what == "timeline":
        return timeline(result.timings, result.happened)
    if data is None:
        raise BadInput(f"A picture of {what} must have data to count, however there are none; give data=")
    return (confusion if what == "confusion" else calibration)(result.assess(data))


def curves(history: History) -> "Figure":
    """Draw every figure of the epochs, of training and of validation; below the loss that of rounds.

    Raises
    ------
    BadInput
        There is no epoch.
    """
    if not history:
        raise BadInput("Curves must have epochs to show, however there is none; train first")
    frame = history.to_frame()
    names = [name for name in frame if name not in NO_CURVES and not str(name).startswith("valid_")]
    names += [str(name).removeprefix("valid_") for name in frame if str(name).removeprefix("valid_") not in frame]
    names = list(dict.fromkeys(name for name in names if name not in NO_CURVES))
    down = -(-len(names) // ACROSS)
    figure = _figure(4.2 * min(len(names), ACROSS), 3.2 * down)
    axes = figure.subplots(down, min(len(names), ACROSS), squeeze=False).ravel()
    for name, axis in zip(names, axes, strict=False):
        if name == "loss":
            _rounds(axis, history)
        for column, colour, label in ((name, TRAINED, "training"), (f"valid_{name}", VALIDATED, "validation")):
            if column in frame:
                axis.plot(frame["epoch"] + 1, frame[column], color=colour, label=label, marker=".")
        axis.set_title(name, loc="left", fontsize="medium")
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False, fontsize="small")
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    return figure


def _rounds(axis: "Axes", history: History) -> None:
    """Draw the loss of each round, pale."""
    rounds = pd.DataFrame(history.rounds)
    if len(rounds):
        each = rounds.groupby("epoch")["round"].transform("size")
        axis.plot(
            rounds["epoch"] + (rounds["round"] + 1) / each, rounds["loss"], color=TRAINED, alpha=0.25, linewidth=1
        )


def timeline(timings: Sequence[Timing], happened: Sequence[tuple[float, str]]) -> "Figure":
    """Draw when each worker computed and waited for data, and, numbered, what became of them.

    Raises
    ------
    BadInput
        Nothing is known of workers, as of a result that was loaded.
    """
    if not timings:
        raise BadInput("A timeline must have answers of workers, however there is none; draw it before saving")
    workers = sorted({timing.worker for timing in timings})
    figure = _figure(10, 1.6 + 0.5 * len(workers) + 0.16 * len(happened))
    axis = figure.subplots()
    for row, worker in enumerate(workers):
        mine = [timing for timing in timings if timing.worker == worker]
        starts = [timing.ended - timing.seconds for timing in mine]
        waits = list(zip(starts, (timing.waited for timing in mine), strict=True))
        work = [(start + t.waited, t.seconds - t.waited) for start, t in zip(starts, mine, strict=True)]
        for spans, part, colour in ((waits, "wait_data", VALIDATED), (work, "compute", TRAINED)):
            axis.broken_barh(spans, (row - 0.35, 0.7), color=colour, label=part if not row else None, linewidth=0)
    for number, (at, _) in enumerate(happened, 1):
        axis.axvline(at, color=FAULT, linewidth=1)
        axis.annotate(
            str(number), (at, 1), xycoords=("data", "axes fraction"), color=FAULT, fontsize="x-small", ha="center"
        )
    axis.set_yticks(range(len(workers)), workers, fontsize="small")
    axis.invert_yaxis()
    axis.set_xlabel("seconds since the driver began")
    axis.legend(ncols=2, frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(0, -0.2))
    if happened:
        told = "\n".join(f"{number}  {at:.2f} s  {text}" for number, (at, text) in enumerate(happened, 1))
        figure.text(0.01, 0, told, fontsize="x-small", color=FAULT, va="top")
    return figure


def confusion(assessment: Assessment) -> "Figure":
    """Draw which labels are taken for which: shares of each label's rows, and counts where there is room."""
    matrix = assessment.confusion.to_numpy()
    labels = [str(label) for label in assessment.labels]
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    size = 2.5 + 0.5 * min(len(labels), 30)
    figure = _figure(size + 1, size)
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, label="share of the label's rows", shrink=0.8)
    axis.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axis.set_yticks(range(len(labels)), labels)
    axis.set_xlabel("predicted")
    axis.set_ylabel("label")
    if len(labels) <= WRITTEN:
        for (row, column), count in np.ndenumerate(matrix):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize="small")
    return figure


def calibration(assessment: Assessment) -> "Figure":
    """Draw how often rows of like probability are of the label, and how many rows there are of each."""
    labels = assessment.labels[-1:] if len(assessment.labels) == 2 else assessment.labels[:CALIBRATED]
    figure = _figure(5.5, 6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--")
    for label in labels:
        frame = assessment.calibration(label)
        above.plot(frame["probability"], frame["frequency"], marker="o", markersize=3, label=str(label))
        below.step(frame["probability"], frame["rows"], where="mid")
    above.set_ylabel("share of rows that are of the label")
    above.legend(frameon=False, fontsize="small")
    below.set_yscale("log")
    below.set_ylabel("rows")
    below.set_xlabel("probability")
    return figure


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # an extra

    return Figure(figsize=(width, height), layout="constrained")
