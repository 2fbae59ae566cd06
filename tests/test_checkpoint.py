"""Saving and loading: the same bits back, old or new but never a half, and nothing unpickled."""

import ast
import errno
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import dasktrain as dt
from dasktrain.checkpoint import MANIFEST, load_state, save_state
from dasktrain.errors import BadInput, ModelError
from dasktrain.state import digest_of
from tests.small import fit, frame, linear, table

PACKAGE = Path(dt.__file__).parent


def normalised(schema: dt.Schema) -> nn.Module:
    """A model with buffers, a frozen part and a shared parameter."""
    model = nn.Sequential(
        nn.Linear(schema.num_features, 4),
        nn.BatchNorm1d(4),
        nn.Linear(4, 4),
        nn.Linear(4, 4),
        nn.Linear(4, schema.num_outputs),
    )
    model[3].weight = model[2].weight
    model[4].requires_grad_(False)
    return model


def train(rows: int = 60, model: Callable[[dt.Schema], nn.Module] = normalised, **settings: Any) -> dt.Result:
    return fit(table(rows), model=model, shards=2, validation=table(20), **settings)


@pytest.fixture(scope="module")
def old() -> dt.Result:
    return train()


@pytest.fixture(scope="module")
def new() -> dt.Result:
    return train(seed=1)


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place that does not exist yet, on disk or in memory."""
    if request.param == "file":
        yield str(tmp_path / "deep" / "model")
        return
    yield "memory://dasktrain/model"
    fs = fsspec.filesystem("memory")
    if fs.exists("/dasktrain"):
        fs.rm("/dasktrain", recursive=True)


def tensor_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


# -- there and back -------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "plain SGD": partial(torch.optim.SGD, lr=0.1),
    "AdamW": partial(torch.optim.AdamW, lr=0.1, amsgrad=True),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_result_comes_back_with_the_same_bits(url: str, optimizer: Any) -> None:
    result = train(optimizer=optimizer)
    result.save(url)
    loaded = dt.load(url, normalised)
    assert loaded.digest == result.digest == digest_of(loaded._tensors.items())
    assert (loaded.encoding, loaded.ended, loaded.settings) == (result.encoding, result.ended, result.settings)
    assert list(loaded.history) == list(result.history)
    assert loaded.history.rounds == result.history.rounds
    for (name, ours), (other, theirs) in zip(
        loaded.model.state_dict().items(), result.model.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(ours, theirs)
    assert not loaded.model.training


def test_loaded_model_predicts_the_same(url: str, old: dt.Result) -> None:
    old.save(url)
    loaded = dt.load(url, normalised)
    for method in ("predict", "predict_proba"):
        found, expected = (getattr(result, method)(frame(20)).compute(scheduler="sync") for result in (loaded, old))
        assert found.equals(expected)


def test_loaded_result_can_be_saved_again(url: str, old: dt.Result) -> None:
    old.save(url)
    dt.load(url, normalised).save(f"{url}-again")
    assert dt.load(f"{url}-again", normalised).digest == old.digest


def test_model_to_load_into_may_be_a_module(url: str, old: dt.Result) -> None:
    old.save(url)
    module = normalised(old.encoding.schema)
    loaded = dt.load(url, module)
    assert loaded.model is module
    assert torch.equal(module[0].weight, old.model[0].weight)  # type: ignore[index]


DAYS = pd.Series(pd.to_datetime(["2024-01-01", "2024-02-01"] * 30))


@pytest.mark.parametrize(
    "label",
    [[0, 1] * 30, [True, False] * 30, DAYS, pd.Series(["p", "q"] * 30, dtype="category")],
    ids=["int", "bool", "datetime", "category"],
)
def test_labels_of_a_loaded_model_are_those_of_the_saved(url: str, label: Any) -> None:
    data = frame().assign(label=label)
    result = fit(dt.Table(data, "label", numeric=["a", "b"], categorical=[]))
    result.save(url)
    found = dt.load(url, linear).predict(data).compute(scheduler="sync")
    pd.testing.assert_series_equal(found, result.predict(data).compute(scheduler="sync"))


def test_arrays_and_numbers_come_back(url: str) -> None:
    X = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    result = fit(dt.Arrays(X, X), loss=nn.MSELoss())
    result.save(url)
    found = dt.load(url, linear).predict(X).compute(scheduler="sync")
    np.testing.assert_array_equal(found, result.predict(X).compute(scheduler="sync"))


def test_schedule_and_early_stopping_leave_a_result_that_can_be_saved(url: str) -> None:
    result = train(
        epochs=3,
        scheduler=partial(lr_scheduler.StepLR, step_size=1),
        observers=[dt.EarlyStopping(patience=1)],
        strategy=dt.GradientAveraging(clip_norm=0.1),
    )
    result.save(url)
    assert dt.load(url, normalised).digest == result.digest


def test_training_a_result_on_does_not_spoil_what_is_saved(url: str) -> None:
    result = train()
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.add_(1.0)
    result.save(url)
    assert dt.load(url, normalised).digest == result.digest


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path: Path, old: dt.Result, new: dt.Result) -> None:
    old.save(str(tmp_path))
    (tmp_path / "notes.txt").write_text("the user's own")
    new.save(str(tmp_path))
    assert dt.load(str(tmp_path), normalised).digest == new.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [MANIFEST, "notes.txt", *(path.name for path in tensor_files(tmp_path))]
    )
    assert len(tensor_files(tmp_path)) == 1


def test_saving_the_same_again_keeps_it(tmp_path: Path, old: dt.Result) -> None:
    for _ in range(2):
        old.save(str(tmp_path))
    assert dt.load(str(tmp_path), normalised).digest == old.digest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool], ids=str)
def test_tensors_of_any_dtype_and_shape_come_back(url: str, dtype: torch.dtype) -> None:
    base = torch.arange(12).reshape(3, 4).to(dtype)
    tensors = {"whole": base, "transposed": base.T, "shared": base[1:], "scalar": base[1, 1], "none": base[:0]}
    save_state(url, tensors, {"digest": "x"})
    found, facts = load_state(url)
    assert facts["digest"] == "x"
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)


# -- crashes --------------------------------------------------------------------------------------------------


class Crash:
    """Fails the n-th call of one function of os, as a full disk or a lost mount would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
        self.calls = 0
        original = getattr(os, name)

        def failing(*arguments: Any, **settings: Any) -> Any:
            self.calls += 1
            if self.calls == call:
                raise OSError(errno.EIO, f"os.{name} failed")
            return original(*arguments, **settings)

        monkeypatch.setattr(os, name, failing)


