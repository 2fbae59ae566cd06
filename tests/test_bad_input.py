"""Bad input: an error that names what is wrong, before the first round, and nothing left behind."""

import threading
from collections.abc import Callable
from datetime import time
from functools import partial
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.errors import BadInput, DataError, ModelError, NonFinite, PlanError, UnknownKeyword
from tests.small import LABELS, SGD, Watcher, closed, fit, frame, linear, table

nan = np.nan


def refused(error: type[Exception], words: list[str], run: Callable[[Any, Any], Any]) -> Exception:
    """Check that ``run(wire, watcher)`` raises `error` naming `words`, without a round and leaving nothing."""
    wire, watcher = dt.LocalWire(2), Watcher()
    with pytest.raises(error) as caught:
        run(wire, watcher)
    assert [word for word in words if word not in str(caught.value)] == []
    assert watcher.rounds == []
    assert closed(wire)
    return caught.value


def changed(rows: int = 60, **columns: Any) -> dt.Table:
    """Return the small table in four partitions of 15 rows, with other columns."""
    return dt.Table(
        dd.from_pandas(frame(rows).assign(**columns), npartitions=4, sort=False),
        target="number" if "number" in columns else "label",
        numeric=["a", "b"],
        categorical=[],
        weight="weight" if "weight" in columns else None,
    )


def with_value(column: str, place: int, value: Any) -> dt.Table:
    """Return the small table with one value changed."""
    values = frame()[column].tolist()
    values[place] = value
    return changed(**{column: values})


# -- data -----------------------------------------------------------------------------------------------------

DATA: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "target is missing": (lambda: table(target="lable"), ["'lable'", "did you mean 'label'"]),
    "column is all missing": (lambda: changed(a=nan), ["'a'", "every row is missing", "leave it out"]),
    "categories are all missing": (
        lambda: dt.Table(frame().assign(c=pd.Series([None] * 60, dtype="string")), "label"),
        ["'c'", "every row is missing", "leave it out"],
    ),
    "column is infinite": (lambda: with_value("b", 3, np.inf), ["'b'", "1 rows are infinite"]),
    "target is NaN": (lambda: with_value("number", 20, nan), ["target", "1 of 15", "partition 1", "drop"]),
    "target is infinite": (lambda: with_value("number", 59, -np.inf), ["target", "partition 3", "infinite"]),
    "label is missing": (lambda: with_value("label", 31, None), ["target", "1 of 15", "partition 2", "missing"]),
    "no rows": (lambda: changed(rows=0), ["must have rows", "partitions are empty"]),
    "no rows in arrays": (lambda: dt.Arrays(np.empty((0, 2)), np.empty(0)), ["must have rows"]),
    "weight is negative": (lambda: changed(weight=[1.0] * 59 + [-1.0]), ["weight", "1 of 15", "partition 3"]),
    "weight is NaN": (lambda: changed(weight=[nan] * 2 + [1.0] * 58), ["weight", "2 of 15", "partition 0"]),
    "weight is infinite": (lambda: changed(weight=[np.inf] + [1.0] * 59), ["weight", "finite", "partition 0"]),
    "one class only": (lambda: changed(label="same"), ["'label'", "'same'", "one"]),
    "categories that cannot be saved": (
        lambda: dt.Table(frame().assign(c=[time(1), time(2)] * 30), "label", numeric=[], categorical=["c"]),
        ["'c'", "time"],
    ),
    "rows of arrays are NaN": (lambda: dt.Arrays(np.full((4, 2), nan), np.arange(4)), ["X", "4 rows"]),
}


@pytest.mark.parametrize(("data", "words"), DATA.values(), ids=DATA.keys())
def test_data_that_cannot_be_used(data: Callable[[], Any], words: list[str]) -> None:
    refused(DataError, words, lambda wire, watcher: fit(data(), wire, observers=[watcher]))


def test_frame_that_is_not_yet_a_table() -> None:
    refused(BadInput, ["DataFrame", "Table"], lambda wire, watcher: fit(frame(), wire, observers=[watcher]))


