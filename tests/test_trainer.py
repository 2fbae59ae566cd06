"""Training in this process: what is trained and what is left alone, exact means, and how a run ends."""

import math
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler

import dasktrain as dt
from dasktrain.errors import ReplicaError
from dasktrain.observe import Record
from dasktrain.plan import PARTITIONINGS, SHUFFLES
from tests.small import SGD, Watcher, closed, fit, frame, linear, table

STILL = partial(torch.optim.SGD, lr=0.0)
ADAMW = partial(torch.optim.AdamW, lr=0.05)


def rows_of(data: pd.DataFrame, names: tuple[str, ...] = ("a", "b")) -> Tensor:
    """Encode columns as a table of them does."""
    values = data[list(names)]
    return torch.tensor(((values - values.mean()) / values.std(ddof=0)).to_numpy(np.float32).copy())


def classes_of(data: pd.DataFrame) -> Tensor:
    return torch.from_numpy(np.unique(data["label"], return_inverse=True)[1])


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(before: dict[str, Tensor], after: nn.Module) -> set[str]:
    """Return the names of parameters that changed."""
    return {name for name, tensor in parameters_of(after).items() if not torch.equal(tensor, before[name])}


# -- the model ------------------------------------------------------------------------------------------------


def test_module_that_was_given_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = fit(table(), model=model, shards=2)
    assert result.model is not model
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert moved(parameters_of(model), result.model)


def test_module_that_was_trained_is_plain() -> None:
    model = fit(table(), optimizer=ADAMW).model
    assert type(model) is nn.Linear
    assert not model.training
    for parameter in model.parameters():  # in a memory of its own, and not a view of all of them
        assert parameter.untyped_storage().nbytes() == 4 * parameter.numel()


def test_module_that_was_trained_keeps_no_gradients() -> None:
    assert all(parameter.grad is None for parameter in fit(table()).model.parameters())


def test_trainer_can_fit_again() -> None:
    trainer = dt.Trainer(nn.Linear(2, 3), nn.CrossEntropyLoss(), SGD, observers=[])
    first, second = (trainer.fit(table(), epochs=1, client=dt.LocalWire(), seed=4) for _ in range(2))
    assert first.digest == second.digest
    assert first.model is not second.model


def test_callable_model_is_built_from_the_schema_under_the_seed() -> None:
    schemas: list[dt.Schema] = []

    def build(schema: dt.Schema) -> nn.Module:
        schemas.append(schema)
        return nn.Linear(schema.num_features, schema.num_outputs)

    still: dict[str, Any] = {"model": build, "optimizer": STILL}
    digests = [fit(table(), seed=seed, **still).digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert (schemas[0].feature_names, schemas[0].num_outputs) == (("a", "b"), 3)


def test_seed_shuffles() -> None:
    model = nn.Linear(2, 3)
    digests = [fit(table(), model=model, seed=seed).digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_dropout_is_drawn_from_the_seed_and_from_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 3))

    def loss(seed: int, elsewhere: int) -> float:
        with torch.random.fork_rng():
            torch.manual_seed(elsewhere)
            return float(fit(table(), model=model, optimizer=STILL, shuffle=False, seed=seed).history[0]["loss"])

    assert loss(seed=0, elsewhere=1) == loss(seed=0, elsewhere=2) != loss(seed=1, elsewhere=1)


def test_frozen_parameters_do_not_change() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))
    model[0].weight.requires_grad_(False)
    before = parameters_of(model)
    result = fit(table(), model=model, optimizer=partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5))
    assert moved(before, result.model) == {"0.bias", "1.weight", "1.bias"}
    assert not result.model[0].weight.requires_grad


class Tied(nn.Module):
    """One matrix used twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(torch.tanh(self.first(x))))


def test_shared_parameters_stay_shared_and_get_the_whole_gradient() -> None:
    model, data = Tied(), frame()
    result = fit(table(), model=model, batch_size=60, shards=1)
    assert result.model.first.weight is result.model.second.weight
    F.cross_entropy(model(rows_of(data)), classes_of(data)).backward()
    expected = model.first.weight - 0.1 * model.first.weight.grad
    torch.testing.assert_close(result.model.first.weight, expected)


class Sparing(nn.Module):
    """`rare` is used only by batches with a large feature, `never` by none."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.layer = nn.Linear(2, 3)
        self.rare = nn.Parameter(torch.ones(3))
        self.never = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        output = self.layer(x)
        return output + self.rare if x[:, 0].max() > self.limit else output


