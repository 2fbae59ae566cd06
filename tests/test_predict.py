"""Predicting: what goes in lazily comes out lazily, row for row, under the index it had."""

from collections.abc import Callable
from typing import Any

import cloudpickle
import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.errors import BadInput, DataError
from tests.small import LABELS, fit, frame, table

WIDE = 100_000  # parameters enough to find the model among a graph's bytes


def computed(lazy: Any) -> Any:
    return lazy.compute(scheduler="sync")


def forward(result: dt.Result, *inputs: Any) -> np.ndarray:
    """Run the trained module by itself."""
    with torch.no_grad():
        return result.model(*(torch.as_tensor(part) for part in inputs)).numpy()


def standardised(rows: pd.DataFrame) -> np.ndarray:
    """Encode the small table as training did."""
    trained = frame()[["a", "b"]]
    return np.array((rows[["a", "b"]] - trained.mean()) / trained.std(ddof=0), dtype=np.float32)


def classifier() -> dt.Result:
    return fit(table(), epochs=2)


def binary() -> dt.Result:
    """One logit for two classes."""
    data = dt.Table(frame().assign(label=lambda rows: rows["a"] > 0), "label", numeric=["a", "b"], categorical=[])
    return fit(data, model=nn.Linear(2, 1), loss=nn.BCEWithLogitsLoss())


def regressor() -> dt.Result:
    return fit(table(target="number"), loss=nn.MSELoss())


def pair() -> dt.Result:
    frames = frame().assign(twice=lambda rows: 2 * rows["number"])
    return fit(dt.Table(frames, ["number", "twice"], numeric=["a", "b"], categorical=[]), loss=nn.MSELoss())


RESULTS: dict[str, Callable[[], dt.Result]] = {
    "classifier": classifier,
    "binary": binary,
    "regressor": regressor,
    "pair": pair,
}


@pytest.fixture(scope="module")
def results() -> dict[str, dt.Result]:
    """One trained model of each kind."""
    return {name: train() for name, train in RESULTS.items()}


def by_hand(result: dt.Result, rows: pd.DataFrame) -> Any:
    """Return predictions from a direct pass through the model."""
    output = forward(result, standardised(rows))
    if output.shape[1] == 3:
        return np.array(LABELS)[output.argmax(axis=1)]
    return output[:, 0] > 0 if result.encoding.target.num_outputs == 2 and output.shape[1] == 1 else output


# -- frames ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RESULTS)
def test_predictions_are_those_of_the_module(results: dict[str, dt.Result], kind: str) -> None:
    rows = frame(45)
    found = computed(results[kind].predict(dd.from_pandas(rows, npartitions=4)))
    expected = by_hand(results[kind], rows)
    if expected.dtype == np.float32:
        np.testing.assert_allclose(found.to_numpy().reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)
    else:
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("kind", "method"),
    [*((kind, "predict") for kind in RESULTS), ("classifier", "predict_proba"), ("binary", "predict_proba")],
)
def test_meta_is_what_is_computed(results: dict[str, dt.Result], kind: str, method: str) -> None:
    rows = frame(12).set_axis(pd.Index([f"row {number:02d}" for number in range(12)], name="key"))
    lazy = getattr(results[kind], method)(dd.from_pandas(rows, npartitions=3))
    for partition in [computed(lazy), *(computed(lazy.partitions[number]) for number in range(3))]:
        assert type(partition) is type(lazy._meta)
        assert (partition.index.name, partition.index.dtype) == (lazy._meta.index.name, lazy._meta.index.dtype)
        if partition.ndim == 1:
            assert (partition.name, partition.dtype) == (lazy._meta.name, lazy._meta.dtype)
        else:
            assert partition.dtypes.to_dict() == lazy._meta.dtypes.to_dict()
            assert list(partition.columns) == list(lazy.columns)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("classifier", "label"), ("regressor", "number"), ("pair", ["number", "twice"])],
)
def test_predictions_are_named_like_the_target(results: dict[str, dt.Result], kind: str, name: Any) -> None:
    lazy = results[kind].predict(frame(5))
    assert (list(lazy.columns) if isinstance(name, list) else lazy.name) == name


INDEXES: dict[str, Any] = {
    "range": pd.RangeIndex(20),
    "not from zero": pd.RangeIndex(100, 140, 2),
    "strings": pd.Index([f"row {number:02d}" for number in range(20)], name="key"),
    "unsorted with doubles": pd.Index([3, 1, 2, 3] * 5),
    "dates": pd.date_range("2024-01-01", periods=20, name="day"),
}


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES.keys())
@pytest.mark.parametrize("wrap", [lambda rows: dd.from_pandas(rows, npartitions=3, sort=False), lambda rows: rows])
def test_index_and_order_are_kept(results: dict[str, dt.Result], index: pd.Index, wrap: Callable[..., Any]) -> None:
    rows = frame(20).set_axis(index)
    found = computed(results["classifier"].predict(wrap(rows)))
    assert found.index.tolist() == index.tolist()
    assert found.index.name == index.name
    assert found.tolist() == by_hand(results["classifier"], rows).tolist()