VALIDATION: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "label not seen in training": (
        lambda: with_value("label", 50, "huge"),
        ["'label'", "'huge'", "'high', 'low', 'middle'", "partition 3 of the validation data"],
    ),
    "label is missing": (lambda: with_value("label", 16, None), ["partition 1 of the validation data"]),
    "no rows": (lambda: changed(rows=0), ["validation data must have rows"]),
    "column is missing": (lambda: table(numeric=["a"]), ["'b'", "trained on"]),
    "column is of another kind": (
        lambda: dt.Table(frame().assign(b="text"), "label", numeric=["a"], categorical=["b"]),
        ["'b'", "text"],
    ),
    "column is infinite": (lambda: with_value("b", 3, np.inf), ["'b'", "validation"]),
    "source of another kind": (lambda: dt.Arrays(np.ones((4, 2)), np.array(LABELS + LABELS[:1])), ["Arrays", "kind"]),
}


@pytest.mark.parametrize(("data", "words"), VALIDATION.values(), ids=VALIDATION.keys())
def test_validation_data_that_do_not_fit(data: Callable[[], Any], words: list[str]) -> None:
    refused(DataError, words, lambda wire, watcher: fit(changed(), wire, validation=data(), observers=[watcher]))


NUMBERS: dict[str, tuple[Any, Callable[[], Any], list[str]]] = {
    "more targets": ("number", lambda: table(target=["number", "a"], numeric=["b"]), ["target", "validation"]),
    "fewer targets": (["number", "a"], lambda: table(target="number", numeric=["b"]), ["target", "validation"]),
}


@pytest.mark.parametrize(("target", "data", "words"), NUMBERS.values(), ids=NUMBERS.keys())
def test_validation_with_another_number_of_targets(target: Any, data: Callable[[], Any], words: list[str]) -> None:
    def run(wire: dt.LocalWire, watcher: Watcher) -> None:
        train = table(target=target, numeric=["b"])
        fit(train, wire, loss=nn.MSELoss(), validation=data(), observers=[watcher])

    refused(BadInput, words, run)


@pytest.mark.parametrize(
    ("rows", "words"),
    [(np.full((4, 2), nan), ["X", "4 rows", "validation"]), (np.ones((4, 3)), [r"(2,)", r"(3,)"])],
    ids=["not finite", "of another shape"],
)
def test_validation_arrays_that_do_not_fit(rows: np.ndarray, words: list[str]) -> None:
    train, valid = dt.Arrays(np.ones((4, 2)), np.arange(4) % 2), dt.Arrays(rows, np.arange(4) % 2)
    refused(DataError, words, lambda wire, watcher: fit(train, wire, validation=valid, observers=[watcher]))


def test_validation_integers_beyond_those_of_training() -> None:
    refused(
        BadInput,
        ["model must accept inputs", "int64", "IndexError"],
        lambda wire, watcher: fit(
            tokens(10), wire, model=Embedded(10), validation=tokens(12), batch_size=100, shards=1, observers=[watcher]
        ),
    )


def test_validation_weights_need_a_loss_by_rows() -> None:
    refused(
        ModelError,
        ["sample weights", "a mean"],
        lambda wire, watcher: fit(table(), wire, loss=mean_loss, validation=changed(weight=1.0), observers=[watcher]),
    )


def test_integers_below_zero_do_not_fit_an_embedding() -> None:
    X = np.arange(-3, 5).reshape(8, 1)
    refused(
        BadInput,
        ["model must accept inputs", "int64", "IndexError"],
        lambda wire, watcher: fit(dt.Arrays(X, np.arange(8) % 2), wire, model=Embedded(5), observers=[watcher]),
    )


