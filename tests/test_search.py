"""Candidates trained in step have the bits they would have alone, and do not disturb each other."""

from functools import partial
from random import Random
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.candidates import ASKED, GONE, IDLE, PAGE, Places, Size
from dasktrain.errors import BadInput, ModelError, ReplicaError, UnknownKeyword
from tests.chaos_wire import ChaosWire, Clock
from tests.problems import PROBLEMS
from tests.small import Watcher

X, Y = PROBLEMS[2].arrays
DATA, VALID = PROBLEMS[2].data, dt.Arrays(X[:90], Y[:90])
SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 100, "shards": 4}


def make(lr: float = 0.1, width: int = 8, dropout: float = 0.0, observers: Any = (), **other: Any) -> dt.Trainer:
    torch.manual_seed(0)
    layers = [nn.Linear(6, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 3)]
    if dropout:
        layers.insert(1, nn.BatchNorm1d(width))
    settings: dict[str, Any] = {"optimizer": partial(torch.optim.SGD, lr=lr, momentum=0.9)} | other
    return dt.Trainer(nn.Sequential(*layers), nn.CrossEntropyLoss(), observers=list(observers), **settings)


def alone(candidate: dict[str, Any], validation: Any = VALID, **settings: Any) -> dt.Result:
    rest = {name: value for name, value in candidate.items() if name != "seed"}
    seed = candidate.get("seed", 0)
    return make(**rest).fit(DATA, validation, client=dt.LocalWire(), seed=seed, **(SETTINGS | settings))


# -- where things lie ---------------------------------------------------------------------------------------------

sizes = st.builds(Size, st.integers(1, 3000), st.integers(0, 300), st.integers(3, 50))


@given(st.lists(st.tuples(sizes, st.booleans()), min_size=1, max_size=6), st.sampled_from([4, 8]))
def test_candidates_lie_side_by_side(candidates: list[tuple[Size, bool]], itemsize: int) -> None:
    places = Places([size for size, _ in candidates], [there for _, there in candidates], itemsize)
    for name in ("parameters", "buffers", "sums"):
        found: dict[int, slice] = getattr(places, name)
        assert [*found] == [number for number, (_, there) in enumerate(candidates) if there]
        ends = 0 if name == "parameters" else len(candidates)
        for number, place in found.items():
            assert place.start >= ends
            ends = place.stop
            assert ends - place.start == getattr(candidates[number][0], name)
            assert name != "parameters" or place.start * itemsize % PAGE == 0
        assert ends <= getattr(places.totals, name)


def test_roles_are_told_apart() -> None:
    assert len({GONE, IDLE, ASKED}) == 3
    assert not GONE


# -- the same bits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_each_candidate_has_the_digest_it_would_have_alone(workers: int) -> None:
    grid = {"lr": [0.1, 0.01], "width": [8, 5], "seed": [0, 3]}
    found = dt.search(make, grid, DATA, VALID, client=dt.LocalWire(workers), **SETTINGS)
    assert len(found.results) == 8
    for candidate, result in zip(found.candidates, found.results, strict=True):
        assert result is not None
        wanted = alone(candidate)
        assert result.digest == wanted.digest
        assert result.ended == "epochs"
        columns = ["loss", "valid_loss", "rows"]
        pd.testing.assert_frame_equal(result.history.to_frame()[columns], wanted.history.to_frame()[columns])


def test_models_with_buffers_dropout_and_other_optimizers_go_together() -> None:
    candidates = [
        {"dropout": 0.3, "seed": 1},
        {"dropout": 0.3, "optimizer": partial(torch.optim.AdamW, lr=0.01), "seed": 1},
        {"metrics": {"accuracy": dt.accuracy}, "compute": dt.Compute(microbatch=7)},
        {"strategy": dt.GradientAveraging(clip_norm=0.1), "width": 3},
    ]
    found = dt.search(make, candidates, DATA, client=dt.LocalWire(2), **SETTINGS)
    for candidate, result in zip(candidates, found.results, strict=True):
        assert result is not None
        assert result.digest == alone(candidate, None).digest
    assert found.monitor == "loss"


def test_digests_are_the_same_on_a_cluster_with_and_without_shared_memory(clean: Client) -> None:
    grid = {"lr": [0.1, 0.01, 0.001], "seed": [0, 1]}
    digests = {
        tuple(found.frame.sort_values("candidate")["digest"])
        for found in [
            dt.search(make, grid, DATA, VALID, client=wire, halving=dt.Halving(), **SETTINGS)
            for wire in (clean, dt.LocalWire())
        ]
    }
    with dask.config.set({"dasktrain.shared-memory": False}):
        found = dt.search(make, grid, DATA, VALID, client=clean, halving=dt.Halving(), **SETTINGS)
    digests.add(tuple(found.frame.sort_values("candidate")["digest"]))
    assert len(digests) == 1


