"""A picture of where the time of a run went."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dasktrain.coordinator import Timing
from dasktrain.errors import BadInput
from dasktrain.observe import PARTS, History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#666666")
#: rounds that are drawn, and bars that many are drawn as
MOST, BARS = 2_000, 60


def draw(history: History, timings: Sequence[Timing]) -> "Figure":
    """Draw rounds as stacked bars by part, and below what each worker did of them.

    Many rounds are drawn as the means of some each. See :class:`dasktrain.History` for the parts.

    Raises
    ------
    BadInput
        There is no round.
    ImportError
        matplotlib is not installed: ``pip install 'dasktrain[plot]'``.
    """
    from matplotlib.figure import Figure

    rounds = [record for record in history.rounds if PARTS[0] in record][-MOST:]
    if not rounds:
        raise BadInput("A profile must have rounds to show, however there is none; train first")
    groups = np.array_split(np.arange(len(rounds)), min(BARS, len(rounds)))
    workers = sorted({timing.worker for timing in timings})
    figure = Figure(figsize=(10, 3 + 1.2 * len(workers)), layout="constrained")
    axes = figure.subplots(1 + len(workers), 1, sharex=True, squeeze=False, height_ratios=[3, *(1 for _ in workers)])[
        :, 0
    ]
    _stack(axes[0], groups, {part: [record[part] for record in rounds] for part in PARTS})
    axes[0].set_title(_summary(rounds), loc="left", fontsize="medium")
    axes[0].legend(ncols=len(PARTS), frameon=False, fontsize="small")
    places = {(record["epoch"], record["round"]): place for place, record in enumerate(rounds)}
    for worker, axis in zip(workers, axes[1:], strict=True):
        _stack(axis, groups, _of_worker(worker, timings, places))
        axis.set_title(worker, loc="left", fontsize="small")
    axes[-1].set_xlabel("round")
    return figure


def _of_worker(worker: str, timings: Sequence[Timing], places: dict[tuple[int, int], int]) -> dict[str, Any]:
    parts = {part: np.zeros(len(places)) for part in PARTS}
    for timing in timings:
        place = places.get((timing.epoch, timing.round))
        if timing.worker == worker and timing.kind == "train" and place is not None:
            parts["wait_data"][place] += timing.waited
            parts["compute"][place] += timing.seconds - timing.waited
    return parts


def _stack(axis: "Axes", groups: Sequence[Any], parts: dict[str, Any]) -> None:
    """Draw a bar for each group of rounds: means, in milliseconds."""
    starts, widths = [group[0] for group in groups], [len(group) for group in groups]
    bottom = np.zeros(len(groups))
    for part, colour in zip(PARTS, COLOURS, strict=True):
        heights = np.array([1e3 * np.mean(np.asarray(parts[part])[group]) for group in groups])
        axis.bar(starts, heights, widths, bottom, align="edge", color=colour, label=part, linewidth=0)
        bottom += heights
    axis.set_ylabel("ms")
    axis.spines[["top", "right"]].set_visible(False)


def _summary(rounds: Sequence[dict[str, Any]]) -> str:
    whole = sum(record["seconds"] for record in rounds)
    shares = ", ".join(f"{part} {sum(record[part] for record in rounds) / whole:.0%}" for part in PARTS)
    return f"{1e3 * whole / len(rounds):.2f} ms a round: {shares}"