# -- settings -------------------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[type[Exception], dict[str, Any], list[str]]] = {
    "batch size": (BadInput, {"batch_size": 0}, ["batch_size", "at least 1", "0"]),
    "shards": (BadInput, {"shards": 0}, ["shards", "at least 1", "0"]),
    "negative shards": (BadInput, {"shards": -2}, ["shards", "at least 1", "-2"]),
    "epochs": (BadInput, {"epochs": 0}, ["epochs", "at least 1", "0"]),
    "rounds": (BadInput, {"max_rounds": 0}, ["max_rounds", "at least 1", "0"]),
    "window": (PlanError, {"window": 0}, ["window", "at least 1", "0"]),
    "seed": (PlanError, {"seed": -1}, ["seed", "at least 0", "-1"]),
    "partition": (PlanError, {"partition": "blok"}, ["partition", "'block'", "'blok'"]),
    "shuffle": (PlanError, {"shuffle": "shards"}, ["shuffle", "'shard'", "'shards'"]),
    "batch size is no integer": (BadInput, {"batch_size": 16.5}, ["batch_size", "16.5"]),
    "schedule": (BadInput, {"schedule_every": "step"}, ["schedule_every", "'step'"]),
    "loss": (BadInput, {"loss": "mse"}, ["loss", "callable"]),
    "model": (BadInput, {"model": None}, ["model", "callable"]),
    "optimizer is an instance": (
        BadInput,
        {"optimizer": torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)},
        ["optimizer", "callable"],
    ),
    "clip norm": (BadInput, {"strategy": None, "clip": -1.0}, ["clip_norm", "-1.0"]),
    "Trainer keyword": (UnknownKeyword, {"trainer": {"optimiser": SGD}}, ["'optimiser'", "did you mean 'optimizer'"]),
    "fit keyword": (UnknownKeyword, {"bach_size": 8}, ["'bach_size'", "did you mean 'batch_size'"]),
}


@pytest.mark.parametrize(("error", "settings", "words"), SETTINGS.values(), ids=SETTINGS.keys())
def test_settings_that_cannot_be_met(error: type[Exception], settings: dict[str, Any], words: list[str]) -> None:
    def run(wire: dt.LocalWire, watcher: Watcher) -> None:
        if "trainer" in settings:
            dt.Trainer(linear, nn.CrossEntropyLoss(), SGD, **settings["trainer"])
        if "clip" in settings:
            dt.GradientAveraging(clip_norm=settings["clip"])
        fit(table(), wire, observers=[watcher], **settings)

    refused(error, words, run)


@pytest.mark.parametrize(
    ("call", "near"),
    [
        (lambda: dt.Table(frame(), target="label", numerics=["a"]), "numeric"),
        (lambda: dt.Arrays(np.ones((2, 1)), np.ones(2), weights=np.ones(2)), "weight"),
    ],
    ids=["Table", "Arrays"],
)
def test_unknown_keyword_of_data_offers_the_nearest(call: Callable[[], Any], near: str) -> None:
    with pytest.raises(UnknownKeyword, match=f"did you mean '{near}'"):
        call()


def test_unknown_keyword_is_also_a_type_error_and_a_value_error() -> None:
    assert issubclass(UnknownKeyword, TypeError)
    assert issubclass(BadInput, ValueError)


def test_stratified_needs_class_labels() -> None:
    refused(
        PlanError,
        ['"stratified"', "class labels", "numeric", '"block"'],
        lambda wire, watcher: fit(
            table(target="number"), wire, loss=nn.MSELoss(), partition="stratified", observers=[watcher]
        ),
    )


# -- models, losses, metrics ----------------------------------------------------------------------------------


class Embedded(nn.Module):
    def __init__(self, size: int, outputs: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens).sum(dim=1)


