"""Arrays as training data: any chunks, known or not, become blocks of whole rows."""

import json
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dasktrain as dt
from dasktrain.data.block import Block, as_block
from dasktrain.data.encodings import ArrayEncoding
from dasktrain.data.saved import encoding_from_json
from dasktrain.data.source import Input, Survey
from dasktrain.errors import DataError

ROWS = 10
X = np.random.default_rng(0).normal(size=(ROWS, 3))
Y = np.arange(ROWS) % 3
WEIGHT = np.linspace(0.0, 2.0, ROWS)


def unknown(array: np.ndarray, chunks: int) -> da.Array:
    """Return a Dask array whose blocks have unknown sizes."""
    lazy = da.from_array(array, chunks=(chunks, *array.shape[1:]))
    return lazy[da.from_array(np.ones(len(array), dtype=bool), chunks=chunks)]


def surveys(data: dt.Arrays) -> list[Survey]:
    return list(dask.compute(*data.survey(), scheduler="sync"))


def fitted(data: dt.Arrays) -> ArrayEncoding:
    return data.fit(surveys(data))


def blocks(data: dt.Arrays, by_class: bool = False) -> list[Block]:
    return list(dask.compute(*data.convert(fitted(data), [], by_class), scheduler="sync"))


def joined(found: list[Block]) -> Block:
    inputs = tuple(np.concatenate(parts) for parts in zip(*(block.inputs for block in found), strict=True))
    target = np.concatenate([block.target for block in found if block.target is not None])
    weights = [block.weight for block in found if block.weight is not None]
    return as_block(inputs, target, np.concatenate(weights) if weights else None)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 12), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12))
def test_rows_stay_together_under_any_chunks(rows: int, columns: int, targets: int, weights: int) -> None:
    data = dt.Arrays(
        da.from_array(X, chunks=(rows, columns)),
        da.from_array(Y, chunks=targets),
        da.from_array(WEIGHT, chunks=weights),
    )
    found = blocks(data)
    assert [len(block.inputs[0]) for block in found] == list(data.X.chunks[0])
    whole = joined(found)
    np.testing.assert_array_equal(whole.inputs[0], X.astype(np.float32))
    np.testing.assert_array_equal(whole.target, Y)
    np.testing.assert_array_equal(whole.weight, WEIGHT)


FORMS: dict[str, tuple[Any, Any]] = {
    "numpy": (X, Y),
    "lists": (X.tolist(), Y.tolist()),
    "dask": (da.from_array(X, chunks=(4, 2)), da.from_array(Y, chunks=3)),
    "dask and numpy": (da.from_array(X, chunks=(4, 3)), Y),
    "unknown sizes": (unknown(X, 4), unknown(Y, 4)),
    "X unknown": (unknown(X, 4), da.from_array(Y, chunks=4)),
    "y unknown": (da.from_array(X, chunks=(4, 3)), unknown(Y, 4)),
    "an empty block": (da.concatenate([X[:6], X[:0], X[6:]]), da.concatenate([Y[:6], Y[:0], Y[6:]])),
}


@pytest.mark.parametrize(("inputs", "target"), FORMS.values(), ids=FORMS.keys())
def test_any_form_of_array_gives_the_same_rows(inputs: Any, target: Any) -> None:
    whole = joined(blocks(dt.Arrays(inputs, target)))
    np.testing.assert_array_equal(whole.inputs[0], X.astype(np.float32))
    np.testing.assert_array_equal(whole.target, Y)
    assert whole.weight is None


@pytest.mark.parametrize(
    ("inputs", "kind", "bound"),
    [
        (X, np.float32, None),
        (X.astype(np.float16), np.float32, None),
        (X > 0, np.float32, None),
        (np.arange(30, dtype=np.int8).reshape(10, 3), np.int64, 30),
        (np.arange(30, dtype=np.uint64).reshape(10, 3), np.int64, 30),
        (np.zeros((10, 3), dtype=int), np.int64, 1),
    ],
    ids=["float64", "float16", "bool", "int8", "uint64", "zeros"],
)
def test_dtype_of_inputs_and_bound_of_integers(inputs: np.ndarray, kind: type, bound: int | None) -> None:
    data = dt.Arrays(da.from_array(inputs, chunks=(4, 3)), Y)
    assert {block.inputs[0].dtype for block in blocks(data)} == {np.dtype(kind)}
    np.testing.assert_array_equal(joined(blocks(data)).inputs[0], inputs.astype(kind))
    assert fitted(data).schema.inputs == (Input((3,), None if bound is None else (bound,)),)


def test_column_of_numbers_becomes_one_feature() -> None:
    data = dt.Arrays(X[:, 0], Y)
    assert fitted(data).schema.num_features == 1
    np.testing.assert_array_equal(joined(blocks(data)).inputs[0], X[:, :1].astype(np.float32))


def test_images_chunked_along_other_axes_are_joined() -> None:
    images = np.random.default_rng(1).normal(size=(ROWS, 2, 5, 4)).astype(np.float32)
    data = dt.Arrays(da.from_array(images, chunks=(3, 1, 2, 4)), Y)
    assert fitted(data).schema.inputs == (Input((2, 5, 4)),)
    assert [block.inputs[0].shape for block in blocks(data)] == [(rows, 2, 5, 4) for rows in (3, 3, 3, 1)]
    np.testing.assert_array_equal(joined(blocks(data)).inputs[0], images)


