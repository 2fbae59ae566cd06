"""What is predicted: labels of any dtype come back as themselves, numbers as numbers."""

from typing import Any

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dasktrain as dt
from dasktrain.data.target import Labels, Numbers, fit_labels, numbers, survey_target
from dasktrain.errors import DataError
from tests.small import fit, frame

DAYS = pd.Series(pd.to_datetime(["2024-02-01", "2024-01-01", "2024-03-01", "2024-01-01"]))

LABELS: dict[str, Any] = {
    "str": pd.Series(list("baca")),
    "string": pd.Series(list("baca"), dtype="string"),
    "object": pd.Series(list("baca"), dtype=object),
    "object of several types": pd.Series(["b", 3, 2, "b"], dtype=object),
    "arrow string": pd.Series(list("baca"), dtype=pd.ArrowDtype(pa.string())),
    "arrow large string": pd.Series(list("baca"), dtype=pd.ArrowDtype(pa.large_string())),
    "arrow dictionary": pd.Series(list("baca"), dtype=pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string()))),
    "arrow integer": pd.Series([3, 1, 2, 1], dtype=pd.ArrowDtype(pa.int32())),
    "int64": pd.Series([3, 1, 2, 1]),
    "uint8": pd.Series([255, 1, 2, 1], dtype="uint8"),
    "negative": pd.Series([-3, 1, -200, 1], dtype="int16"),
    "nullable integer": pd.Series([3, 1, 2, 1], dtype="Int32"),
    "bool": pd.Series([True, False, False, True]),
    "nullable bool": pd.Series([True, False, False, True], dtype="boolean"),
    "float": pd.Series([0.5, -1.5, 2.0, 0.5]),
    "category": pd.Series(list("baca"), dtype="category"),
    "category of integers": pd.Series([10, 9, 100, 9], dtype="category"),
    "ordered category": pd.Series(pd.Categorical(list("baca"), categories=list("cabz"), ordered=True)),
    "datetime": DAYS,
    "datetime with zone": DAYS.dt.tz_localize("Europe/Paris"),
    "timedelta": pd.Series(pd.to_timedelta([3, 1, 2, 1], unit="h")),
    "NumPy str": np.array(list("baca")),
    "NumPy object": np.array(["b", 3, 2, "b"], dtype=object),
    "NumPy int8": np.array([-3, 1, 2, 1], dtype=np.int8),
}


def fitted(*columns: Any) -> Labels:
    return fit_labels("y", [survey_target(column, True) for column in columns], columns[0].dtype)


def outputs(codes: np.ndarray, classes: int) -> np.ndarray:
    """Return what a module that is sure of these classes would."""
    return np.eye(classes, dtype=np.float32)[codes]


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
def test_labels_come_back_as_themselves(labels: Any) -> None:
    target = fitted(labels)
    codes = target.encode(labels)
    assert codes.dtype == np.int32
    assert target.num_outputs == pd.Series(labels).nunique() == codes.max() + 1
    back = target.decode(outputs(codes, target.num_outputs))
    assert list(back) == list(labels)
    if isinstance(back, pd.arrays.NumpyExtensionArray):
        back = back.to_numpy()
    assert back.dtype == labels.dtype


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
def test_decoding_no_rows_keeps_the_dtype(labels: Any) -> None:
    target = fitted(labels)
    some = target.decode(outputs(target.encode(labels), target.num_outputs))
    none = target.decode(np.empty((0, target.num_outputs), dtype=np.float32))
    assert len(none) == 0
    assert none.dtype == some.dtype


@settings(deadline=None)
@given(
    st.lists(st.integers() | st.text(max_size=3) | st.just(0.5), min_size=1, max_size=20).filter(
        lambda v: len(set(v)) > 1
    ),
    st.integers(0, 20),
)
def test_labels_are_the_same_over_any_cut(values: list[Any], cut: int) -> None:
    column = pd.Series(values, dtype=object)
    target = fitted(column.iloc[:cut], column.iloc[cut:])
    assert target == fitted(column)
    assert [target.values[code] for code in target.encode(column)] == values


def test_labels_are_counted_and_missing_ones_are_unusable() -> None:
    survey = survey_target(pd.Series(["a", None, "b", "a"]), True)
    assert (survey.labels, survey.unusable) == ({"a": 2, "b": 1}, 1)
    survey = survey_target(pd.Series([1.0, np.inf, np.nan, -np.inf]), True)
    assert survey.unusable == 3


def test_categories_that_do_not_occur_are_no_labels() -> None:
    column = pd.Series(pd.Categorical(["a", "b"], categories=["a", "b", "never"]))
    assert survey_target(column, True).labels == {"a": 1, "b": 1}
    assert fitted(column).num_outputs == 2