class Locked(nn.Module):
    """A layer that holds what no process can be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return x


def locked() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Linear(2, 4), Locked()), nn.Linear(4, 3))


class LockedLoss:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target)


def raising(output: Tensor, target: Tensor) -> Tensor:
    raise KeyError("no such figure")


def mean_loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def sum_and_weight(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return nn.functional.cross_entropy(output, target, reduction="sum"), torch.tensor(float(len(target)))


def tokens(size: int) -> dt.Arrays:
    return dt.Arrays(da.from_array(np.arange(40).reshape(20, 2) % size, chunks=(6, 2)), np.arange(20) % 3)


WEIGHTED: dict[str, Any] = {"data": lambda: changed(weight=1.0)}

MODELS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "too few classes": ({"model": nn.Linear(2, 2)}, ["loss", "(7, 2)", "IndexError"]),
    "other width": ({"model": nn.Linear(5, 3)}, ["model must accept inputs", "(7, 2)", "RuntimeError"]),
    "other shape than the target": (
        {"model": nn.Linear(2, 3), "data": lambda: table(target="number"), "loss": nn.MSELoss()},
        ["MSELoss", "equal shapes", "3)", "(7,)"],
    ),
    "embedding too small": (
        {"model": Embedded(9), "data": lambda: tokens(10)},
        ["model must accept inputs", "int64", "IndexError"],
    ),
    "output is no tensor": ({"model": lambda schema: Pair()}, ["loss", "tuple"]),
    "nothing to train": ({"model": nn.Linear(2, 3).requires_grad_(False)}, ["require gradients", "none"]),
    "callable that returns no module": ({"model": lambda schema: 3}, ["must return a module", "int"]),
    "loss that sums": ({"loss": nn.CrossEntropyLoss(reduction="sum")}, ["sums", "reduction='mean'"]),
    "loss that raises": ({"loss": raising}, ["loss", "KeyError", "no such figure"]),
    "loss without gradient": ({"loss": lambda output, target: torch.zeros(len(target))}, ["loss", "grad"]),
    "loss that returns a float": ({"loss": lambda output, target: 0.5}, ["loss", "float"]),
    "loss of another length": ({"loss": lambda output, target: output.flatten()}, ["value a row", "21", "7"]),
    "metric that raises": ({"metrics": {"odd": raising}}, ["'odd'", "KeyError", "no such figure"]),
    "metric that returns text": ({"metrics": {"odd": lambda output, target: "good"}}, ["'odd'"]),
    "module holds a lock": ({"model": locked()}, ["'0.1'", "Locked", "keep locks"]),
    "built module holds a lock": ({"model": lambda schema: locked()}, ["'0.1'", "Locked", "keep locks"]),
    "loss holds a lock": ({"loss": LockedLoss()}, ["the loss", "keep locks"]),
    "metric holds a lock": ({"metrics": {"odd": LockedLoss()}}, ["metric 'odd'", "keep locks"]),
    "weights and a mean": ({"loss": mean_loss, **WEIGHTED}, ["sample weights", "a mean", "reduction='none'"]),
    "weights and a pair": ({"loss": sum_and_weight, **WEIGHTED}, ["sample weights", "(sum, weight)"]),
    "closure optimizer": ({"optimizer": partial(torch.optim.LBFGS, lr=1.0)}, ["LBFGS", "closure"]),
    "optimizer of nothing": ({"optimizer": lambda parameters: None}, ["torch optimizer", "NoneType"]),
    "foreign parameters": (
        {"groups": lambda module: [{"params": [nn.Parameter(torch.zeros(1))]}]},
        ["groups", "foreign"],
    ),
    "plateau every round": (
        {"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau, "schedule_every": "round"},
        ["ReduceLROnPlateau", "epoch"],
    ),
}


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), x


@pytest.mark.parametrize(("settings", "words"), MODELS.values(), ids=MODELS.keys())
def test_models_losses_and_metrics_that_do_not_fit(settings: dict[str, Any], words: list[str]) -> None:
    settings = {"shards": 2, "batch_size": 15} | settings
    data = settings.pop("data", table)
    refused(BadInput, words, lambda wire, watcher: fit(data(), wire, observers=[watcher], **settings))


def test_error_of_a_model_is_a_model_error_with_its_cause() -> None:
    error = refused(
        ModelError, [], lambda wire, watcher: fit(table(), wire, model=nn.Linear(5, 3), observers=[watcher])
    )
    assert isinstance(error.__cause__, RuntimeError)


class Clamped(nn.Module):
    """Keeps its parameters within bounds in a way of its own; at first they are."""

    def __init__(self, write: Callable[[nn.Parameter], object]) -> None:
        super().__init__()
        self.layer, self.scale, self.write = nn.Linear(2, 3), nn.Parameter(torch.ones(())), write

    def forward(self, x: Tensor) -> Tensor:
        self.write(self.scale)
        return self.layer(x) * self.scale


@torch.no_grad()
def clamp(scale: nn.Parameter) -> None:
    scale.clamp_(0, 9)


@torch.no_grad()
def clamp_into(scale: nn.Parameter) -> None:
    torch.clamp(scale, 0, 9, out=scale)


@torch.no_grad()
def clamp_each(scale: nn.Parameter) -> None:
    torch._foreach_clamp_max_([scale], 9.0)


def clamp_data(scale: nn.Parameter) -> None:
    scale.data.clamp_(0, 9)


def move_data(scale: nn.Parameter) -> None:
    scale.data = scale.data.clamp(0, 9)


@pytest.mark.parametrize("write", [clamp, clamp_into, clamp_each, clamp_data, move_data])
def test_module_that_writes_to_its_parameters_is_refused(write: Callable[[nn.Parameter], object]) -> None:
    refused(
        ModelError,
        ["must not write to its parameters in forward", "wrote to 'scale'", "changed copy"],
        lambda wire, watcher: fit(table(), wire, model=Clamped(write), observers=[watcher]),
    )


class Renormalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 3, max_norm=1e9)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens).sum(dim=1)


def test_embedding_that_renormalises_its_rows_is_refused() -> None:
    refused(
        ModelError,
        ["wrote to 'table.weight'"],
        lambda wire, watcher: fit(tokens(10), wire, model=Renormalised(), observers=[watcher]),
    )


class Sparse(nn.Module):
    """Has gradients that are sparse, and writes to what is sparse and no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 3, sparse=True)

    def forward(self, tokens: Tensor) -> Tensor:
        neighbours = torch.eye(len(tokens)).to_sparse().mul_(2.0)
        return neighbours @ self.table(tokens).sum(dim=1)