@pytest.mark.parametrize(
    ("step", "call", "survivor"),
    [
        ("fsync", 1, "old"),  # of the tensors
        ("replace", 1, "old"),
        ("fsync", 2, "old"),  # of their directory
        ("fsync", 3, "old"),  # of the manifest
        ("replace", 2, "old"),
        ("fsync", 4, "new"),  # of its directory: the manifest is in place
    ],
)
def test_crash_while_saving_leaves_a_whole_state(
    tmp_path: Path, old: dt.Result, new: dt.Result, step: str, call: int, survivor: str
) -> None:
    old.save(str(tmp_path))
    with pytest.MonkeyPatch.context() as monkeypatch:
        crash = Crash(monkeypatch, step, call)
        with pytest.raises(OSError, match=f"os.{step} failed"):
            new.save(str(tmp_path))
        assert crash.calls == call
    assert dt.load(str(tmp_path), normalised).digest == {"old": old, "new": new}[survivor].digest
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []
    new.save(str(tmp_path))
    assert dt.load(str(tmp_path), normalised).digest == new.digest
    assert len(tensor_files(tmp_path)) == 1


def test_crash_while_saving_for_the_first_time_leaves_nothing_to_load(tmp_path: Path, old: dt.Result) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        Crash(monkeypatch, "replace", 2)
        with pytest.raises(OSError, match="replace failed"):
            old.save(str(tmp_path))
    with pytest.raises(BadInput, match="cannot be read"):
        dt.load(str(tmp_path), normalised)