def test_label_not_seen_in_training_is_named() -> None:
    target = fitted(pd.Series(["a", "b"]))
    for refuse in (
        lambda: target.encode(pd.Series(["a", "zebra"])),
        lambda: target.check(survey_target(pd.Series(["zebra"]), True), "partition 4 of the validation data"),
    ):
        with pytest.raises(DataError, match=r"'y' must occur in the training data \('a', 'b'\), however 'zebra'"):
            refuse()
    with pytest.raises(DataError, match="partition 4 of the validation data"):
        target.check(survey_target(pd.Series(["zebra"]), True), "partition 4 of the validation data")
    target.check(survey_target(pd.Series(["b"]), True), "anywhere")


def test_missing_label_is_not_encoded() -> None:
    with pytest.raises(DataError, match="'y'"):
        fitted(pd.Series(["a", "b"])).encode(pd.Series(["a", None]))


def test_too_many_labels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dasktrain.data.target.MOST_CATEGORIES", 2)
    with pytest.raises(DataError, match=r"'y' must have at most 2 labels, however it has 3; .*classes=False"):
        fitted(pd.Series([1, 2, 3]))


@pytest.mark.parametrize("shape", [(3,), (3, 1)], ids=str)
def test_one_logit_decides_between_two_classes(shape: tuple[int, ...]) -> None:
    target = fitted(pd.Series(["no", "yes"]))
    found = target.decode(np.array([-0.1, 0.0, 0.1], dtype=np.float32).reshape(shape))
    assert list(found) == ["no", "no", "yes"]


def test_largest_output_decides_between_classes() -> None:
    target = fitted(pd.Series(["a", "b", "c"]))
    assert list(target.decode(np.array([[-3.0, -1.0, -2.0], [0.0, 0.0, 5.0]]))) == ["b", "c"]


# -- numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (pd.Series([1, 2], dtype="Int64"), [1.0, 2.0]),
        (pd.Series([True, False]), [1.0, 0.0]),
        (pd.Series([0.5, None], dtype=pd.ArrowDtype(pa.float64())), [0.5, np.nan]),
        (pd.DataFrame({"p": [1, 2], "q": [0.5, np.nan]}), [[1.0, 0.5], [2.0, np.nan]]),
        (np.array([[1, 2]], dtype=np.int8), [[1.0, 2.0]]),
    ],
    ids=["nullable", "bool", "arrow", "several", "array"],
)
def test_numbers_of_any_dtype(columns: Any, expected: list[Any]) -> None:
    found = numbers(columns)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, expected)


def test_numbers_come_back_as_they_are() -> None:
    several, one = Numbers(("p", "q"), flat=False), Numbers(("p",))
    values = np.array([[1.0, -2.0], [3.0, 4.0]], dtype=np.float32)
    np.testing.assert_array_equal(several.decode(several.encode(values)), values)
    np.testing.assert_array_equal(one.decode(values[:, :1]), one.encode(values[:, 0]))
    assert (several.num_outputs, one.num_outputs) == (2, 1)


def test_rows_with_any_number_missing_are_unusable() -> None:
    columns = pd.DataFrame({"p": [1.0, np.nan, np.inf, 1.0], "q": [np.nan, np.nan, 0.0, 1.0]})
    survey = survey_target(columns, False)
    assert (survey.labels, survey.unusable) == (None, 3)
    assert survey_target(columns.iloc[:0], False).unusable == 0


def test_numbers_too_large_for_float32_are_unusable() -> None:
    assert survey_target(pd.Series([1e39, 1.0]), False).unusable == 1


# -- through a run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "label",
    [
        pd.Series([1, 2, 3], dtype=object),
        pd.Series([1, 2, 3], dtype="int16"),
        pd.Series([1, 2, 3], dtype="category"),
        pd.Series([True, False, True]),
    ],
    ids=["object", "int16", "category", "bool"],
)
def test_predictions_from_pandas_are_labels_of_the_frame(label: pd.Series) -> None:
    data = frame(30).assign(label=pd.concat([label] * 10, ignore_index=True))
    found = fit(dt.Table(data, "label", numeric=["a"], categorical=[])).predict(data).compute(scheduler="sync")
    assert set(found) <= set(label)
    assert found.dtype == label.dtype


def test_objects_that_are_strings_stay_objects() -> None:
    with dask.config.set({"dataframe.convert-string": False}):
        data = frame(30).astype({"label": object})
        predicted = fit(dt.Table(data, "label", numeric=["a"], categorical=[])).predict(data)
    assert predicted.dtype == predicted.compute(scheduler="sync").dtype == object
