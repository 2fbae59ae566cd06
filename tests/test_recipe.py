"""Jobs in files: what a recipe may say, how it is overridden, and how it is refused."""

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
import yaml

import dasktrain as dt
from dasktrain.data.source import Input
from dasktrain.errors import BadInput
from dasktrain.jobs import read_job, read_model
from dasktrain.recipe import fit_recipe, read_yaml
from tests.small import frame

JOB = """
from functools import partial
import pandas as pd
import torch
from torch import nn
import dasktrain as dt
from neighbour import COLUMNS

class Net(nn.Module):
    def __init__(self, num_features, schema):
        super().__init__()
        self.layer = nn.Linear(num_features, schema.num_outputs)

    def forward(self, x):
        return self.layer(x)

def fit(lr=0.1, epochs=1, client=None):
    table = dt.Table(pd.read_parquet({data!r})[COLUMNS], target="label")
    trainer = dt.Trainer(partial(made, lr), nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=lr), observers=[])
    return trainer.fit(table, epochs=epochs, batch_size=20, client=client)

def made(lr, schema):
    return Net(schema.num_features, schema)

def nothing(**settings):
    return None
"""


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Write the small frame as Parquet."""
    path = str(tmp_path / "data.parquet")
    frame().to_parquet(path)
    return path


@pytest.fixture
def recipe(data: str) -> dict[str, Any]:
    """Return a recipe as YAML would have it."""
    text = f"""
    data:       {{parquet: {{path: {data}, columns: [a, b, label]}}, table: {{target: label}}}}
    model:      {{MLP: {{widths: [8]}}}}
    loss:       CrossEntropyLoss
    optimizer:  {{SGD: {{lr: 0.1}}}}
    metrics:    [accuracy]
    observers:  [{{Progress: }}]
    epochs:     2
    batch_size: 20
    """
    found: dict[str, Any] = yaml.safe_load(dedent(text))
    return found


@pytest.fixture
def job(tmp_path: Path, data: str) -> str:
    """Write a job in Python, and a module beside it."""
    (tmp_path / "neighbour.py").write_text('COLUMNS = ["a", "b", "label"]\n')
    path = tmp_path / "json.py"  # called like a module of the standard library: it must not become that module
    path.write_text(JOB.replace("{data!r}", repr(data)))
    return str(path)


def test_recipe_trains_what_the_same_trainer_does(recipe: dict[str, Any]) -> None:
    result = fit_recipe(recipe, client=dt.LocalWire(2))

    def model(schema: dt.Schema) -> torch.nn.Module:
        return dt.models.MLP(schema.num_features, schema.num_outputs, schema.cardinalities, widths=[8])

    trainer = dt.Trainer(
        model,
        torch.nn.CrossEntropyLoss(),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        {"accuracy": dt.accuracy},
        [],
    )
    table = dt.Table(frame()[["a", "b", "label"]], target="label")
    assert result.digest == trainer.fit(table, epochs=2, batch_size=20, client=dt.LocalWire()).digest
    assert "accuracy" in result.history[-1]


def test_settings_override_a_recipe_also_within(recipe: dict[str, Any]) -> None:
    settings = {
        "epochs": 1,
        "optimizer.SGD.lr": 0.5,
        "scheduler.StepLR.step_size": 3,
        "loss.CrossEntropyLoss.ignore_index": -1,
    }
    assert len(fit_recipe(recipe, client=dt.LocalWire(), **settings).history) == 1
    assert recipe["optimizer"] == {"SGD": {"lr": 0.1}}
    record = fit_recipe(recipe, client=dt.LocalWire(), **settings).history[0]
    assert record["learning_rate"] == 0.5


def test_recipe_trains_on_texts(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("to be or not to be\n" * 20)
    recipe = {
        "data": {"lines": str(tmp_path / "lines.txt"), "text": {"context": 16}},
        "model": {"Decoder": {"layers": 1, "width": 16, "heads": 2}},
        "loss": "cross_entropy",
        "metrics": ["token_accuracy"],
        "optimizer": "AdamW",
        "batch_size": 8,
        "max_rounds": 2,
        "observers": [{"EarlyStopping": {"monitor": "loss"}}],
    }
    assert len(fit_recipe(recipe, client=dt.LocalWire()).history.rounds) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "train"}, "one of parquet, csv, json, lines and one of table, text"),
        ({"data": {"parquet": "train", "table": None, "csv": "x"}}, "one of parquet"),
        ({"data": {"parquet": {"path": "x", "colums": []}, "table": {"target": "label"}}}, None),
        ({"data.table.tagret": 1}, "got an unexpected keyword argument 'tagret'"),
        ({"model": "MPL"}, "did you mean 'MLP'"),
        ({"model": {"MLP": {"width": 3}}}, "unexpected keyword argument 'width'"),
        ({"model": "nowhere.at.all:Net"}, "No module named 'nowhere'"),
        ({"model": "os:_exit"}, "'_exit' is none"),
        ({"loss": ["MSELoss"]}, "a name, or one name and its keywords"),
        ({"optimizer": {"SGD": {"learning_rate": 1}}}, "unexpected keyword argument 'learning_rate'"),
        ({"optimizer": {"SGD": {}, "Adam": {}}}, "a name, or one name and its keywords"),
        ({"metrics": "accuracy"}, "metrics must be a list"),
        ({"observers": ["accuracy"]}, "observers must be observers"),
        ({"epohcs": 3}, "did you mean 'epochs'"),
        ({"model": 3}, "a name, or one name and its keywords"),
    ],
)
def test_recipe_is_refused_by_name(recipe: dict[str, Any], settings: dict[str, Any], message: str | None) -> None:
    with pytest.raises((BadInput, TypeError, OSError) if message is None else BadInput, match=message):
        fit_recipe(recipe, client=dt.LocalWire(), **settings)


@pytest.mark.parametrize("number", ["1e-3", "1E+3", "-2.5e4", ".5e1", "0.1", "3"])
def test_numbers_are_numbers(number: str) -> None:
    assert read_yaml(f"lr: {number}", "it") == {"lr": float(number)}


@pytest.mark.parametrize("part", ["data", "model", "loss", "optimizer"])
def test_recipe_must_have_every_part(recipe: dict[str, Any], part: str) -> None:
    with pytest.raises(BadInput, match=f"has no {part}"):
        fit_recipe({name: value for name, value in recipe.items() if name != part})


@pytest.mark.parametrize(
    "text", ["- a list", "{", "3: x", "", "!!python/object/apply:os.system [true]", "\x00", "[" * 9999]
)
def test_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(BadInput, match="must be"):
        read_job(str(tmp_path / "job.yaml"))


def test_python_job_is_its_function(job: str) -> None:
    train = read_job(job)
    first = train(client=dt.LocalWire())
    assert first.history[0]["learning_rate"] == 0.1
    assert train(client=dt.LocalWire(2), lr=0.2).history[0]["learning_rate"] == 0.2


def test_python_job_is_refused_by_name(job: str) -> None:
    with pytest.raises(BadInput, match="did you mean 'epochs'"):
        read_job(job)(epocs=3)
    with pytest.raises(BadInput, match="has none; write `def train"):
        read_job(f"{job}:train")
    with pytest.raises(BadInput, match="must return the Result"):
        read_job(f"{job}:nothing")()
    with pytest.raises(BadInput, match="there is no file 'nowhere"):
        read_job("nowhere.py")


def test_model_is_found_wherever_a_job_has_it(job: str, tmp_path: Path) -> None:
    schema = dt.Schema(inputs=(Input((2,)),), num_outputs=3)
    (tmp_path / "job.yaml").write_text("model: {MLP: {widths: [5], num_features: 4}}")
    for path, features in ((f"{job}:Net", 2), (str(tmp_path / "job.yaml"), 4), ("MLP", 2)):
        module = read_model(path)(schema)
        assert next(part.in_features for part in module.modules() if isinstance(part, torch.nn.Linear)) == features