@pytest.mark.parametrize(("limit", "used"), [(-math.inf, True), (2.0, True), (math.inf, False)])
def test_parameters_used_by_all_some_or_no_shards(limit: float, used: bool) -> None:
    model = Sparing(limit)
    assert math.isinf(limit) or 0 < (rows_of(frame())[:, 0] > limit).sum() < 8  # fewer rows than shards
    before = parameters_of(model)
    decaying = partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5)
    result = fit(table(), model=model, optimizer=decaying, batch_size=60)
    assert moved(before, result.model) == {"layer.weight", "layer.bias"} | ({"rare"} if used else set())


def test_parameter_used_by_one_shard_gets_its_share_of_the_mean() -> None:
    model, x, y = Sparing(2.0), rows_of(frame()), classes_of(frame())
    result = fit(table(), model=model, batch_size=60, shards=60)
    output = model.layer(x) + model.rare * (x[:, :1] > 2.0)
    F.cross_entropy(output, y).backward()
    torch.testing.assert_close(result.model.rare, model.rare - 0.1 * model.rare.grad)


def test_parameter_groups_learn_at_their_own_rates() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))

    def groups(module: nn.Module) -> list[dict[str, Any]]:
        return [{"params": module[0].parameters(), "lr": 0.0}, {"params": module[1].parameters()}]  # type: ignore[index]

    result = fit(table(), model=model, groups=groups)
    assert moved(parameters_of(model), result.model) == {"1.weight", "1.bias"}
    assert result.history[0]["learning_rate"] == 0.0


def test_double_precision_is_kept() -> None:
    class Double(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.double())

    model, data = Double(2, 1, dtype=torch.float64), frame()
    result = fit(table(target="number"), model=model, loss=nn.MSELoss(), batch_size=60)
    F.mse_loss(model(rows_of(data))[:, 0], torch.tensor(data["number"].to_numpy(np.float32)).double()).backward()
    expected = model.weight - 0.1 * model.weight.grad
    assert result.model.weight.dtype == torch.float64
    torch.testing.assert_close(result.model.weight.detach(), expected.detach(), rtol=1e-12, atol=1e-12)


def test_half_precision_is_kept() -> None:
    class Half(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.bfloat16()).float()

    model = Half(2, 3, dtype=torch.bfloat16)
    result = fit(table(), dt.LocalWire(3), model=model)
    assert result.model.weight.dtype == torch.bfloat16
    assert moved(parameters_of(model), result.model) == {"weight", "bias"}
    assert result.digest == fit(table(), dt.LocalWire(1), model=model).digest


class Bag(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 4, sparse=sparse)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens).mean(dim=1))


def test_sparse_gradients_are_those_of_dense_ones() -> None:
    rng = np.random.default_rng(0)
    data = dt.Arrays(da.from_array(rng.integers(0, 20, (40, 3)), chunks=(7, 3)), rng.integers(0, 3, 40))
    dense = Bag(sparse=False)
    sparse = Bag(sparse=True)
    sparse.load_state_dict(dense.state_dict())
    results = [fit(data, dt.LocalWire(2), model=model) for model in (dense, sparse)]
    assert results[0].digest == results[1].digest


# -- exact means ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3, 8, 100])
@pytest.mark.parametrize("cuts", [(60,), (1, 0, 50, 9), (7,) * 8 + (4,)], ids=["one", "uneven", "many"])
def test_gradient_is_that_of_the_mean_over_all_rows(shards: int, cuts: tuple[int, ...]) -> None:
    data, model = frame(), nn.Linear(2, 3)
    stops = np.cumsum(cuts)
    parts = dd.from_map(lambda cut: data.iloc[slice(*cut)], list(zip(stops - cuts, stops, strict=True)))
    source = dt.Table(parts, "label", numeric=["a", "b"], categorical=[])
    result = fit(source, dt.LocalWire(2), model=model, shards=shards, batch_size=60)
    loss = F.cross_entropy(model(rows_of(data)), classes_of(data))
    loss.backward()
    torch.testing.assert_close(result.model.weight, model.weight - 0.1 * model.weight.grad)
    assert result.history[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)