@pytest.mark.parametrize("kind", RESULTS)
def test_partitions_and_divisions_are_kept_and_some_may_be_empty(results: dict[str, dt.Result], kind: str) -> None:
    whole = dd.from_pandas(frame(20), npartitions=4)
    data = whole[whole["a"] > 1e9]
    data = dd.concat([data, whole, data], interleave_partitions=False)
    lazy = results[kind].predict(data)
    assert lazy.npartitions == data.npartitions
    assert len(computed(lazy)) == 20
    assert len(computed(lazy.partitions[0])) == 0
    assert results[kind].predict(whole).divisions == whole.divisions


def test_predictions_can_go_on_in_dask(results: dict[str, dt.Result]) -> None:
    data = dd.from_pandas(frame(20), npartitions=3)
    joined = data.assign(guess=results["classifier"].predict(data))
    right = (joined["guess"] == joined["label"]).mean()
    assert computed(right) == (by_hand(results["classifier"], frame(20)) == frame(20)["label"]).mean()


def test_nothing_is_computed_until_asked(results: dict[str, dt.Result]) -> None:
    reads: list[int] = []

    def read(number: int) -> pd.DataFrame:
        reads.append(number)
        return frame(10)

    data = dd.from_map(read, [0, 1], meta=frame(10).iloc[:0])
    lazy = results["classifier"].predict(data)
    proba = results["classifier"].predict_proba(data)
    assert reads == []
    computed(lazy.partitions[1])
    assert reads == [1]
    computed(proba)
    assert sorted(reads) == [0, 1, 1]


def test_columns_not_trained_on_are_ignored(results: dict[str, dt.Result]) -> None:
    rows = frame(10)
    odd = rows[["b", "a"]].assign(label=0, extra="text", c=1j)
    found = computed(results["classifier"].predict(dd.from_pandas(odd, npartitions=2)))
    assert found.tolist() == by_hand(results["classifier"], rows).tolist()


def test_missing_column_is_named(results: dict[str, dt.Result]) -> None:
    with pytest.raises(DataError, match=r"trained on, however 'b' is not among .*'a'"):
        computed(results["classifier"].predict(dd.from_pandas(frame(10).drop(columns="b"), npartitions=2)))


def test_column_of_another_dtype_is_named(results: dict[str, dt.Result]) -> None:
    with pytest.raises(DataError, match="'b'"):
        computed(results["classifier"].predict(frame(10).assign(b="text")))


def test_value_not_seen_in_training_and_missing_ones_are_predicted_for() -> None:
    class Both(nn.Module):
        def __init__(self, schema: dt.Schema) -> None:
            super().__init__()
            self.embedding = nn.Embedding(schema.cardinalities[0], 3)
            self.layer = nn.Linear(schema.num_features, 3)

        def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
            return self.layer(numeric) + self.embedding(categorical[:, 0])

    rows = frame().assign(colour=["red", "blue"] * 30)
    result = fit(dt.Table(rows, "label", numeric=["a"]), model=Both)
    odd = pd.DataFrame({"a": [0.0, np.nan], "colour": ["green", None]})
    numeric = np.array([[-rows["a"].mean() / rows["a"].std(ddof=0)], [0.0]], dtype=np.float32)
    output = forward(result, numeric, np.zeros((2, 1), dtype=np.int64))
    assert computed(result.predict(odd)).tolist() == np.array(LABELS)[output.argmax(axis=1)].tolist()


# -- probabilities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "columns"), [("classifier", LABELS), ("binary", [False, True])])
def test_probabilities_are_a_column_a_class(results: dict[str, dt.Result], kind: str, columns: list[Any]) -> None:
    rows = frame(20).set_axis(INDEXES["strings"])
    found = computed(results[kind].predict_proba(dd.from_pandas(rows, npartitions=3)))
    assert list(found.columns) == columns
    assert found.index.tolist() == rows.index.tolist()
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-6)
    likeliest = [columns[place] for place in found.to_numpy().argmax(axis=1)]
    assert likeliest == computed(results[kind].predict(rows)).tolist()
    output = torch.from_numpy(forward(results[kind], standardised(rows)))
    expected = output.softmax(dim=1)[:, -1] if kind == "classifier" else output.sigmoid()[:, 0]
    np.testing.assert_allclose(found.iloc[:, -1], expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["regressor", "pair"])
