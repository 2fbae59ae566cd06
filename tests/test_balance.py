"""Rare classes: exact counts, the same bits on any number of workers and after a resume; groups that stay whole."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import dask.dataframe as dd
import fsspec
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.balance import Balance, ClassWeights, Oversample, Smote, Undersample
from dasktrain.data.groups import SKETCH, Dealt, GroupSurvey, check_apart
from dasktrain.data.synthesis import Neighbours
from dasktrain.errors import BadInput, DataError
from dasktrain.recipe import opened
from tests.small import Watcher, fit, linear
from tests.test_plan import quick

ROWS, RARE = 400, 25
BALANCES: dict[str, Any] = {
    "weights": ClassWeights(),
    "oversample": Oversample(),
    "undersample": Undersample(0.5),
    "smote": Smote(0.5, neighbours=3),
    "stratified": None,
}


def rare(rows: int = ROWS, few: int = RARE) -> pd.DataFrame:
    """Return rows of which few are of another class, and whose first column tells them apart."""
    rng = np.random.default_rng(0)
    kind = np.where(rng.permutation(rows) < few, "rare", "common")
    return pd.DataFrame(
        {
            "id": np.arange(rows, dtype=np.float64),
            "x": rng.normal(size=rows) + 2 * (kind == "rare"),
            "user": [f"user {number}" for number in rng.integers(0, 60, rows)],
            "kind": kind,
        }
    )


def table(**settings: Any) -> dt.Table:
    frame = rare().drop(columns="user")
    return dt.Table(frame, **({"target": "kind", "categorical": []} | settings))


def balanced(data: Any, workers: int = 1, **settings: Any) -> dt.Result:
    return fit(data, dt.LocalWire(workers), **({"epochs": 2, "batch_size": 90, "window": 60, "shards": 4} | settings))


@pytest.fixture
def url() -> Iterator[str]:
    fs = fsspec.filesystem("memory")
    yield "memory://balance"
    if fs.exists("/balance"):
        fs.rm("/balance", recursive=True)


class Sees(nn.Module):
    """Keeps what it is called with."""

    seen: list[Tensor] = []  # noqa: RUF012 - the replicas' are copies of the module

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, rows: Tensor) -> Tensor:
        Sees.seen.append(rows.detach().clone())
        return self.layer(rows)


def seen(balance: Balance | None, **settings: Any) -> np.ndarray:
    """Return all features of an epoch's rows, in any order."""
    frame = rare()
    data = dt.Arrays(frame[["id", "x"]].to_numpy(dtype=np.float32), frame["kind"].to_numpy(dtype=object))
    Sees.seen = []
    watcher = Watcher()
    watcher.start = lambda run: Sees.seen.clear()  # type: ignore[method-assign] # what was tried beforehand
    balanced(data, model=lambda schema: Sees(), balance=balance, epochs=1, observers=[watcher], **settings)
    rows = [part for part in Sees.seen if part.shape[0] != 64]  # the canary's are made up
    return torch.cat(rows).numpy()


# -- counts -------------------------------------------------------------------------------------------------------


def test_oversampled_rows_are_read_once_more_or_not_and_the_rest_once() -> None:
    times = np.unique(seen(Oversample(0.5))[:, 0], return_counts=True)[1]
    is_rare = (rare()["kind"] == "rare").to_numpy()
    assert set(times[~is_rare]) == {1}
    assert set(times[is_rare]) == {7, 8}
    assert times[is_rare].sum() == 188


def test_undersampled_rows_are_as_many_as_the_ratio_says() -> None:
    rows, times = np.unique(seen(Undersample(0.5))[:, 0], return_counts=True)
    is_rare = (rare()["kind"] == "rare").to_numpy()[rows.astype(int)]
    assert (set(times), is_rare.sum(), (~is_rare).sum()) == ({1}, 25, 50)


