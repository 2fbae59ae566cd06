"""The norm of the gradient on record, and runs that end when it grows."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import dasktrain as dt
from dasktrain.errors import BadInput
from tests.small import Watcher, fit, frame, table


def norms(**settings: Any) -> list[float]:
    return [record["gradient_norm"] for record in fit(table(), epochs=2, **settings).history.rounds]


def test_norm_is_that_of_the_gradient() -> None:
    rows = frame()
    x = rows[["a", "b"]].to_numpy()
    x = torch.tensor((x - x.mean(axis=0)) / x.std(axis=0))
    model = nn.Linear(2, 3)
    copied = nn.Linear(2, 3).double()
    copied.load_state_dict(model.state_dict())
    target = torch.tensor(rows["label"].astype("category").cat.codes.to_numpy().astype("int64"))
    nn.functional.cross_entropy(copied(x), target).backward()
    expected = sum(float(part.grad.square().sum()) for part in copied.parameters() if part.grad is not None) ** 0.5
    result = fit(table(), model=model, batch_size=60, observers=[dt.Monitor()])
    assert result.history.rounds[0]["gradient_norm"] == pytest.approx(expected, rel=1e-5)


def test_norm_is_the_same_number_on_any_number_of_workers_and_changes_no_bit() -> None:
    results = [
        fit(table(), dt.LocalWire(workers), epochs=2, shards=8, observers=[dt.Monitor()]) for workers in (1, 2, 3)
    ]
    found = [[record["gradient_norm"] for record in result.history.rounds] for result in results]
    assert found[0] == found[1] == found[2]
    assert {result.digest for result in results} == {fit(table(), epochs=2).digest}


def test_norm_is_that_which_clipping_measures() -> None:
    clip = dt.GradientAveraging(clip_norm=1e-3)
    assert norms(strategy=clip, observers=[dt.Monitor()]) == norms(strategy=clip)
    unclipped = dt.GradientAveraging(clip_norm=1e9)
    assert norms(strategy=unclipped) == norms(observers=[dt.Monitor()])


def test_norm_counts_rows_of_tables() -> None:
    class Words(nn.Module):
        def __init__(self, sparse: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.words, self.linear = nn.Embedding(5, 4, sparse=sparse), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.linear(self.words(x[:, 0]))
            return out

    columns: dict[str, Any] = {"numeric": [], "categorical": ["word"]}
    rows = frame().assign(word=list("abcd") * 15)
    data = dt.Table(rows, target="label", **columns)
    found = [
        fit(data, model=Words(sparse), observers=[dt.Monitor()]).history.rounds[0]["gradient_norm"]
        for sparse in (True, False)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_others_see_the_norm_and_rounds_between_have_none() -> None:
    watcher = Watcher()
    fit(table(), epochs=2, observers=[watcher, dt.Monitor(every=2)])
    assert ["gradient_norm" in record for record in watcher.rounds] == [False, True] * 3


def test_run_whose_norm_grows_too_large_ends() -> None:
    diverging = partial(torch.optim.SGD, lr=1e3)
    result = fit(table(), optimizer=diverging, epochs=9, observers=[dt.Monitor(largest=0.8)])
    rounds = [record["gradient_norm"] for record in result.history.rounds]
    assert result.ended == "observer"
    assert rounds[-1] > 0.8 >= max(rounds[:-1], default=0.0)


@pytest.mark.parametrize("settings", [{"every": 0}, {"largest": 0.0}, {"largest": float("nan")}], ids=str)
def test_monitor_of_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="every must be at least 1 and largest above 0, however"):
        dt.Monitor(**settings)