def test_module_in_which_much_is_sparse_is_not_refused() -> None:
    assert len(fit(tokens(10), model=Sparse()).history) == 1


def test_module_that_reads_its_parameters_in_any_way_is_not_refused() -> None:
    @torch.no_grad()
    def read(scale: nn.Parameter) -> None:
        copy = scale.detach().clone()
        torch.add(scale, 1, out=copy)
        copy.mul_(scale)

    assert len(fit(table(), model=Clamped(read)).history) == 1


# -- batch normalisation --------------------------------------------------------------------------------------


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("rows", "batch_size", "shards", "enough"), [(60, 10, 8, 5), (61, 20, 32, 7), (9, 100, 8, 4), (60, 3, 2, 1)]
)
def test_one_row_shards_of_batch_normalisation_name_the_shards_that_would_do(
    rows: int, batch_size: int, shards: int, enough: int
) -> None:
    sizes: dict[str, Any] = {"batch_size": batch_size, "model": normalised()}
    refused(
        PlanError,
        [f"shards={shards}", f"batch_size={batch_size}", f"{rows} rows", f"use shards={enough} or fewer"],
        lambda wire, watcher: fit(table(rows), wire, shards=shards, observers=[watcher], **sizes),
    )
    assert len(fit(table(rows), shards=enough, **sizes).history) == 1


def test_one_row_rounds_of_batch_normalisation_need_a_larger_batch() -> None:
    refused(
        PlanError,
        ["batch_size=1", "larger batch_size"],
        lambda wire, watcher: fit(table(), wire, model=normalised(), batch_size=1, observers=[watcher]),
    )


# -- found in the first round ---------------------------------------------------------------------------------


def nan_where_large(output: Tensor, target: Tensor) -> Tensor:
    """Lose exactly one row of the table, the 21st."""
    return (output.flatten() - target).square() / (target != 1000.0)


def test_loss_that_is_nan_names_round_shard_and_partition() -> None:
    data = with_value("number", 20, 1000.0)  # in partition 1 of 4, dealt to shard 1 of 4
    wire, watcher = dt.LocalWire(2), Watcher()
    with pytest.raises(NonFinite) as caught:
        fit(data, wire, loss=nan_where_large, shards=4, batch_size=60, observers=[watcher])
    for word in ("epoch 0", "round 0", "shard 1", "partition 1;"):
        assert word in str(caught.value)
    assert watcher.rounds == []
    assert watcher.ends == 1
    assert closed(wire)


def test_round_whose_weights_are_all_zero_is_named() -> None:
    wire, watcher = dt.LocalWire(2), Watcher()
    with pytest.raises(NonFinite, match=r"Weights must add up to more than zero.* train round 0 of epoch 0"):
        fit(changed(weight=0.0), wire, observers=[watcher])
    assert watcher.rounds == []
    assert closed(wire)


def test_figure_that_is_not_finite_is_named() -> None:
    wire, watcher = dt.LocalWire(2), Watcher()
    with pytest.raises(NonFinite, match="odd"):
        fit(table(), wire, metrics={"odd": lambda output, target: torch.full((len(target),), nan)}, observers=[watcher])
    assert closed(wire)
