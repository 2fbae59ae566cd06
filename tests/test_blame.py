"""A gradient that is not finite while the loss is: which shard and which partitions it comes from."""

import math
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dasktrain as dt
from dasktrain import cut
from dasktrain.errors import NonFinite
from dasktrain.replica import Replica
from tests.small import fit

ROWS, PARTITIONS = 64, 8
#: the row that is to blame, and its partition
BAD, PARTITION = 43, "5"


class Rooted(nn.Module):
    """The size of what a layer makes of a row: at 0 that is 0, and its gradient NaN."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.linear, self.wide = nn.Linear(1, 1, bias=False), nn.Linear(1, width)

    def forward(self, x: Tensor) -> Tensor:
        return (self.linear(x) ** 2).sqrt() + self.wide(x).mean(1, keepdim=True)


def train(**settings: Any) -> dt.Result:
    """Train on rows of which one has a finite loss, and a gradient that is not finite."""
    x = np.linspace(1, 2, ROWS, dtype=np.float32)[:, None]
    x[BAD] = 0.0
    chunks = (ROWS // PARTITIONS, 1)
    data = dt.Arrays(da.from_array(x, chunks), da.ones((ROWS, 1), chunks=chunks, dtype=np.float32))
    return fit(data, **({"model": Rooted(), "loss": nn.MSELoss(), "shards": 4, "batch_size": ROWS} | settings))


def partitions_of(error: NonFinite) -> list[str]:
    """Return what a message blames."""
    said, _, named = str(error).partition("rows of partition ")
    assert said.startswith("The gradient must be finite, however it is NaN or infinite in epoch 0, round 0, shard")
    return named.partition(";")[0].split(", ")


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_shard_and_partitions_are_named(workers: int) -> None:
    with pytest.raises(NonFinite) as caught:
        train(wire=dt.LocalWire(workers))
    named = partitions_of(caught.value)
    assert PARTITION in named
    assert len(named) < PARTITIONS


def test_shard_is_named_if_gradients_are_sent_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "SIZE", 8)
    streams: list[Any] = []
    monkeypatch.setattr(Replica, "_in_buckets", _noting(streams, Replica._in_buckets))
    with pytest.raises(NonFinite) as caught:
        train(wire=dt.LocalWire(2), model=Rooted(64))
    assert streams
    assert PARTITION in partitions_of(caught.value)


def _noting(seen: list[Any], function: Any) -> Any:
    def noted(*arguments: Any) -> Any:
        seen.append(arguments)
        return function(*arguments)

    return noted


def test_rounds_whose_sums_are_finite_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = []
    monkeypatch.setattr(Replica, "answer", _noting(answers, Replica.answer))
    train(model=nn.Linear(1, 1), epochs=3, batch_size=32)
    assert len(answers) == 6


def test_gradients_that_are_too_large_together_are_told_without_blame() -> None:
    def steep(output: Tensor, target: Tensor) -> Tensor:
        return output.mean(1) * 1e37

    with pytest.raises(NonFinite, match="A round's sums must be finite"):
        train(loss=steep, model=nn.Linear(1, 1, bias=False))


def test_of_a_search_the_candidate_leaves() -> None:
    def make(rooted: bool) -> dt.Trainer:
        model = Rooted() if rooted else nn.Linear(1, 1)
        return dt.Trainer(model, nn.MSELoss(), partial(torch.optim.SGD, lr=0.1), observers=[])

    x = np.linspace(0, 1, ROWS, dtype=np.float32)[:, None]
    data, candidates = dt.Arrays(x, x), {"rooted": [True, False]}
    found = dt.search(make, candidates, data, epochs=1, batch_size=32, client=dt.LocalWire(2))
    assert [result is None for result in found.results] == [True, False]
    assert math.isfinite(found.frame["loss"].iloc[0])