def test_smote_reads_every_row_once_and_others_that_lie_between_two_of_the_rare() -> None:
    frame, read = rare(), seen(Smote(), window=10_000, shards=1)
    assert len(read) == 2 * (ROWS - RARE)
    real = {tuple(row) for row in frame[["id", "x"]].to_numpy(dtype=np.float32).tolist()}
    assert sum(tuple(row) in real for row in read.tolist()) == ROWS
    made = read[[tuple(row) not in real for row in read.tolist()]]
    few = frame[frame["kind"] == "rare"][["id", "x"]].to_numpy()
    assert len(np.unique(made, axis=0)) == len(made) == ROWS - 2 * RARE
    steps = few[:, None] - few[None]
    for row in made[:40]:
        off = few[:, None] - row  # the row lies on the line between some two
        cross = np.abs(off[..., 0] * steps[..., 1] - off[..., 1] * steps[..., 0])
        between = (off * (few[None] - row)).sum(axis=-1) <= 0
        assert (cross + np.where(between & (np.abs(steps).sum(axis=-1) > 0), 0, np.inf)).min() < 1e-3


def test_a_window_with_one_row_of_a_class_makes_none_up() -> None:
    features, labels = np.zeros((5, 2), dtype=np.float32), np.array([0, 0, 0, 1, 2])
    assert Neighbours(5)(features, labels, {0: 2, 1: 3}, 0).keys() == {0}
    assert Neighbours(5)(features[:3], labels[:3], {0: 2}, 0) == {}


@quick
@given(st.lists(st.integers(0, 300), min_size=2, max_size=4).filter(any), st.floats(0.01, 1))
def test_ratios_are_of_the_smallest_and_the_largest_class(rows: list[int], ratio: float) -> None:
    count = np.array(rows)
    more, less = np.array(Oversample(ratio).drawn(count)), np.array(Undersample(ratio).drawn(count))
    some = count > 0
    assert (more[some] >= count[some]).all()
    assert (more[some] >= ratio * count.max() - 1e-9).all()
    assert (less <= count).all()
    assert less[some].min() == count[some].min()
    assert (less[some] * ratio <= count[some].min() + 1e-9).all()
    assert not more[~some].any()
    assert not less[~some].any()


def test_class_weights_multiply_the_weights_of_rows() -> None:
    frame = rare().drop(columns="user")
    factors = {"rare": 8.0, "common": 0.5}
    frame["w"] = np.linspace(0.5, 2, ROWS)
    frame["both"] = frame["w"] * frame["kind"].map(factors)
    one, other = (
        balanced(dt.Table(frame.drop(columns=drop), "kind", categorical=[], weight=keep), balance=balance).digest
        for drop, keep, balance in (("both", "w", ClassWeights(factors)), ("w", "both", None))
    )
    assert one == other


# -- the same bits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", BALANCES)
def test_digest_is_equal_on_1_2_and_3_workers_and_after_a_resume_within_an_epoch(url: str, balance: str) -> None:
    settings = {"balance": BALANCES[balance], "partition": "block" if BALANCES[balance] else "stratified"}
    results = [balanced(table(), workers, **settings) for workers in (1, 2, 3)]
    assert len({result.digest for result in results}) == 1
    rounds = len(results[0].history.rounds) // 2
    balanced(table(), 2, observers=[dt.Checkpoint(url)], max_rounds=max(1, rounds - 1), **settings)
    assert balanced(table(), 3, resume=url, **settings).digest == results[0].digest


def test_balances_differ_and_are_part_of_what_a_run_goes_on_from(url: str) -> None:
    balances = (*BALANCES.values(), Oversample(0.5))
    digests = {balanced(table(), balance=balance, epochs=1).digest for balance in balances}
    assert len(digests) == 6
    balanced(table(), observers=[dt.Checkpoint(url)], max_rounds=2, balance=Oversample())
    for other, message in ((Oversample(0.5), r"balance is Oversample\(ratio=0.5\) and was"), (None, "balance is None")):
        with pytest.raises(BadInput, match=message):
            balanced(table(), resume=url, balance=other)


def test_candidates_of_a_search_are_balanced_as_they_would_be_alone() -> None:
    def make(lr: float) -> dt.Trainer:
        return dt.Trainer(linear, nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=lr), observers=[])

    settings: dict[str, Any] = {"balance": Smote(0.5), "epochs": 1, "batch_size": 90, "window": 60, "shards": 4}
    found = dt.search(make, {"lr": [0.1, 0.2]}, table(), client=dt.LocalWire(2), **settings)
    digests = [result.digest for result in found.results if result is not None]
    assert digests == [make(lr).fit(table(), client=dt.LocalWire(), **settings).digest for lr in (0.1, 0.2)]


