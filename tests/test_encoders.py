"""Columns to numbers: statistics that add up over any cut of the rows, and every documented dtype."""

from collections.abc import Sequence
from datetime import date
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasktrain.data.encoders import Categorical, Moments, Numeric, Values, floats, is_categorical, is_numeric
from dasktrain.errors import DataError

nan = np.nan
finite = st.floats(-1e6, 1e6)
columns = st.lists(finite | st.just(nan), max_size=40).map(lambda values: np.array(values, dtype=np.float64))
cuts = st.lists(st.integers(0, 40), max_size=6).map(sorted)


def arrow(kind: pa.DataType) -> pd.ArrowDtype:
    return pd.ArrowDtype(kind)


def merged(values: np.ndarray, at: Sequence[int]) -> Moments:
    return reduce(add, [Moments.of(part) for part in np.split(values, at)])


# -- moments: laws --------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(columns, cuts)
def test_moments_merged_over_any_cut_are_those_of_all_rows(values: np.ndarray, at: list[int]) -> None:
    moments, present = merged(values, at), values[~np.isnan(values)]
    assert (moments.count, moments.missing, moments.infinite) == (len(present), len(values) - len(present), 0)
    if len(present):
        scale = np.abs(present).max()
        np.testing.assert_allclose(moments.mean, present.mean(), atol=1e-12 * scale)
        np.testing.assert_allclose(moments.deviations, present.var() * len(present), rtol=1e-9, atol=1e-12 * scale**2)


@settings(deadline=None)
@given(columns)
def test_moments_of_no_rows_change_not_a_bit(values: np.ndarray) -> None:
    moments, nothing = Moments.of(values), Moments.of(np.empty(0))
    assert moments + nothing == nothing + moments == moments


@settings(deadline=None)
@given(finite, st.integers(1, 40), cuts)
def test_constant_column_is_centred_only(value: float, rows: int, at: list[int]) -> None:
    values = np.full(rows, value)
    encoded, _ = Numeric.fit("c", merged(values, at)).encode(values)
    np.testing.assert_allclose(encoded, 0.0, atol=1e-9)


@settings(deadline=None)
@given(columns.filter(lambda values: np.isfinite(values).any()))
def test_standardised_column_keeps_order_and_marks_what_is_missing(values: np.ndarray) -> None:
    column = Numeric.fit("c", Moments.of(values))
    encoded, missing = column.encode(values)
    assert column.indicator == missing.any()
    np.testing.assert_array_equal(missing, np.isnan(values))
    np.testing.assert_array_equal(encoded[missing], 0.0)
    order = np.argsort(values[~missing], kind="stable")
    assert (np.diff(encoded[~missing][order]) >= 0).all()


def test_numeric_of_known_values() -> None:
    column = Numeric.fit("c", Moments.of(np.array([1.0, 3.0, nan])))
    assert column == Numeric("c", mean=2.0, deviation=1.0, indicator=True)
    encoded, missing = column.encode(np.array([nan, 5.0, 2.0]))
    np.testing.assert_array_equal(encoded, [0.0, 3.0, 0.0])
    np.testing.assert_array_equal(missing, [True, False, False])


def test_huge_finite_values_are_standardised_unless_refused() -> None:
    values = np.array([-1e200, 0.0, 1e200])
    try:
        column = Numeric.fit("c", Moments.of(values))
    except DataError:
        return
    encoded, _ = column.encode(values)
    np.testing.assert_allclose(encoded, np.array([-1, 0, 1]) * np.sqrt(1.5))


# -- numeric dtypes -------------------------------------------------------------------------------------------

DAYS = pd.Series(pd.to_datetime(["1970-01-01", None, "1970-01-03"]))
SPANS = pd.Series(pd.to_timedelta([0, None, 48], unit="h"))
SECONDS = [0.0, nan, 172_800.0]