def test_numbers_have_no_probabilities(results: dict[str, dt.Result], kind: str) -> None:
    with pytest.raises(BadInput, match="use predict"):
        results[kind].predict_proba(frame(5))


# -- arrays ---------------------------------------------------------------------------------------------------

X = np.random.default_rng(2).normal(size=(25, 3)).astype(np.float32)
Y = np.array(["no", "yes", "perhaps"])[np.arange(25) % 3]


@pytest.fixture(scope="module")
def trained() -> dt.Result:
    return fit(dt.Arrays(X, Y))


def filtered(array: np.ndarray, chunks: int) -> da.Array:
    lazy = da.from_array(array, chunks=(chunks, *array.shape[1:]))
    return lazy[da.from_array(np.ones(len(array), dtype=bool), chunks=chunks)]


ARRAYS: dict[str, Any] = {
    "numpy": X,
    "dask": da.from_array(X, chunks=(10, 3)),
    "dask by columns": da.from_array(X, chunks=(7, 2)),
    "unknown sizes": filtered(X, 10),
    "an empty block": da.concatenate([X[:4], X[:0], X[4:]]),
    "float64": da.from_array(X.astype(np.float64), chunks=(10, 3)),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_arrays_are_predicted_block_by_block(trained: dt.Result, array: Any) -> None:
    output = torch.from_numpy(forward(trained, X))
    lazy = trained.predict(array)
    assert isinstance(lazy, da.Array)
    found = computed(lazy)
    assert found.tolist() == np.array(["no", "perhaps", "yes"])[output.argmax(dim=1).numpy()].tolist()
    assert found.dtype == lazy.dtype
    probabilities = trained.predict_proba(array)
    np.testing.assert_allclose(computed(probabilities), output.softmax(dim=1), rtol=1e-5)
    assert probabilities.dtype == np.float32
    if isinstance(array, da.Array):
        np.testing.assert_array_equal(lazy.chunks[0], da.asarray(array).chunks[0])


@pytest.mark.parametrize("targets", [1, 2], ids=["one", "several"])
def test_arrays_of_numbers(targets: int) -> None:
    y = X[:, 0] if targets == 1 else X[:, :2]
    result = fit(dt.Arrays(X, y), loss=nn.MSELoss())
    lazy = result.predict(da.from_array(X, chunks=(10, 3)))
    assert lazy.shape == y.shape
    np.testing.assert_allclose(computed(lazy), forward(result, X).reshape(y.shape), rtol=1e-5, atol=1e-6)
    assert computed(lazy).dtype == lazy.dtype == np.float32


def test_rows_of_another_shape_are_refused(trained: dt.Result) -> None:
    with pytest.raises(DataError, match=r"\(3,\).*\(4,\)"):
        computed(trained.predict(np.zeros((5, 4))))


def test_frame_for_a_model_of_arrays_and_the_reverse(trained: dt.Result, results: dict[str, dt.Result]) -> None:
    with pytest.raises(BadInput, match="DataFrame"):
        results["classifier"].predict(X)
    with pytest.raises(BadInput, match=r"[Aa]rray"):
        trained.predict(dd.from_pandas(frame(5), npartitions=2))


# -- what is shipped ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["frame", "array"])
def test_model_is_in_the_graph_once(kind: str) -> None:
    def wide(schema: dt.Schema) -> nn.Module:
        return nn.Sequential(nn.Linear(schema.num_features, WIDE // 4), nn.Linear(WIDE // 4, schema.num_outputs))

    data = table() if kind == "frame" else dt.Arrays(X, Y)
    result = fit(data, model=wide, max_rounds=1)
    inputs = dd.from_pandas(frame(20), npartitions=5) if kind == "frame" else da.from_array(X, chunks=(5, 3))
    [lazy] = dask.optimize(result.predict(inputs))
    assert lazy.npartitions == 5
    size = 4 * sum(parameter.numel() for parameter in result.model.parameters())
    sizes = [len(cloudpickle.dumps(task)) for task in lazy.__dask_graph__().values()]  # each as if sent by itself
    assert size < sum(sizes) < 1.5 * size


def test_long_partitions_are_predicted_in_pieces(
    results: dict[str, dt.Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = frame(50)
    whole = computed(results["regressor"].predict(dd.from_pandas(rows, npartitions=1)))
    monkeypatch.setattr("dasktrain.predictor.ROWS", 7)
    pieces = computed(results["regressor"].predict(dd.from_pandas(rows, npartitions=1)))
    np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-6)
    assert len(pieces) == 50


def test_predictions_are_in_evaluation_mode() -> None:
    dropping = fit(table(), model=lambda schema: nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 3)))
    dropping.model.train()
    first, second = (computed(dropping.predict_proba(frame(20))) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