def test_balance_of_an_estimator_is_that_of_the_trainer() -> None:
    frame = rare().drop(columns="user")
    settings: dict[str, Any] = {"epochs": 1, "random_state": 1, "client": dt.LocalWire()}
    models = [
        dt.TabularClassifier(balance=balance, class_weight=weight, **settings).fit(frame, "kind")
        for balance, weight in ((Oversample(), None), (None, None), (ClassWeights(), None), (None, "balanced"))
    ]
    digests = [model.result_.digest for model in models]
    assert digests[2] == digests[3]
    assert len(set(digests)) == 3
    with pytest.raises(BadInput, match="class_weight must go without balance"):
        dt.TabularClassifier(balance=Oversample(), class_weight="balanced", **settings).fit(frame, "kind")


def test_a_result_tells_the_balance_and_a_recipe_names_it(tmp_path: Path) -> None:
    assert balanced(table(), balance=Undersample(0.5)).settings["balance"] == "Undersample(ratio=0.5)"
    assert balanced(GROUPED).settings["grouped"]
    rare().to_parquet(tmp_path / "rows.parquet")
    recipe: dict[str, Any] = {
        "data": {"parquet": str(tmp_path), "table": {"target": "kind"}},
        "model": "MLP",
        "loss": "CrossEntropyLoss",
        "optimizer": {"SGD": {"lr": 0.1}},
        "balance": {"Oversample": {"ratio": 0.5}},
    }
    assert opened(recipe)[1]["balance"] == Oversample(0.5)
    assert opened(recipe | {"balance": None})[1]["balance"] is None


# -- bad input ----------------------------------------------------------------------------------------------------