NUMERIC: dict[str, tuple[pd.Series, list[float]]] = {
    "float64": (pd.Series([1.5, nan, 3.0]), [1.5, nan, 3.0]),
    "float32": (pd.Series([1.5, nan, 3.0], dtype="float32"), [1.5, nan, 3.0]),
    "float16": (pd.Series([1.5, nan, 3.0], dtype="float16"), [1.5, nan, 3.0]),
    "int8": (pd.Series([-1, 0, 127], dtype="int8"), [-1.0, 0.0, 127.0]),
    "uint64": (pd.Series([0, 2, 2**63], dtype="uint64"), [0.0, 2.0, 2.0**63]),
    "bool": (pd.Series([True, False, True]), [1.0, 0.0, 1.0]),
    "nullable integer": (pd.Series([1, None, 3], dtype="Int64"), [1.0, nan, 3.0]),
    "nullable float": (pd.Series([1.5, None, 3.0], dtype="Float32"), [1.5, nan, 3.0]),
    "nullable bool": (pd.Series([True, None, False], dtype="boolean"), [1.0, nan, 0.0]),
    "arrow integer": (pd.Series([1, None, 3], dtype=arrow(pa.int32())), [1.0, nan, 3.0]),
    "arrow float": (pd.Series([1.5, None, 3.0], dtype=arrow(pa.float32())), [1.5, nan, 3.0]),
    "arrow decimal": (pd.Series([1, None, 3], dtype=arrow(pa.decimal128(5, 2))), [1.0, nan, 3.0]),
    "arrow bool": (pd.Series([True, None, False], dtype=arrow(pa.bool_())), [1.0, nan, 0.0]),
    "sparse": (pd.Series([0.0, nan, 3.0], dtype=pd.SparseDtype(float)), [0.0, nan, 3.0]),
    "datetime": (DAYS, SECONDS),
    "datetime in ns": (DAYS.astype("datetime64[ns]"), SECONDS),
    "datetime with zone": (DAYS.dt.tz_localize("Asia/Tokyo"), [second - 32_400 for second in SECONDS]),
    "arrow datetime": (DAYS.astype(arrow(pa.timestamp("ms"))), SECONDS),
    "arrow datetime with zone": (
        DAYS.dt.tz_localize("Asia/Tokyo").astype(arrow(pa.timestamp("us", tz="Asia/Tokyo"))),
        [second - 32_400 for second in SECONDS],
    ),
    "arrow date": (pd.Series([date(1970, 1, 1), None, date(1970, 1, 3)], dtype=arrow(pa.date32())), SECONDS),
    "timedelta": (SPANS, SECONDS),
    "arrow duration": (SPANS.astype(arrow(pa.duration("ms"))), SECONDS),
}


@pytest.mark.parametrize(("column", "expected"), NUMERIC.values(), ids=NUMERIC.keys())
def test_numeric_dtype_becomes_floats(column: pd.Series, expected: list[float]) -> None:
    assert is_numeric(column.dtype)
    assert not is_categorical(column.dtype)
    found = floats(column)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("column", "expected"), NUMERIC.values(), ids=NUMERIC.keys())
def test_numeric_dtype_without_rows_becomes_no_floats(column: pd.Series, expected: list[float]) -> None:
    assert floats(column.iloc[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([nan, nan], ["'age'", "every row is missing", "leave it out"]),
        ([], ["'age'", "every row is missing"]),
        ([1.0, np.inf, -np.inf], ["'age'", "2 rows are infinite", "replace"]),
    ],
    ids=["all missing", "no rows", "infinite"],
)
def test_numeric_column_that_cannot_be_fitted_is_named(values: list[float], words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        Numeric.fit("age", Moments.of(np.array(values, dtype=np.float64)))
    assert all(word in str(caught.value) for word in words)


# -- vocabularies ---------------------------------------------------------------------------------------------

WORDS = ["b", None, "a", "b"]

CATEGORICAL: dict[str, tuple[pd.Series, tuple[Any, ...], list[int]]] = {
    "str": (pd.Series(WORDS), ("a", "b"), [2, 3, 1, 2]),
    "string": (pd.Series(WORDS, dtype="string"), ("a", "b"), [2, 3, 1, 2]),
    "object": (pd.Series(WORDS, dtype=object), ("a", "b"), [2, 3, 1, 2]),
    "object of integers": (pd.Series([7, None, 5, 7], dtype=object), (5, 7), [2, 3, 1, 2]),
    "object of several types": (pd.Series(["x", 10, 9, "x"], dtype=object), (9, 10, "x"), [3, 2, 1, 3]),
    "arrow string": (pd.Series(WORDS, dtype=arrow(pa.string())), ("a", "b"), [2, 3, 1, 2]),
    "arrow large string": (pd.Series(WORDS, dtype=arrow(pa.large_string())), ("a", "b"), [2, 3, 1, 2]),
    "arrow dictionary": (
        pd.Series(WORDS, dtype=arrow(pa.dictionary(pa.int8(), pa.string()))),
        ("a", "b"),
        [2, 3, 1, 2],
    ),
    "category": (pd.Series(WORDS, dtype="category"), ("a", "b"), [2, 3, 1, 2]),
    "category with values not seen": (
        pd.Series(pd.Categorical(WORDS, categories=["z", "b", "a"], ordered=True)),
        ("a", "b"),
        [2, 3, 1, 2],
    ),
    "category of integers": (pd.Series([30, 2, 10, 2], dtype="category"), (2, 10, 30), [3, 1, 2, 1]),
    "category of booleans": (pd.Series([True, False, True], dtype="category"), (False, True), [2, 1, 2]),
    "category of datetimes": (
        DAYS.astype("category"),
        (pd.Timestamp("1970-01-01"), pd.Timestamp("1970-01-03")),
        [1, 3, 2],
    ),
}


@pytest.mark.parametrize(("column", "vocabulary", "places"), CATEGORICAL.values(), ids=CATEGORICAL.keys())
def test_categorical_dtype_becomes_places_in_a_sorted_vocabulary(
    column: pd.Series, vocabulary: tuple[Any, ...], places: list[int]
) -> None:
    assert is_categorical(column.dtype)
    assert not is_numeric(column.dtype)
    fitted = Categorical.fit("c", Values.of(column))
    assert fitted == Categorical("c", vocabulary, missing=bool(column.isna().any()))
    assert [type(value) for value in fitted.values] == [type(value) for value in vocabulary]
    found = fitted.encode(column)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, places)
    assert fitted.cardinality == max(places) + 1