LOSSES: dict[str, Callable[..., Any]] = {
    "torch loss": nn.CrossEntropyLoss(),
    "mean": lambda output, target: F.cross_entropy(output, target),
    "per row": lambda output, target: F.cross_entropy(output, target, reduction="none"),
    "sum and weight": lambda output, target: (F.cross_entropy(output, target, reduction="sum"), len(target)),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_loss_of_any_form_gives_the_same_steps(loss: Any) -> None:
    model = nn.Linear(2, 3)
    found, expected = (fit(table(50), model=model, loss=each, epochs=2) for each in (loss, nn.CrossEntropyLoss()))
    torch.testing.assert_close(found.model.weight, expected.model.weight)
    assert found.history[1]["loss"] == pytest.approx(expected.history[1]["loss"], rel=1e-6)


WEIGHTED: dict[str, Callable[..., Any]] = {"torch loss": LOSSES["torch loss"], "per row": LOSSES["per row"]}


@pytest.mark.parametrize("loss", WEIGHTED.values(), ids=WEIGHTED.keys())
def test_sample_weights_are_as_good_as_repeated_rows(loss: Any) -> None:
    data = frame(30)
    times = np.arange(30) % 4  # some rows weigh nothing
    means, scale = data[["a", "b"]].mean(), data[["a", "b"]].std(ddof=0)
    data[["a", "b"]] = ((data[["a", "b"]] - means) / scale).astype(np.float32)
    model = nn.Linear(2, 3)

    def train(rows: pd.DataFrame, **weight: Any) -> dt.Result:
        x, y = rows[["a", "b"]].to_numpy(np.float32), rows["label"].to_numpy(dtype=str)
        return fit(dt.Arrays(x, y, **weight), model=model, loss=loss, epochs=3, batch_size=1000)

    repeated, weighted = train(data.loc[data.index.repeat(times)]), train(data, weight=times)
    assert weighted.history[2]["loss"] == pytest.approx(repeated.history[2]["loss"], rel=1e-5)
    torch.testing.assert_close(weighted.model.weight, repeated.model.weight)


@pytest.mark.parametrize("ignored", [-100, 1])
def test_class_weights_count_as_torch_counts_them(ignored: int) -> None:
    data, model = frame(), nn.Linear(2, 3)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.5]), ignore_index=ignored)
    result = fit(table(), dt.LocalWire(3), model=model, loss=loss, batch_size=60)
    expected = loss(model(rows_of(data)), classes_of(data))
    expected.backward()
    assert result.history[0]["loss"] == pytest.approx(float(expected.detach()), rel=1e-6)
    torch.testing.assert_close(result.model.weight, model.weight - 0.1 * model.weight.grad)


@pytest.mark.parametrize("norm", [1e-3, 0.2, 1e3])
def test_long_gradients_are_clipped(norm: float) -> None:
    data, model = frame(), nn.Linear(2, 3)
    result = fit(table(), model=model, batch_size=60, strategy=dt.GradientAveraging(clip_norm=norm))
    F.cross_entropy(model(rows_of(data)), classes_of(data)).backward()
    whole = nn.utils.clip_grad_norm_(model.parameters(), norm)
    torch.testing.assert_close(result.model.weight, model.weight - 0.1 * model.weight.grad)
    assert result.history.rounds[0]["gradient_norm"] == pytest.approx(float(whole), rel=1e-5)


def test_recorded_figures_of_an_epoch_are_those_of_the_model_at_rest() -> None:
    data, model = frame(50), nn.Linear(2, 3)
    metrics = {"accuracy": dt.accuracy, "margin": lambda output, target: output.max(dim=1).values.mean()}
    [record] = fit(table(50), dt.LocalWire(2), model=model, optimizer=STILL, metrics=metrics, batch_size=15).history
    with torch.no_grad():
        output, target = model(rows_of(data)), classes_of(data)
    assert record["loss"] == pytest.approx(float(F.cross_entropy(output, target)), rel=1e-6)
    assert record["accuracy"] == pytest.approx(float((output.argmax(1) == target).double().mean()), rel=1e-12)
    assert record["margin"] == pytest.approx(float(output.max(dim=1).values.mean()), rel=1e-6)


