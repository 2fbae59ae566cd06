"""What the seconds of a round were spent on: the parts add up, and are drawn."""

from typing import Any

import pytest
from torch import nn

import dasktrain as dt
from dasktrain.coordinator import Timing
from dasktrain.errors import BadInput
from dasktrain.observe import PARTS, History
from dasktrain.profiling import draw
from tests.small import fit, table


def rounds(count: int, **parts: float) -> History:
    """Return a history of rounds that each took this long for each part."""
    seconds = {part: parts.get(part, 0.0) for part in PARTS}
    record = {"epoch": 0, "seconds": sum(seconds.values()), **seconds}
    return History([], [{**record, "round": number} for number in range(count)])


def test_parts_of_a_round_add_up_to_it() -> None:
    result = fit(table(60), dt.LocalWire(2), epochs=3, validation=table(60))
    assert len(result.history.rounds) == 9
    for record in result.history.rounds:
        assert sum(record[part] for part in PARTS) == pytest.approx(record["seconds"], abs=1e-9)
        assert all(record[part] >= 0 for part in PARTS)
        assert record["compute"] > 0
    workers = {timing.worker for timing in result._timings}
    assert len(workers) == 2


def test_slow_part_is_seen() -> None:
    class Slow(nn.Linear):
        def forward(self, x: Any) -> Any:
            """Take long."""
            for _ in range(300):
                y = super().forward(x)
            return y

    rounds = fit(table(60), model=lambda schema: Slow(2, 3)).history.rounds
    assert all(record["compute"] > 0.5 * record["seconds"] for record in rounds)


@pytest.mark.parametrize("name", PARTS)
def test_no_metric_is_called_like_a_part(name: str) -> None:
    with pytest.raises(BadInput, match="must not be named like a figure"):
        fit(table(), metrics={name: dt.accuracy})


def heights(axes: Any, part: str) -> list[float]:
    """Return the bars of a part."""
    (bars,) = [bars for bars in axes.containers if bars.get_label() == part]
    return [round(bar.get_height(), 6) for bar in bars]


def test_profile_draws_rounds_and_workers() -> None:
    timings = [Timing("train", 0, 1, "a", 0.004, 0.001), Timing("evaluate", 0, 1, "a", 9.0, 0.0)]
    figure = draw(rounds(3, compute=0.003, step=0.001), timings)
    whole, worker = figure.axes
    assert heights(whole, "compute") == [3.0] * 3
    assert heights(whole, "wire") == [0.0] * 3
    assert heights(worker, "compute") == [0.0, 3.0, 0.0]
    assert heights(worker, "wait_data") == [0.0, 1.0, 0.0]
    assert whole.get_title(loc="left") == "4.00 ms a round: wait_data 0%, compute 75%, wire 0%, reduce 0%, step 25%"


def test_many_rounds_are_drawn_as_means() -> None:
    figure = draw(rounds(601, wire=0.002), [])
    assert set(heights(figure.axes[0], "wire")) == {2.0}
    assert len(heights(figure.axes[0], "wire")) == 60


def test_profile_needs_a_round() -> None:
    with pytest.raises(BadInput, match="must have rounds"):
        draw(History(), [])


def test_result_that_was_loaded_has_a_profile(tmp_path: Any) -> None:
    result = fit(table())
    result.save(str(tmp_path))
    loaded = dt.load(str(tmp_path), nn.Linear(2, 3))
    assert len(result.profile().axes) == 2
    assert len(loaded.profile().axes) == 1