@pytest.mark.parametrize(
    "dtype", ["complex128", "period[D]", "interval", arrow(pa.list_(pa.int8())), arrow(pa.binary())], ids=str
)
def test_other_dtypes_have_no_encoding(dtype: Any) -> None:
    dtype = pd.api.types.pandas_dtype(dtype)
    assert not is_numeric(dtype)
    assert not is_categorical(dtype)


@settings(deadline=None)
@given(st.lists(st.text(max_size=2) | st.integers(2, 9) | st.none(), min_size=1, max_size=30), cuts, st.randoms())
def test_vocabulary_is_the_same_over_any_cut_and_order(values: list[Any], at: list[int], random: Any) -> None:
    column = pd.Series(values, dtype=object)
    parts = [Values.of(column.iloc[start:stop]) for start, stop in zip([0, *at], [*at, len(values)], strict=True)]
    random.shuffle(parts)
    seen = reduce(add, parts)
    if not column.notna().any():
        with pytest.raises(DataError, match="every row is missing"):
            Categorical.fit("c", seen)
        return
    fitted = Categorical.fit("c", seen)
    assert fitted == Categorical.fit("c", Values.of(column))
    places = fitted.encode(column)
    known = [place for place, value in zip(places, values, strict=True) if value is not None]
    assert [fitted.values[place - 1] for place in known] == [value for value in values if value is not None]


def test_value_not_seen_in_training_is_unknown() -> None:
    fitted = Categorical.fit("c", Values.of(pd.Series(["a", "b"])))
    np.testing.assert_array_equal(fitted.encode(pd.Series(["b", "new", None])), [2, 0, 0])


def test_missing_is_a_category_of_its_own_where_training_had_it() -> None:
    fitted = Categorical.fit("c", Values.of(pd.Series(["a", None])))
    np.testing.assert_array_equal(fitted.encode(pd.Series(["new", None])), [0, 2])
    assert fitted.cardinality == 3


def test_equal_values_of_other_dtypes_share_a_place() -> None:
    fitted = Categorical.fit("c", Values.of(pd.Series(["a", "b"], dtype="category")))
    for dtype in ("str", "object", "string", arrow(pa.string())):
        np.testing.assert_array_equal(fitted.encode(pd.Series(["b", "a"], dtype=dtype)), [2, 1])


def test_too_many_categories_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dasktrain.data.encoders.MOST_CATEGORIES", 2)
    assert Categorical.fit("id", Values.of(pd.Series(["a", "b"]))).cardinality == 3
    with pytest.raises(DataError, match=r"'id' must have at most 2 categories, however it has 3; .*hash"):
        Categorical.fit("id", Values.of(pd.Series(["a", "b", "c"])))


def test_column_of_missing_categories_is_named() -> None:
    with pytest.raises(DataError, match="'colour' must have values, however every row is missing"):
        Categorical.fit("colour", Values.of(pd.Series([None, None], dtype="string")))