# -- damage ---------------------------------------------------------------------------------------------------


def flip_a_byte(folder: Path) -> None:
    [path] = tensor_files(folder)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut_tensors(folder: Path) -> None:
    [path] = tensor_files(folder)
    path.write_bytes(path.read_bytes()[:-8])


def lose_tensors(folder: Path) -> None:
    tensor_files(folder)[0].unlink()


def cut_manifest(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(path.read_text()[:-40])


def lose_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def edit(**changes: Any) -> Callable[[Path], None]:
    """Return damage that changes or (by None) drops entries of the manifest."""

    def damage(folder: Path) -> None:
        path = folder / MANIFEST
        manifest = {
            name: value for name, value in (json.loads(path.read_text()) | changes).items() if value is not None
        }
        path.write_text(json.dumps(manifest))

    return damage


def make_a_list(folder: Path) -> None:
    (folder / MANIFEST).write_text("[]")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a byte of the tensors": flip_a_byte,
    "tensors cut short": cut_tensors,
    "tensors lost": lose_tensors,
    "manifest cut short": cut_manifest,
    "manifest lost": lose_manifest,
    "manifest is a list": make_a_list,
    "another format": edit(format=99),
    "no name of the tensors": edit(tensors=None),
    "no checksum": edit(sha256=None),
    "another digest": edit(digest="0" * 64),
    "no digest": edit(digest=None),
    "no encoding": edit(encoding=None),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_found(tmp_path: Path, old: dt.Result, damage: Callable[[Path], None]) -> None:
    old.save(str(tmp_path))
    damage(tmp_path)
    with pytest.raises(BadInput) as caught:
        dt.load(str(tmp_path), normalised)
    assert str(tmp_path) in str(caught.value)


def test_nothing_there_is_named(url: str) -> None:
    with pytest.raises(BadInput) as caught:
        dt.load(url, normalised)
    assert url in str(caught.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (linear, ["however only the", "has"]),
        (lambda schema: nn.Sequential(*normalised(schema), nn.Linear(3, 3)), ["only the module has", "5.bias"]),
        (lambda schema: nn.Sequential(nn.Linear(2, 4), nn.Identity()), ["saved state"]),
        (lambda schema: normalised(dt.Schema(schema.inputs, 5)), ["parameters/4.", "(3,", "(5,"]),
        (lambda schema: normalised(schema).double(), ["float32", "float64"]),
        (lambda schema: "no module", ["must return a module", "str"]),
    ],
    ids=["other names", "more parameters", "fewer parameters", "other shape", "other dtype", "no module"],
)
def test_model_of_another_architecture_is_refused(url: str, old: dt.Result, model: Any, words: list[str]) -> None:
    old.save(url)
    with pytest.raises(ModelError) as caught:
        dt.load(url, model)
    assert [word for word in words if word not in str(caught.value)] == []


def test_module_that_does_not_fit_is_left_as_it_was(url: str, old: dt.Result) -> None:
    old.save(url)
    module = normalised(dt.Schema(old.encoding.schema.inputs, 5))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ModelError):
        dt.load(url, module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


# -- nothing is unpickled -------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["checkpoint.py", "stored.py", "result.py", "data/saved.py"])
def test_loading_uses_no_pickle(module: str) -> None:
    tree = ast.parse((PACKAGE / module).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported
    assert not imported & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    called = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    called |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not called & {"torch.load", "torch.save", "np.load", "pd.read_pickle", "eval", "exec"}


def test_manifest_is_plain_json(tmp_path: Path, old: dt.Result) -> None:
    old.save(str(tmp_path))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    manifest = json.loads((tmp_path / MANIFEST).read_text(), parse_constant=refuse)
    assert manifest["digest"] == old.digest
    assert manifest["settings"]["shards"] == 2