@pytest.mark.parametrize("workers", [1, 3])
def test_validation_is_an_evaluation_of_every_row(workers: int) -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    train, valid = frame(), frame(97).iloc[60:]
    metrics = {"accuracy": dt.accuracy, "hits": lambda output, target: ((output.argmax(1) == target).sum(), 1.0)}
    validation = dt.Table(valid, "label", numeric=["a", "b"], categorical=[])
    settings: dict[str, Any] = {"model": model, "metrics": metrics, "shards": 4, "batch_size": 16, "epochs": 2}
    result = fit(table(), dt.LocalWire(workers), validation=validation, **settings)
    means, scale = train[["a", "b"]].mean(), train[["a", "b"]].std(ddof=0)
    with torch.no_grad():
        output = result.model(torch.tensor(((valid[["a", "b"]] - means) / scale).to_numpy(np.float32).copy()))
    target = torch.from_numpy(np.searchsorted(np.unique(train["label"]), valid["label"].to_numpy(dtype=str)))
    right = (output.argmax(dim=1) == target).sum()
    assert result.history[-1]["valid_loss"] == pytest.approx(float(F.cross_entropy(output, target)), rel=1e-5)
    assert result.history[-1]["valid_accuracy"] == pytest.approx(float(right) / 37, rel=1e-12)


def test_running_statistics_are_the_mean_over_rows_of_what_shards_saw() -> None:
    X = np.random.default_rng(0).normal(3.0, 2.0, (50, 2)).astype(np.float32)
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    result = fit(dt.Arrays(X, X[:, 0] > 3), dt.LocalWire(2), model=model, shards=7, batch_size=50)
    norm = result.model[0]
    np.testing.assert_allclose(norm.running_mean, 0.1 * X.mean(axis=0), rtol=1e-5)
    assert (norm.running_var > 0.9).all()
    two = fit(dt.Arrays(X, X[:, 0] > 3), dt.LocalWire(2), model=model, shards=7, batch_size=25, epochs=3)
    assert two.model[0].num_batches_tracked == 6


def test_validation_changes_nothing_that_is_trained() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 3))
    digests = {
        fit(table(), model=model, shards=2, epochs=2, **other).digest for other in ({}, {"validation": table(31)})
    }
    assert len(digests) == 1