WITH_TEXT = dt.Table(rare(), "kind")
NUMBERS = dt.Table(rare()[["id", "x"]], "x")
GROUPED = dt.Table(rare(), "kind", categorical=[], group="user")
FAULTS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no balance": (table(), {"balance": "smote"}, r"must be one of dt.balance, such as Oversample"),
    "numbers": (
        NUMBERS,
        {"balance": Oversample(), "loss": nn.MSELoss()},
        r"balance=Oversample.* must have class labels",
    ),
    "weights of numbers": (NUMBERS, {"balance": ClassWeights(), "loss": nn.MSELoss()}, "must go with class labels"),
    "text": (WITH_TEXT, {"balance": Smote()}, "Rows must be numbers to make up others"),
    "random": (table(), {"balance": Oversample(), "partition": "random"}, 'however partition is "random"'),
    "groups": (GROUPED, {"balance": Undersample()}, r"however group= keeps them together; leave out one"),
    "stratified groups": (GROUPED, {"partition": "stratified"}, r"however group= keeps them together"),
    "unknown": (table(), {"balance": ClassWeights({"rar": 2.0})}, "class_weight must be one of .* 'rar' is not"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_balanced_is_refused_before_the_first_round(fault: str) -> None:
    data, settings, message = FAULTS[fault]
    watcher = Watcher()
    with pytest.raises(BadInput, match=message):
        balanced(data, observers=[watcher], **settings)
    assert watcher.rounds == []


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dasktrain.balancing.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'dasktrain\[imbalance\]'"):
        balanced(table(), balance=Smote())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Oversample(0), r"ratio must be in \(0, 1\], however it is 0"),
        (lambda: Undersample(1.5), "however it is 1.5"),
        (lambda: Smote(1.0, 0), "neighbours must be a whole number and at least 1, however it is 0"),
        (lambda: ClassWeights("even"), "however they are 'even'"),  # type: ignore[arg-type]
        (lambda: ClassWeights({"a": -1.0}), "finite and not negative, however one is -1"),
    ],
)
def test_bad_settings_are_refused_at_once(make: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make()


# -- groups -------------------------------------------------------------------------------------------------------


def test_rows_of_a_group_are_in_one_shard_whatever_partitions_they_lie_in() -> None:
    frame = rare()
    keys = [frame["user"][start : start + 50] for start in range(0, ROWS, 50)]
    surveys = [GroupSurvey.of(each) for each in keys]
    dealt = Dealt.to(8, surveys)
    shards: dict[str, set[int]] = {}
    for partition, each in enumerate(keys):
        order = dealt.order(each)
        shard = np.repeat(np.arange(8), dealt.strata[partition])
        for place, row in enumerate(order.tolist()):
            shards.setdefault(each.iloc[row], set()).add(int(shard[place]))
    assert set(map(len, shards.values())) == {1}
    rows = dealt.strata.sum(axis=0)
    assert rows.sum() == ROWS
    assert rows.max() - rows.min() <= frame["user"].value_counts().max()


def test_digest_of_groups_is_equal_on_any_workers_and_arrays_group_alike(url: str) -> None:
    results = [balanced(GROUPED, workers) for workers in (1, 2, 3)]
    assert len({result.digest for result in results}) == 1
    assert results[0].digest != balanced(dt.Table(rare().drop(columns="user"), "kind")).digest
    assert [record["rows"] for record in results[0].history] == [ROWS, ROWS]
    balanced(GROUPED, 2, observers=[dt.Checkpoint(url)], max_rounds=3)
    assert balanced(GROUPED, 3, resume=url).digest == results[0].digest
    X, y, keys = rare()[["id", "x"]].to_numpy(), rare()["kind"].to_numpy(dtype=object), rare()["user"].to_numpy(object)
    one, other = (dt.Arrays(X, y, group=group) for group in (keys, da.from_array(keys, chunks=33)))
    assert balanced(one, 1).digest == balanced(other, 3).digest


def test_a_round_of_groups_needs_rows_of_no_more_than_their_shards() -> None:
    frame = pd.DataFrame({"x": np.arange(40.0), "y": np.arange(40) % 2, "user": ["one"] * 39 + ["two"]})
    result = balanced(dt.Table(frame, "y", categorical=[], group="user"), 2, batch_size=10)
    assert [record["rows"] for record in result.history.rounds] == [10] * 8


def test_a_group_in_training_and_validation_is_refused() -> None:
    frame = dd.from_pandas(rare(), npartitions=4)
    data = [dt.Table(part, "kind", categorical=[], group="user") for part in dt.split(frame, group="user")]
    assert balanced(*data[:1], validation=data[1]).history[0]["valid_loss"] > 0
    with pytest.raises(DataError, match=r"both training and validation data, however at least \d+ are"):
        balanced(GROUPED, validation=data[1])


def test_groups_in_both_are_found_among_more_than_are_kept() -> None:
    one, other = (GroupSurvey.of(pd.Series(range(start, start + 3 * SKETCH))) for start in (0, 2 * SKETCH))
    with pytest.raises(DataError, match="No group must be in both"):
        check_apart([one], [other])
    check_apart([one], [GroupSurvey.of(pd.Series(range(3 * SKETCH, 4 * SKETCH)))])
    check_apart([one], [])


def test_a_row_without_a_group_is_refused_by_its_partition() -> None:
    frame = rare()
    frame.loc[[5, 7], "user"] = None
    watcher = Watcher()
    with pytest.raises(DataError, match="must have a group, however 2 of 50 in partition 0 of the training data"):
        balanced(dt.Table(frame, "kind", categorical=[], group="user"), observers=[watcher])
    assert watcher.rounds == []


def test_a_group_is_no_feature_and_must_be_a_column() -> None:
    assert GROUPED.numeric == ["id", "x"]
    assert dt.Table(rare(), "kind", group="user").categorical == []
    with pytest.raises(DataError, match="given two: 'user'"):
        dt.Table(rare(), "kind", categorical=["user"], group="user")
    with pytest.raises(DataError, match="'usr' is not"):
        dt.Table(rare(), "kind", group="usr")
    with pytest.raises(DataError, match=r"a key a row, \(rows,\)"):
        dt.Arrays(np.zeros((4, 2)), np.zeros(4), group=np.zeros((4, 2)))
    with pytest.raises(DataError, match="plain values"):
        GroupSurvey.of(pd.Series([[1], [2]]))
