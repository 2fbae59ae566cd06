"""Keras models train as they are: to the bits of a plain loop, on any number of workers."""

import copy
import os
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import dask.array as da
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dasktrain as dt
from dasktrain.domain import pinned
from dasktrain.errors import BadInput, ModelError
from dasktrain.keras_module import KerasModule, adapted
from tests.reference import reference_digest

os.environ["KERAS_BACKEND"] = "torch"
keras = pytest.importorskip("keras")
#: Keras 3.15 beside NumPy 2.4
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROWS, PARTITIONS = 60, (25, 35)
RNG = np.random.default_rng(3)
X = RNG.normal(size=(ROWS, 3)).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(np.int64)
DATA = dt.Arrays(da.from_array(X, chunks=(PARTITIONS, 3)), da.from_array(Y, chunks=(PARTITIONS,)))
sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


class Scaled(keras.layers.Layer):  # type: ignore[misc]
    """A layer of the user's, that Keras was not told of."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, values: Any) -> Any:
        return values * self.scale


def build() -> Any:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.BatchNormalization(momentum=0.5),
            Scaled(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(2),
        ]
    )


def fit(model: Any = None, workers: int = 1, loss: Any = None, **settings: Any) -> dt.Result:
    trainer = dt.Trainer(build() if model is None else model, loss or nn.CrossEntropyLoss(), sgd, observers=[])
    return trainer.fit(DATA, client=dt.LocalWire(workers), **({"epochs": 3, "batch_size": 20, "shards": 4} | settings))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_keras_model_has_the_bits_of_a_plain_loop(workers: int) -> None:
    with pinned(1):
        wanted = reference_digest(X, Y, PARTITIONS, lambda: adapted(build()), sgd, 3, 20, shards=4)
    assert fit(workers=workers).digest == wanted


def test_the_model_that_was_given_is_left_alone_and_another_is_trained() -> None:
    model = build()
    before = [weight.copy() for weight in model.get_weights()]
    trained = fit(model).model.keras_model
    assert all(map(np.array_equal, model.get_weights(), before))
    moved = [not np.array_equal(*pair) for pair in zip(trained.get_weights(), before, strict=True)]
    assert all(moved), "kernels, biases, scales and moving statistics"


def test_what_is_trained_predicts_as_keras_does(tmp_path: Path) -> None:
    result = fit(epochs=8)
    model = result.model.keras_model
    labels = result.predict(X).compute()
    assert (labels == model.predict(X, verbose=0).argmax(axis=1)).all()
    assert (labels == Y).mean() > 0.8
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"Scaled": Scaled})
    np.testing.assert_array_equal(again.predict(X, verbose=0), model.predict(X, verbose=0))


def test_a_result_is_saved_and_loaded_into_a_keras_model(tmp_path: Path) -> None:
    result = fit()
    result.save(str(tmp_path / "saved"))
    loaded = dt.load(str(tmp_path / "saved"), build())
    assert loaded.digest == result.digest
    np.testing.assert_array_equal(loaded.model.keras_model.get_weights()[0], result.model.keras_model.get_weights()[0])


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
def test_what_cannot_be_traced_is_not_exported(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"keras_model\.save"):
        fit().export(str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_resumed_with_the_same_bits(tmp_path: Path) -> None:
    url, checkpoint = str(tmp_path / "run"), partial(dt.Checkpoint, every="1 round")
    trainer = dt.Trainer(build(), nn.CrossEntropyLoss(), sgd, observers=[checkpoint(url)])
    settings: dict[str, Any] = {"batch_size": 20, "shards": 4}
    trainer.fit(DATA, max_rounds=4, client=dt.LocalWire(2), **settings)
    assert fit(workers=3, resume=url).digest == fit().digest


def test_a_callable_may_make_one_of_the_schema() -> None:
    def make(schema: dt.Schema) -> Any:
        return keras.Sequential([keras.Input((schema.num_features,)), keras.layers.Dense(schema.num_outputs)])

    assert isinstance(fit(make).model, KerasModule)


def test_a_keras_loss_is_the_torch_loss_it_is() -> None:
    one = fit(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), workers=2)
    other = fit()
    assert one.history[-1]["loss"] == pytest.approx(other.history[-1]["loss"], rel=1e-3)


def test_inputs_of_a_table_are_given_in_order() -> None:
    import pandas as pd

    numeric, kind = keras.Input((1,)), keras.Input((1,), dtype="int64")
    embedded = keras.layers.Flatten()(keras.layers.Embedding(4, 3)(kind))
    model = keras.Model([numeric, kind], keras.layers.Dense(2)(keras.layers.Concatenate()([numeric, embedded])))
    frame = pd.DataFrame({"x": X[:, 0], "kind": np.where(X[:, 1] > 0, "a", "b"), "y": Y})
    trainer = dt.Trainer(model, nn.CrossEntropyLoss(), sgd, observers=[])
    found = {
        trainer.fit(dt.Table(frame, "y"), epochs=2, batch_size=20, client=dt.LocalWire(workers)).digest
        for workers in (1, 2)
    }
    assert len(found) == 1


def test_a_copy_has_the_values_and_shares_none() -> None:
    module = adapted(build()).train()
    module(torch.from_numpy(X))
    for made in (copy.deepcopy(module), pickle.loads(cloudpickle.dumps(module))):
        assert made.training
        own = dict(module.named_parameters()) | dict(module.named_buffers())
        for name, value in (dict(made.named_parameters()) | dict(made.named_buffers())).items():
            assert torch.equal(value, own[name])
            assert value.data_ptr() != own[name].data_ptr()


def test_shards_drop_other_units() -> None:
    module = adapted(keras.Sequential([keras.Input((64,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)])).train()
    found = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        found.append(module(torch.ones(1, 64)).item())
    assert found[0] == found[2] != found[1]


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(ModelError, match="not built"):
        fit(keras.Sequential([keras.layers.Dense(2)]))


def test_its_outputs_are_those_of_torch() -> None:
    module = adapted(build()).eval()
    layers = module.keras_model.layers
    with torch.no_grad():
        dense = F.relu(torch.from_numpy(X) @ layers[0].kernel.value + layers[0].bias.value)
        normal = dense / torch.sqrt(torch.tensor(1 + layers[1].epsilon))
        wanted = normal @ layers[4].kernel.value + layers[4].bias.value
        torch.testing.assert_close(module(torch.from_numpy(X)), wanted, rtol=1e-4, atol=1e-5)


def test_losses_of_the_models_own_are_refused() -> None:
    layer = keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.1))
    with pytest.raises(ModelError, match="no losses of its own"):
        fit(keras.Sequential([keras.Input((3,)), layer]))