@pytest.mark.parametrize(
    ("target", "classes", "kind", "shape", "outputs"),
    [
        (Y, None, np.int32, (ROWS,), 3),
        (Y, False, np.float32, (ROWS,), 1),
        (Y > 0, None, np.int32, (ROWS,), 2),
        (Y.astype(str), None, np.int32, (ROWS,), 3),
        (np.array(list("abcdeabcde"), dtype=object), None, np.int32, (ROWS,), 5),
        (Y.astype(float), None, np.float32, (ROWS,), 1),
        (Y.astype(float), True, np.int32, (ROWS,), 3),
        (X, None, np.float32, (ROWS, 3), 3),
        (np.stack([Y, Y], axis=1), None, np.float32, (ROWS, 2), 2),
        (X[:, :1], None, np.float32, (ROWS, 1), 1),
    ],
    ids=["int", "int as number", "bool", "str", "object", "float", "float as class", "many", "many int", "one of many"],
)
def test_target_is_labels_or_numbers(
    target: np.ndarray, classes: bool | None, kind: type, shape: tuple[int, ...], outputs: int
) -> None:
    data = dt.Arrays(X, target, classes=classes)
    found = joined(blocks(data)).target
    assert found is not None
    assert (found.dtype, found.shape) == (kind, shape)
    assert fitted(data).schema.num_outputs == outputs
    if kind is np.float32:
        np.testing.assert_array_equal(found, target.astype(np.float32))


def test_blocks_sorted_by_class_keep_their_rows_together() -> None:
    data = dt.Arrays(da.from_array(X, chunks=(4, 3)), Y, WEIGHT)
    for plain, ordered in zip(blocks(data), blocks(data, by_class=True), strict=True):
        assert plain.target is not None
        assert plain.weight is not None
        order = np.argsort(plain.target, kind="stable")
        for one, other in zip((*plain.inputs, *plain[1:3]), (*ordered.inputs, *ordered[1:3]), strict=True):
            np.testing.assert_array_equal(one[order], other)


def test_surveys_count_weights_that_cannot_be_used() -> None:
    weight = np.array([1, -1, np.nan, 0, np.inf, 1, 1, 1, 1, 1.0])
    data = dt.Arrays(da.from_array(X, chunks=(5, 3)), Y, weight)
    assert [survey.unusable_weights for survey in surveys(data)] == [3, 0]


@pytest.mark.parametrize("y", [Y, X, Y.astype(float), Y.astype(str), Y > 0], ids=lambda y: f"{y.dtype} {y.ndim}")
@pytest.mark.parametrize("x", [X, np.abs(X).astype(int), np.zeros((ROWS, 2, 2))], ids=["float", "int", "image"])
def test_encoding_comes_back_from_json(x: np.ndarray, y: np.ndarray) -> None:
    encoding = fitted(dt.Arrays(x, y))
    assert encoding_from_json(json.loads(json.dumps(encoding.to_json()))) == encoding


# -- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((X, Y[:9]), ["y must have a row", "10", "9"]),
        ((X, Y, WEIGHT[:8]), ["weight must have a row", "10", "8"]),
        ((unknown(X, 4), unknown(Y, 5)), ["y must have X's 3 blocks", "2", "compute_chunk_sizes"]),
        ((unknown(X, 4), Y, unknown(WEIGHT, 10)), ["blocks", "compute_chunk_sizes"]),
        ((X.astype(object), Y), ["X must be numeric", "object", "dt.Table"]),
        ((X.astype(str), Y), ["X must be numeric", "<U", "dt.Table"]),
        ((X * 1j, Y), ["X must be numeric", "complex128"]),
        ((X, Y * 1j), ["y", "complex128"]),
        ((X, np.array(list("abcdeabcde")), None, False), ["y", "<U"]),
        ((X, Y, np.array(list("abcdeabcde"))), ["weight", "<U"]),
        ((X, Y, X), ["weight", "2"]),
        ((X, np.zeros((ROWS, 2, 2))), ["y", "3"]),
        ((X, X.astype(int), None, True), ["y has 2 dimensions", "classes=False"]),
        ((3.0, Y), ["scalar"]),
        ((X, 3.0), ["scalar"]),
    ],
    ids=[
        "rows of y",
        "rows of weight",
        "blocks of y",
        "blocks of weight",
        "X objects",
        "X strings",
        "X complex",
        "y complex",
        "y strings as numbers",
        "weight strings",
        "weight matrix",
        "y cube",
        "y matrix of classes",
        "X scalar",
        "y scalar",
    ],
)
def test_arrays_that_do_not_fit_are_named(arguments: tuple[Any, ...], words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        dt.Arrays(*arguments)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_counted(value: float) -> None:
    bad = X.copy()
    bad[[2, 7], 1] = value
    data = dt.Arrays(da.from_array(bad, chunks=(4, 3)), Y)
    with pytest.raises(DataError, match="X must be finite, however 2 rows"):
        fitted(data)


def test_rows_too_large_for_float32_are_refused() -> None:
    with pytest.raises(DataError, match="X must be finite"):
        blocks(dt.Arrays(X * 1e39, Y))


def test_negative_integers_reach_the_model_as_they_are() -> None:
    signed = np.arange(-15, 15).reshape(10, 3)
    np.testing.assert_array_equal(joined(blocks(dt.Arrays(signed, Y))).inputs[0], signed)


def test_blocks_of_unknown_size_must_have_equal_rows() -> None:
    y = da.from_array(Y, chunks=4)
    with pytest.raises(DataError, match="same rows in each block, however they have 4 and 3"):
        surveys(dt.Arrays(unknown(X, 4), y[da.from_array(np.arange(ROWS) != 1, chunks=4)]))


def test_rows_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(3,\), however they have shape \(4,\)"):
        fitted(dt.Arrays(X, Y)).inputs(np.zeros((2, 4)))