# -- settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partition", PARTITIONINGS)
@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize("window", [4, 65_536])
def test_every_way_to_deal_and_shuffle_trains_on_every_row(partition: Any, shuffle: Any, window: int) -> None:
    model = nn.Linear(2, 3)
    dealing: dict[str, Any] = {"partition": partition, "shuffle": shuffle, "window": window, "shards": 3}
    results = [fit(table(50), dt.LocalWire(workers), model=model, optimizer=STILL, **dealing) for workers in (1, 2)]
    loss = F.cross_entropy(model(rows_of(frame(50))), classes_of(frame(50)))
    for result in results:
        assert result.history[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
        assert {name: result.settings[name] for name in dealing} == dealing
    assert results[0].digest == results[1].digest


@pytest.mark.parametrize(("workers", "shards"), [(1, 8), (8, 8), (9, 16), (17, 32)])
def test_shards_unless_told_otherwise(workers: int, shards: int) -> None:
    result = fit(table(), dt.LocalWire(workers))
    assert (result.settings["shards"], result.settings["workers"]) == (shards, workers)


def test_settings_tell_what_the_digest_depends_on() -> None:
    result = fit(table(), seed=9, batch_size=7, shards=3)
    expected = {"seed": 9, "batch_size": 7, "shards": 3, "threads": 1, "torch": torch.__version__}
    assert {name: result.settings[name] for name in expected} == expected


def test_numpy_integers_are_as_good_as_pythons(tmp_path: Path) -> None:
    plain = {"batch_size": 20, "shards": 4, "seed": 3, "epochs": 1, "window": 7}
    found, expected = (fit(table(), **{name: kind(value) for name, value in plain.items()}) for kind in (np.int64, int))
    assert found.digest == expected.digest
    found.save(str(tmp_path))
    assert dt.load(str(tmp_path), linear).settings == expected.settings


def test_scheduled_and_clipped_run_is_the_same_on_any_number_of_workers() -> None:
    settings: dict[str, Any] = {
        "optimizer": ADAMW,
        "scheduler": partial(lr_scheduler.CosineAnnealingLR, T_max=3),
        "strategy": dt.GradientAveraging(clip_norm=0.1),
        "epochs": 3,
    }
    assert len({fit(table(50), dt.LocalWire(workers), **settings).digest for workers in (1, 2, 5)}) == 1


# -- how a run ends -------------------------------------------------------------------------------------------


class Interrupts(dt.Observer):
    """Does what Ctrl-C does, in a round."""

    def __init__(self, round: int) -> None:
        self.at = round

    def round(self, record: Record) -> None:
        if (record["epoch"], record["round"]) == (1, self.at):
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"validation": table(20)},
        {"validation": table(20), "observers": [dt.EarlyStopping("valid_loss", patience=10_000)]},
        {"validation": table(20), "scheduler": lr_scheduler.ReduceLROnPlateau},
    ],
    ids=["plain", "validation", "early stopping", "plateau"],
)
@pytest.mark.parametrize("round", [0, 2])
def test_keyboard_interrupt_leaves_the_result_so_far(settings: dict[str, Any], round: int) -> None:
    wire, watcher = dt.LocalWire(2), Watcher()
    observers = [*settings.get("observers", []), Interrupts(round), watcher]
    result = fit(table(), wire, **(settings | {"epochs": 10_000, "observers": observers}))
    assert result.ended == "interrupt"
    assert watcher.ends == 1
    assert closed(wire)
    assert len(result.history.rounds) == sum(record["rounds"] for record in result.history) >= 3 + round + 1
    assert result.history.rounds == watcher.rounds


def test_interrupted_run_is_the_run_up_to_there() -> None:
    result = fit(table(), epochs=10_000, observers=[Interrupts(1)])
    rounds = len(result.history.rounds)
    assert result.digest == fit(table(), epochs=None, max_rounds=rounds).digest


class Fragile(nn.Linear):
    """Raises in training once its weights have moved, or in evaluation."""

    def __init__(self, in_training: bool) -> None:
        super().__init__(2, 3)
        nn.init.zeros_(self.weight)
        self.in_training = in_training

    def forward(self, x: Tensor) -> Tensor:
        if self.training == self.in_training and self.weight.any():
            raise ArithmeticError("worn out")
        return super().forward(x)


@pytest.mark.parametrize(("in_training", "rounds", "where"), [(True, 1, "epoch 0, round 1"), (False, 3, "epoch 0")])
def test_error_on_a_worker_comes_with_its_place_and_traceback(in_training: bool, rounds: int, where: str) -> None:
    wire, watcher = dt.LocalWire(2), Watcher()
    with pytest.raises(ReplicaError) as caught:
        fit(table(), wire, model=Fragile(in_training), validation=table(20), observers=[watcher])
    for word in ("ArithmeticError: worn out", where, "shards 4 to 7", "worker local-001"):
        assert word in str(caught.value)
    [note] = caught.value.__notes__
    assert "in forward" in note
    assert "ArithmeticError: worn out" in note
    assert (len(watcher.rounds), watcher.ends) == (rounds, 1)
    assert closed(wire)


def test_wire_can_be_used_again_after_a_failure() -> None:
    wire = dt.LocalWire(2)
    with pytest.raises(ReplicaError):
        fit(table(), wire, model=Fragile(in_training=True))
    assert fit(table(), wire).digest == fit(table(), dt.LocalWire(2)).digest


@pytest.mark.parametrize("fails", [False, True])
def test_torch_is_left_as_found(fails: bool) -> None:
    model = Fragile(True) if fails else nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 3))
    torch.manual_seed(123)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    builds: dict[str, Any] = {"model": lambda schema: model, "validation": table(20)}
    if fails:
        with pytest.raises(ReplicaError):
            fit(table(), dt.LocalWire(2, threads=threads + 1), **builds)
    else:
        fit(table(), dt.LocalWire(2, threads=threads + 1), **builds)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
