"""Models that leave: by themselves, without Dask, and in formats that others run, with the outputs they had here."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.errors import BadInput
from dasktrain.models import MLP, TextCNN
from tests.small import fit, frame, table

TEXTS = ["one two", "three", "four five six seven", "", "two two two"] * 8
WITHOUT_DASK = """
import json, pickle, sys
sys.modules["dask"] = sys.modules["distributed"] = None
import pandas, torch
import dasktrain as dt
rows = pandas.read_json(sys.argv[1])
carried = pickle.loads(open(sys.argv[2], "rb").read())
loaded = dt.load_local(sys.argv[3], torch.nn.Linear(2, 3))
print(json.dumps([[*model.predict(rows)] for model in (carried, loaded)]))
print(json.dumps(loaded.predict_proba(rows).tolist()))
"""


def words(text: str) -> list[int]:
    return [1 + len(word) for word in text.split()]


def of_texts() -> dt.Result:
    texts = [{"text": text, "label": len(text) % 2} for text in TEXTS]
    data = dt.Text(texts, "text", "label", tokenizer=words, context=8)
    return fit(data, model=lambda schema: TextCNN(schema.vocab_size, schema.num_outputs, width=8))


def of_columns() -> dt.Result:
    rows = frame().assign(colour=["red", "blue", "green"] * 20)
    data = dt.Table(rows, target="label", numeric=["a", "b"], categorical=["colour"])
    return fit(data, model=lambda schema: MLP(schema.num_features, schema.num_outputs, schema.cardinalities, (8,)))


def of_arrays() -> dt.Result:
    X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    return fit(dt.Arrays(X, X[:, 0]), model=model, loss=nn.MSELoss())


RESULTS: dict[str, Any] = {"columns": of_columns, "arrays": of_arrays, "texts": of_texts}


def inputs_of(name: str, rows: int) -> tuple[Any, ...]:
    torch.manual_seed(rows)
    if name == "columns":
        return torch.randn(rows, 2), torch.randint(0, 4, (rows, 1))
    if name == "arrays":
        return (torch.randn(rows, 4),)
    mask = torch.ones(rows, 6)
    mask[0, 4:] = 0
    return torch.randint(0, 5, (rows, 6)), mask.long()


@pytest.fixture(scope="module", params=RESULTS)
def trained(request: pytest.FixtureRequest) -> tuple[str, dt.Result]:
    return request.param, RESULTS[request.param]()


# -- by itself ----------------------------------------------------------------------------------------------------


def test_a_model_by_itself_predicts_where_dask_is_not_installed(tmp_path: Path) -> None:
    result, rows = fit(table()), frame()[["a", "b"]]
    rows.to_json(tmp_path / "rows.json", double_precision=15)
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(result.to_local()))
    result.save(str(tmp_path / "saved"))
    arguments = [str(tmp_path / name) for name in ("rows.json", "model.pickle", "saved")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DASK, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    predicted, probabilities = map(json.loads, done.stdout.splitlines())
    wanted = np.asarray(result.predict(rows)).tolist()
    assert predicted == [wanted, wanted]
    assert np.allclose(probabilities, np.asarray(result.predict_proba(rows)), atol=1e-6)


def test_a_model_by_itself_is_apart_from_the_result() -> None:
    result = fit(table())
    local = result.to_local()
    with torch.no_grad():
        result.model.weight.zero_()  # type: ignore[operator]
    assert local.model.weight.abs().sum() > 0  # type: ignore[operator]
    assert not local.model.training


def test_texts_and_arrays_are_predicted_by_themselves(trained: tuple[str, dt.Result]) -> None:
    name, result = trained
    local = result.to_local()
    rows: Any = {
        "columns": frame().assign(colour="red"),
        "arrays": np.random.default_rng(1).normal(size=(10, 4)).astype(np.float32),
        "texts": TEXTS[:5],
    }[name]
    found = result.predict(rows)
    wanted = np.asarray(found.compute() if hasattr(found, "compute") else found)
    if name == "arrays":  # in other numbers at a time
        assert np.allclose(local.predict(rows), wanted, atol=1e-6)
    else:
        assert np.array_equal(local.predict(rows), wanted)
    if name == "arrays":
        with pytest.raises(BadInput, match="Probabilities must be of class labels"):
            local.predict_proba(rows)


def test_a_model_that_predicts_nothing_has_no_local_form() -> None:
    data = dt.Text(TEXTS, tokenizer=words, context=8)
    result = fit(
        data, model=lambda schema: nn.Embedding(schema.vocab_size, schema.vocab_size), loss=dt.text.cross_entropy
    )
    with pytest.raises(BadInput, match="must predict labels or numbers of tables, arrays or texts"):
        result.to_local()
    with pytest.raises(BadInput, match=r"export to \.safetensors"):
        result.export("memory://model.pt2")


# -- formats ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_a_program_of_torch_export_takes_any_number_of_rows(
    trained: tuple[str, dt.Result], tmp_path: Path, rows: int
) -> None:
    name, result = trained
    result.export(str(tmp_path / "model.pt2"))
    program = torch.export.load(str(tmp_path / "model.pt2")).module()
    inputs = inputs_of(name, rows)
    named = dict(zip(("input_ids", "attention_mask"), inputs, strict=True)) if name == "texts" else {}
    found = program(**named) if named else program(*inputs)
    assert torch.allclose(found, result.model(*inputs), atol=1e-6)


@pytest.fixture
def no_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the exporter's progress bars start no thread that stays."""
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)


@pytest.mark.usefixtures("no_monitor")
def test_onnxruntime_gives_the_outputs_that_torch_gives(trained: tuple[str, dt.Result], tmp_path: Path) -> None:
    name, result = trained
    path = str(tmp_path / "model.onnx")
    result.export(path)
    session = onnxruntime.InferenceSession(path)
    for rows in (1, 7):
        inputs = inputs_of(name, rows)
        fed = {each.name: part.numpy() for each, part in zip(session.get_inputs(), inputs, strict=True)}
        (found,) = session.run(None, fed)
        assert np.allclose(found, result.model(*inputs).detach().numpy(), atol=1e-5)


def test_weights_are_named_and_say_what_they_are_of(tmp_path: Path) -> None:
    result = fit(table())
    path = str(tmp_path / "model.safetensors")
    result.export(path)
    for name, tensor in safetensors.torch.load_file(path).items():
        assert torch.equal(tensor, result.model.state_dict()[name])
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["digest"] == result.digest
    assert json.loads(metadata["encoding"]) == json.loads(json.dumps(result.encoding.to_json()))


class Branching(nn.Linear):
    """Cannot be traced: what it computes depends on numbers."""

    def forward(self, rows: Tensor) -> Tensor:
        found = super().forward(rows)
        return found if float(found.detach().sum()) > 0 else -found


def test_what_cannot_be_exported_is_refused() -> None:
    result = fit(table(), model=Branching(2, 3))
    with pytest.raises(BadInput, match=r"must be made of what torch\.export can trace"):
        result.export("memory://model.pt2")
    with pytest.raises(BadInput, match="A model must be exported to one of"):
        result.export("memory://model.h5")


def test_onnx_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dasktrain.export.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'dasktrain\[onnx\]'"):
        fit(table()).export("memory://model.onnx")
