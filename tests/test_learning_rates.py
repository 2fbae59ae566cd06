"""A run through learning rates: what it shows, and what it leaves alone."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import dasktrain as dt
from dasktrain.errors import BadInput
from tests.small import SGD, Watcher, fit, linear, table


def trainer(**settings: Any) -> dt.Trainer:
    return dt.Trainer(
        **({"model": linear, "loss": nn.CrossEntropyLoss(), "optimizer": SGD, "observers": []} | settings)
    )


def find(of: dt.Trainer, data: Any = None, workers: int = 1, **settings: Any) -> dt.LearningRates:
    settings = {"batch_size": 20, "shards": 8} | settings
    return dt.find_learning_rate(of, data or table(), client=dt.LocalWire(workers), **settings)


def test_rate_rises_by_one_factor() -> None:
    frame = find(trainer(), smallest=1e-4, largest=1e-1, rounds=31).frame
    assert list(frame.columns) == ["learning_rate", "loss", "smooth"]
    assert frame["learning_rate"].to_numpy() == pytest.approx(np.geomspace(1e-4, 1e-1, 31), rel=1e-9)


def test_curve_is_that_of_a_fit_with_such_a_schedule() -> None:
    def rising(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1e-3 / 0.1 * (100 ** (1 / 19)) ** done)

    fitted = fit(table(), epochs=None, max_rounds=20, scheduler=rising, schedule_every="round")
    found = find(trainer(), smallest=1e-3, largest=1e-1, rounds=20).frame
    pd.testing.assert_frame_equal(
        found[["learning_rate", "loss"]], pd.DataFrame(fitted.history.rounds)[["learning_rate", "loss"]]
    )


def test_curve_is_the_same_on_any_number_of_workers() -> None:
    one, two = (find(trainer(), workers=workers) for workers in (1, 2))
    pd.testing.assert_frame_equal(one.frame, two.frame, check_exact=True)
    assert one.suggestion == two.suggestion


def test_suggestion_is_a_rate_that_learns() -> None:
    of = partial(fit, table(), epochs=10)
    found = find(trainer(), smallest=1e-6, largest=100.0, rounds=100)
    assert found.suggestion is not None
    assert 1e-3 < found.suggestion < 100
    at, slow = (of(optimizer=partial(torch.optim.SGD, lr=rate)).history[-1] for rate in (found.suggestion, 1e-5))
    assert at["loss"] < slow["loss"] / 1.5


def test_run_ends_once_the_loss_has_risen_for_good() -> None:
    found = find(trainer(), smallest=1e-3, largest=1e9, rounds=100)
    assert len(found.frame) < 100
    assert found.frame["loss"].iloc[-5:].mean() > 4 * found.frame["loss"].min()


class Counting(nn.Module):
    """A loss that is one of some numbers after the other."""

    calls = 0

    def __init__(self, losses: Sequence[float]) -> None:
        super().__init__()
        self.losses = losses
        Counting.calls = -2  # two are before the first round: the data are tried, and workers compared

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        Counting.calls += 1
        return output.sum() * 0 + self.losses[max(0, Counting.calls - 1)]


def test_run_ends_where_the_loss_is_not_finite_any_more() -> None:
    found = find(trainer(loss=Counting([1.0] * 12 + [math.nan] * 100)), shards=1)
    assert len(found.frame) == 12
    assert np.isfinite(found.frame["loss"]).all()


def test_trainer_and_model_are_left_alone() -> None:
    model, watcher = nn.Linear(2, 3), Watcher()
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=1)
    of = trainer(model=model, observers=[watcher], scheduler=schedule)
    before = {name: value.clone() for name, value in model.state_dict().items()}, vars(of).copy()
    find(of)
    assert vars(of) == before[1]
    assert all(torch.equal(value, before[0][name]) for name, value in model.state_dict().items())
    assert watcher.runs == []


def test_groups_keep_their_ratio_and_the_first_is_shown() -> None:
    rates: list[list[float]] = []

    class Seen(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    def groups(module: nn.Module) -> list[dict[str, Any]]:
        return [{"params": [module.weight], "lr": 0.1}, {"params": [module.bias], "lr": 0.2}]

    found = find(trainer(optimizer=partial(Seen, lr=1.0), groups=groups, model=nn.Linear(2, 3)), rounds=10)
    assert [first for first, _ in rates][-10:] == found.frame["learning_rate"].tolist()
    assert [second / first for first, second in rates[-10:]] == pytest.approx([2.0] * 10)


def test_loss_that_falls_nowhere_has_no_suggestion() -> None:
    assert find(trainer(loss=Counting([*range(100)])), shards=1, rounds=12).suggestion is None


def test_curve_can_be_drawn() -> None:
    figure = find(trainer()).plot()
    [axes] = figure.axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "learning rate"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"smallest": 0.0}, "0 < smallest < largest"),
        ({"smallest": 1.0, "largest": 0.1}, "0 < smallest < largest"),
        ({"rounds": 9}, "at least 10 rounds"),
        ({"epochs": 2}, "decides epochs by itself"),
        ({"resume": "x"}, "decides resume by itself"),
        ({"batch_sise": 2}, "did you mean 'batch_size'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        find(trainer(), **settings)


def test_loss_that_is_never_finite_is_told() -> None:
    with pytest.raises(BadInput, match=r"must be finite for 10 rounds, however it was for \d; choose a smaller"):
        find(trainer(loss=nn.MSELoss(), model=nn.Linear(2, 1)), table(target="number"), smallest=1e30, largest=1e35)


def test_optimizer_without_a_rate_is_told() -> None:
    with pytest.raises(BadInput, match="learning rate above 0"):
        find(trainer(optimizer=partial(torch.optim.SGD, lr=0.0)))