@pytest.mark.parametrize("seed", range(3))
def test_workers_that_die_hang_and_join_change_no_bit(seed: int) -> None:
    grid = {"lr": [0.1, 1e30, 0.01], "seed": [0, 1]}
    clock = Clock()
    wire = ChaosWire(Random(seed), 3, clock)
    with clock.ticking():
        found = dt.search(make, grid, DATA, VALID, client=wire, halving=dt.Halving(), **SETTINGS)
    quiet = dt.search(make, grid, DATA, VALID, client=dt.LocalWire(), halving=dt.Halving(), **SETTINGS)
    pd.testing.assert_series_equal(found.frame["digest"], quiet.frame["digest"])
    assert sum(wire.happened.values()) > 3


# -- candidates that end ------------------------------------------------------------------------------------------


def test_the_worse_half_leaves_and_has_the_digest_of_a_shorter_run() -> None:
    grid = {"lr": [0.1, 0.01, 0.001, 1e-4], "width": [8]}
    settings = SETTINGS | {"epochs": 4}
    found = dt.search(make, grid, DATA, VALID, client=dt.LocalWire(2), halving=dt.Halving(), **settings)
    frame = found.frame.set_index("candidate")
    assert sorted(frame["epochs"]) == [1, 1, 2, 4]
    assert sorted(frame["ended"]) == ["epochs", "halving", "halving", "halving"]
    assert list(found.frame["epochs"]) == [4, 2, 1, 1]
    for number, row in frame.iterrows():
        assert row["digest"] == alone(found.candidates[number], epochs=row["epochs"]).digest
    assert found.best.digest == found.frame["digest"][0]


def test_rungs_are_powers_of_the_factor_from_the_first() -> None:
    assert [epoch for epoch in range(1, 30) if dt.Halving(3, first=2).is_rung(epoch)] == [2, 6, 18]
    assert [epoch for epoch in range(1, 30) if dt.Halving().is_rung(epoch)] == [1, 2, 4, 8, 16]


def test_a_candidate_whose_numbers_are_not_finite_leaves_the_others_alone() -> None:
    grid = {"lr": [0.1, 1e30, 0.01]}
    found = dt.search(make, grid, DATA, VALID, client=dt.LocalWire(2), **SETTINGS)
    assert found.results[1] is None
    assert list(found.frame["ended"]) == ["epochs", "epochs", "diverged"]
    assert found.frame["candidate"].tolist()[-1] == 1
    for number in (0, 2):
        result = found.results[number]
        assert result is not None
        assert result.digest == alone(found.candidates[number]).digest
    with pytest.raises(BadInput, match="must be 3 candidates that ended well, however 2 did"):
        found.ensemble(3)


class Overflowing(nn.Module):
    """Has gradients that are finite in each shard, and not in sum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, 6) -> (rows, 3)."""
        return Huge.apply(self.weight.expand(len(x), 3))


