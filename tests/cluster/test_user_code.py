"""Code of the user's that workers do not have: it gets there, or an error names what is missing."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from distributed import Client
from torch import nn

import dasktrain as dt
from dasktrain import shipping
from dasktrain.errors import AttachError, ModelError, ReplicaError
from tests.small import SGD, frame, linear, table

MODEL = """
import torch
from torch import nn

class Scaled(nn.Module):
    def __init__(self, schema):
        super().__init__()
        self.linear = nn.Linear(schema.num_features, schema.num_outputs)

    def forward(self, x):
        return scaled(self.linear(x))

def scaled(x):
    return 2 * x

def loss(output, target):
    return torch.nn.functional.cross_entropy(output, scaled(target) // 2)
"""
TRAIN = """
import sys
from distributed import Client
import dasktrain as dt
from tests.small import SGD, table
with Client(sys.argv[1]):
    trainer = dt.Trainer(Scaled, loss, SGD, observers=[])
    print(trainer.fit(table(), epochs=1, batch_size=20).digest)
"""
KERAS = """
import os
import sys
os.environ["KERAS_BACKEND"] = "torch"  # of this process: workers have none
import keras
from distributed import Client
import dasktrain as dt
from tests.small import SGD, table

class Scaled(keras.layers.Layer):
    def call(self, values):
        return 2 * values

def build(schema):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((schema.num_features,)), Scaled(), keras.layers.Dense(schema.num_outputs)]
    return keras.Sequential(layers)

trainer = dt.Trainer(build, keras.losses.SparseCategoricalCrossentropy(from_logits=True), SGD, observers=[])
with Client(sys.argv[1]) as client:
    for where in (client, dt.LocalWire()):
        print(trainer.fit(table(), epochs=1, batch_size=20, client=where).digest)
"""
NOTEBOOK = """
import asyncio
async def cells():
    for cell in {cells!r}:
        exec(compile(cell, "<cell>", "exec"), globals())
        await asyncio.sleep(0)
asyncio.run(cells())
"""


@pytest.fixture(scope="module")
def digest() -> str:
    """Return what the model gives in this process."""
    names: dict[str, Any] = {"__name__": "elsewhere"}
    exec(MODEL, names)
    return (
        dt.Trainer(names["Scaled"], names["loss"], SGD, observers=[])
        .fit(table(), epochs=1, batch_size=20, client=dt.LocalWire())
        .digest
    )


def run(script: str, folder: Path, client: Client, read: bool = False) -> str:
    """Run a script, which Python may read as it comes, in a process of its own; return what it prints."""
    (folder / "job.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "-" if read else str(folder / "job.py"), client.scheduler.address],
        input=script if read else None,
        capture_output=True,
        text=True,
        timeout=100,
        env={"PYTHONPATH": str(Path.cwd()), "PATH": ""},
    )
    assert not done.returncode, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("where", ["script", "notebook", "module"])
def test_users_classes_get_to_workers(clean: Client, tmp_path: Path, digest: str, where: str) -> None:
    (tmp_path / "my_model.py").write_text(MODEL)
    script = {
        "script": MODEL + TRAIN,
        "notebook": NOTEBOOK.format(cells=[MODEL, TRAIN]),  # its classes are in __main__, and an event loop runs
        "module": "from my_model import Scaled, loss\n" + TRAIN,
    }[where]
    assert run(script, tmp_path, clean, read=where == "notebook") == digest


@pytest.mark.skipif(find_spec("keras") is None, reason="keras is not installed")
def test_layers_of_keras_get_to_workers(clean: Client, tmp_path: Path) -> None:
    assert len(set(run(KERAS, tmp_path, clean).split())) == 1


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Install a package here, and not on the workers."""
    folder = tmp_path / "hers"
    folder.mkdir()
    (folder / "__init__.py").write_text("from hers.model import Scaled, Lazy, loss, tokens")
    (folder / "parts.py").write_text("def scaled(x):\n    return 2 * x\n")
    lazy = """
class Lazy(Scaled):
    def forward(self, x):
        from hers.parts import scaled
        return scaled(self.linear(x))

def tokens(text):
    import hers.parts
    return [1, 2, 3]
"""
    model = MODEL.replace("def scaled(x):\n    return 2 * x\n", "from hers.parts import scaled\n") + lazy
    (folder / "model.py").write_text(model)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(shipping, "_INSTALLED", (*shipping._INSTALLED, str(tmp_path)))
    yield importlib.import_module("hers")
    for name in ("hers", "hers.model", "hers.parts"):
        sys.modules.pop(name, None)


def trained(package: ModuleType, client: Client, model: str = "Scaled", **settings: Any) -> dt.Result:
    """Train a model of the package."""
    trainer = dt.Trainer(getattr(package, model), package.loss, SGD, observers=[])
    return trainer.fit(table(), epochs=1, batch_size=20, client=client, **settings)


@pytest.mark.parametrize("driver", ["client", "cluster"])
def test_package_is_sent_along(clean: Client, package: ModuleType, digest: str, driver: Any) -> None:
    result = trained(package, clean, ship=["hers"], driver=driver)
    assert result.digest == digest
    assert result.ship == ("hers",)
    with clean.as_current():
        assert len(result.predict(frame()).compute()) == len(frame())


def test_package_that_is_not_sent_is_named(clean: Client, package: ModuleType) -> None:
    with pytest.raises(AttachError, match=r"No module named 'hers'; every worker must have .* ship=\['hers'\]"):
        trained(package, clean)


def test_import_within_a_function_is_named(clean: Client, package: ModuleType) -> None:
    with pytest.raises(ReplicaError, match=r"No module named 'hers'; .* put it at the top of its file"):
        trained(package, clean, "Lazy", ship=["hers"])
    texts = dt.Text(["to be"] * 8, tokenizer=package.tokens, context=4)
    trainer = dt.Trainer(lambda schema: nn.Embedding(schema.vocab_size, 3), package.loss, SGD, observers=[])
    with pytest.raises(ModelError, match=r"No module named 'hers'; .* put it at the top of its file"):
        trainer.fit(texts, epochs=1, client=clean, ship=["hers"])


@pytest.mark.parametrize("ship", [["nowhere.at.all"], ["nowhere"], "os", [""], [3]])
def test_what_is_to_be_sent_must_be_here(ship: Any) -> None:
    trainer = dt.Trainer(linear, nn.CrossEntropyLoss(), torch.optim.SGD, observers=[])
    with pytest.raises(ModelError, match="ship must be a list of packages"):
        trainer.fit(table(), client=dt.LocalWire(), ship=ship)


def test_nothing_stays_registered(clean: Client, package: ModuleType) -> None:
    trained(package, clean, ship=["hers"])
    with pytest.raises(AttachError, match="No module named 'hers'"):
        trained(package, clean)
