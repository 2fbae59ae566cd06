"""Folds share out the rows exactly, and a model trained on the others never sees them."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import dasktrain as dt
from dasktrain.errors import BadInput, PlanError
from dasktrain.folds import Side
from dasktrain.plan import Plan
from tests.small import fit, frame, linear, table
from tests.test_plan import quick

SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 20, "shards": 4}
counts = st.integers(1, 3).flatmap(
    lambda classes: st.lists(st.lists(st.integers(0, 40), min_size=classes, max_size=classes), min_size=1, max_size=6)
)


def rows_of(side: Side) -> set[tuple[int, int, int]]:
    """Return (partition, class, row) of every place."""
    found: set[tuple[int, int, int]] = set()
    for partition, label in np.argwhere(side.strata > 0).tolist():
        count = int(side.strata[partition, label])
        rows = side.locate(label, np.full(count, partition), np.arange(count)).tolist()
        assert len(set(rows)) == count
        found |= {(partition, label, row) for row in rows}
    return found


@quick
@given(counts, st.integers(2, 7))
def test_folds_hold_every_row_once_and_as_many_each(rows: list[list[int]], of: int) -> None:
    there = np.array(rows)
    every = {(p, c, row) for (p, c), count in np.ndenumerate(there) for row in range(count)}
    found: list[set[tuple[int, int, int]]] = []
    for number in range(of):
        held, others = (Side(there, dt.Fold(number, of), held) for held in (True, False))
        found.append(rows_of(held))
        assert rows_of(others) == every - found[-1]
        assert (held.strata + others.strata == there).all()
    assert sum(map(len, found)) == len(every)
    assert set().union(*found) == every
    for label in range(there.shape[1]):
        sizes = [sum(1 for row in fold if row[1] == label) for fold in found]
        assert max(sizes) - min(sizes) <= 1


@quick
@given(counts, st.integers(2, 5), st.sampled_from(["shard", "epoch", "global", False]), st.integers(1, 5))
def test_a_plan_reads_its_side_once_an_epoch(rows: list[list[int]], of: int, shuffle: Any, shards: int) -> None:
    there = np.array(rows)
    side = Side(there, dt.Fold(of - 1, of), held=False)
    if not side.strata.any():
        return
    partition = "block" if there.shape[1] == 1 else "stratified"
    plan = Plan(side.strata, shards, 16, 3, partition, shuffle, window=25, side=side)
    first = np.cumsum(there, axis=1) - there
    wanted = sorted((p, int(first[p, c]) + row) for p, c, row in rows_of(side))
    read = [plan.rows(1, round, shard) for round in range(plan.rounds) for shard in range(shards)]
    found = sorted(pair for rows_ in read for pair in zip(rows_.partition.tolist(), rows_.row.tolist(), strict=True))
    assert found == wanted


def test_rows_of_a_fold_are_drawn_at_random() -> None:
    side = Side(np.array([[1000]]), dt.Fold(0, 2), held=True)
    rows = side.locate(0, np.zeros(500, dtype=np.int64), np.arange(500))
    assert 200 < (rows < 500).sum() < 300
    assert 200 < (rows % 2 == 0).sum() < 300


# -- training -----------------------------------------------------------------------------------------------------


class Watched(nn.Module):
    """A line that knows the rows it was trained on and those it was validated on, by their first column."""

    seen: dict[bool, set[float]] = {True: set(), False: set()}  # noqa: RUF012 - replicas are copies

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.seen[self.training] |= set(rows[:, 0].tolist())
        found: torch.Tensor = self.layer(rows)
        return found


@pytest.mark.parametrize("partition", ["block", "stratified"])
def test_a_model_is_validated_on_rows_that_it_was_not_trained_on(partition: str) -> None:
    X = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    every = set(X[:, 0].tolist())  # others are made up, to try the model
    validated: list[float] = []
    for number in range(3):
        Watched.seen = {True: set(), False: set()}
        fold = dt.Fold(number, of=3)
        fit(dt.Arrays(X, np.arange(60) % 3), model=Watched(), validation=fold, partition=partition, shards=4)
        trained, held = (Watched.seen[training] & every for training in (True, False))
        assert trained == every - held
        assert 20 - 2 <= len(held) <= 20 + 2
        validated += held
    assert sorted(validated) == sorted(every)


def test_folds_have_the_same_bits_on_any_number_of_workers(clean: Client) -> None:
    wires = dt.LocalWire(), dt.LocalWire(3), clean
    results = [fit(table(), wire, validation=dt.Fold(1, of=4), **SETTINGS) for wire in wires]
    assert len({result.digest for result in results}) == 1
    assert len({result.history[-1]["valid_loss"] for result in results}) == 1


def test_class_weights_and_oversampling_leave_the_fold_as_it_is() -> None:
    data = table()
    plain = fit(data, validation=dt.Fold(0, of=3), partition="stratified", optimizer=partial(torch.optim.SGD, lr=0.0))
    for balance in (dt.balance.ClassWeights(), dt.balance.Oversample(), dt.balance.Undersample()):
        found = fit(
            data,
            validation=dt.Fold(0, of=3),
            partition="stratified",
            optimizer=partial(torch.optim.SGD, lr=0.0),
            balance=balance,
        )
        assert found.history[-1]["valid_loss"] == pytest.approx(plain.history[-1]["valid_loss"])


def test_a_resumed_run_has_the_same_fold(tmp_path: Any) -> None:
    url = str(tmp_path / "run")
    whole = fit(table(), validation=dt.Fold(0, of=3), **SETTINGS)
    writing = [dt.Checkpoint(url, every="1 round")]
    fit(table(), validation=dt.Fold(0, of=3), observers=writing, max_rounds=3, **SETTINGS)
    assert fit(table(), validation=dt.Fold(0, of=3), resume=url, **SETTINGS).digest == whole.digest
    with pytest.raises(BadInput, match="fold"):
        fit(table(), validation=dt.Fold(1, of=3), resume=url, **SETTINGS)


def make(lr: float) -> dt.Trainer:
    return dt.Trainer(linear, nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=lr), observers=[])


@pytest.mark.parametrize("partition", ["block", "stratified"])
def test_folds_are_candidates_of_one_pass(partition: str) -> None:
    grid = {"lr": [0.1, 0.01], "fold": [dt.Fold(number, of=3) for number in range(3)]}
    settings = SETTINGS | {"partition": partition}
    found = dt.search(make, grid, table(), client=dt.LocalWire(2), **settings)
    for candidate, result in zip(found.candidates, found.results, strict=True):
        assert result is not None
        alone = make(candidate["lr"]).fit(table(), candidate["fold"], client=dt.LocalWire(), **settings)
        assert result.digest == alone.digest
        assert result.history[-1]["valid_loss"] == alone.history[-1]["valid_loss"]
    assert found.monitor == "valid_loss"
    means = found.frame.groupby("lr")["valid_loss"].mean()
    assert means[0.1] < means[0.01]


@pytest.mark.parametrize(("number", "of"), [(0, 1), (3, 3), (-1, 3), (0.5, 3)])
def test_a_fold_is_one_of_several(number: Any, of: Any) -> None:
    with pytest.raises(PlanError, match="A fold must be one of two or more"):
        dt.Fold(number, of)


def test_folds_go_with_no_groups_and_all_candidates_or_none() -> None:
    users = frame().assign(user=lambda rows: pd.Series(range(60)) % 7)
    data = dt.Table(users, target="label", numeric=["a", "b"], categorical=[], group="user")
    with pytest.raises(PlanError, match="group= keeps them together"):
        fit(data, validation=dt.Fold(0, of=3))
    with pytest.raises(BadInput, match="Every candidate must have a fold or none"):
        dt.search(make, [{"lr": 0.1, "fold": dt.Fold(0, 3)}, {"lr": 0.1}], table(), client=dt.LocalWire(), **SETTINGS)