class Huge(torch.autograd.Function):
    """Nothing on the way in, and more than float32 has on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return torch.full_like(gradients[0], 3e38 / len(gradients[0]))


def test_a_sum_that_overflows_is_found_to_be_one_candidates() -> None:
    def either(huge: bool) -> dt.Trainer:
        trainer = make()
        trainer.model = Overflowing() if huge else trainer.model
        return trainer

    found = dt.search(either, {"huge": [False, True]}, DATA, client=dt.LocalWire(2), **SETTINGS)
    assert found.results[1] is None
    assert found.results[0] is not None
    assert found.results[0].digest == alone({}, None).digest


def test_a_candidate_may_stop_early_and_go_back_to_its_best_epoch() -> None:
    def stopping(lr: float) -> dt.Trainer:
        return make(lr, observers=[dt.EarlyStopping(patience=1)])

    settings = SETTINGS | {"epochs": 6}
    found = dt.search(stopping, {"lr": [5.0, 0.01]}, DATA, VALID, client=dt.LocalWire(2), **settings)
    for candidate, result in zip(found.candidates, found.results, strict=True):
        assert result is not None
        wanted = stopping(**candidate).fit(DATA, VALID, client=dt.LocalWire(), **settings)
        assert (result.digest, result.ended) == (wanted.digest, wanted.ended)
    assert found.results[0] is not None
    assert found.results[0].ended == "observer"
    ranked = list(found.frame["valid_loss"])  # however many rounds it took them
    assert ranked == sorted(ranked)


def test_observers_see_their_own_candidate() -> None:
    watchers = [Watcher(), Watcher()]
    dt.search(lambda n: make(observers=[watchers[n]]), {"n": [0, 1]}, DATA, client=dt.LocalWire(), **SETTINGS)
    assert [len(watcher.rounds) for watcher in watchers] == [len(watchers[0].rounds)] * 2
    assert watchers[0].rounds


# -- what comes out -----------------------------------------------------------------------------------------------


def test_an_ensemble_is_the_mean_of_probabilities() -> None:
    found = dt.search(make, {"width": [4, 8, 16]}, DATA, VALID, client=dt.LocalWire(), **SETTINGS)
    together = found.ensemble(3)
    parts = [result.predict_proba(X).compute() for result in found.results if result is not None]
    np.testing.assert_allclose(together.predict_proba(X).compute(), np.mean(parts, axis=0), rtol=1e-5, atol=1e-7)
    labels = np.mean(parts, axis=0).argmax(axis=1)
    assert (together.predict(X).compute() == labels).mean() > 0.99  # but for ties
    figures = together.evaluate(VALID, {"accuracy": dt.accuracy})
    assert figures["accuracy"] == pytest.approx((together.predict(X[:90]).compute() == Y[:90]).mean())


def test_an_ensemble_of_numbers_is_their_mean() -> None:
    data = dt.Arrays(X, X @ np.arange(6, dtype=np.float32))
    results = [
        dt.Trainer(nn.Linear(6, 1), nn.MSELoss(), partial(torch.optim.SGD, lr=lr), observers=[]).fit(
            data, client=dt.LocalWire(), epochs=1
        )
        for lr in (0.01, 0.02)
    ]
    found = dt.Ensemble(results).predict(X).compute()
    np.testing.assert_allclose(found, np.mean([each.predict(X).compute() for each in results], axis=0), rtol=1e-6)


def test_ensembles_must_be_of_one_encoding() -> None:
    results = [alone({}, None), make().fit(dt.Arrays(X, Y + 1), client=dt.LocalWire(), epochs=1)]
    with pytest.raises(BadInput, match="one encoding"):
        dt.Ensemble(results)
    with pytest.raises(BadInput, match="there is none"):
        dt.Ensemble([])


# -- bad input ----------------------------------------------------------------------------------------------------


class Writes(nn.Module):
    """Changes its input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, 6) -> (rows, 3)."""
        out: Tensor = self.body(x.add_(1))
        return out


class Wide(nn.Module):
    """Has parameters of float64."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        """(rows, 6) -> (rows, 3)."""
        out: Tensor = self.body(x.double()).float()
        return out


def with_model(model: nn.Module) -> dt.Trainer:
    trainer = make()
    trainer.model = model
    return trainer


BAD: dict[str, tuple[type[Exception], str, Any, dict[str, Any]]] = {
    "no candidate": (BadInput, "there is none", [], {}),
    "no trainer": (BadInput, "must return a dt.Trainer", [{"lr": 1}], {"make": lambda lr: lr}),
    "a checkpoint": (BadInput, "checkpoints", [{"observers": [dt.Checkpoint("memory://search")]}], {}),
    "to resume": (BadInput, "start anew", [{}], {"resume": "memory://search"}),
    "an odd setting": (UnknownKeyword, "batch_size", [{}], {"batchsize": 3}),
    "an odd figure": (BadInput, "'valid_los' is none", [{}], {"monitor": "valid_los"}),
    "dtypes that differ": (
        ModelError,
        "one dtype",
        [{"model": nn.Linear(6, 3)}, {"model": Wide()}],
        {"make": with_model},
    ),
    "a module that writes to its input": (
        ModelError,
        "write to their inputs",
        [{"model": Writes()}],
        {"make": with_model},
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused(what: str) -> None:
    error, text, candidates, more = BAD[what]
    more = {"make": make, "client": dt.LocalWire()} | SETTINGS | more
    with pytest.raises(error, match=text):
        dt.search(more.pop("make"), candidates, DATA, **more)


def test_a_module_that_raises_ends_the_search() -> None:
    class Raises(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.training and len(x) > 2:
                raise ValueError("too many")
            return super().forward(x)

    with pytest.raises((ReplicaError, ModelError), match="too many"):
        dt.search(
            with_model, [{"model": nn.Linear(6, 3)}, {"model": Raises(6, 3)}], DATA, client=dt.LocalWire(), **SETTINGS
        )


def test_observers_of_those_that_have_begun_end_if_another_cannot_begin() -> None:
    seen: list[tuple[str, int]] = []

    class Sees(dt.Observer):
        def __init__(self, number: int) -> None:
            self.number = number

        def start(self, run: Any) -> None:
            seen.append(("start", self.number))
            if self.number == 1:
                raise OSError("the disk is full")

        def end(self) -> None:
            seen.append(("end", self.number))

    def trainer(number: int) -> dt.Trainer:
        optimizer = partial(torch.optim.SGD, lr=0.1)
        return dt.Trainer(nn.Linear(2, 2), nn.CrossEntropyLoss(), optimizer, observers=[Sees(number)])

    data = dt.Arrays(np.zeros((8, 2), dtype=np.float32), np.array([0, 1] * 4))
    with pytest.raises(OSError, match="disk is full") as raised:
        dt.search(trainer, {"number": [0, 1]}, data, epochs=1, client=dt.LocalWire())
    assert raised.traceback  # holds what the search held: nothing was left to the garbage collector
    assert sorted(seen) == [("end", 0), ("end", 1), ("start", 0), ("start", 1)]
