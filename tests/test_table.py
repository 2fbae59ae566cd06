"""A DataFrame as training data: what becomes of its columns, partition by partition."""

import json
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

import dasktrain as dt
from dasktrain.data.block import Block
from dasktrain.data.encodings import TableEncoding
from dasktrain.data.saved import encoding_from_json
from dasktrain.data.source import Input, Schema, Survey
from dasktrain.errors import DataError
from tests.small import frame, table

SIZES = (3, 0, 4, 1)


def mixed() -> pd.DataFrame:
    """One column of each kind, eight rows."""
    return pd.DataFrame(
        {
            "age": [31.0, 40.0, np.nan, 22.0, 57.0, 33.0, 40.0, 29.0],
            "colour": ["red", "blue", "red", None, "green", "red", "blue", "red"],
            "smokes": [True, False, True, True, False, False, True, False],
            "seen": pd.date_range("2024-01-01", periods=8, freq="36h"),
            "label": ["yes", "no", "no", "yes", "no", "yes", "no", "no"],
            "price": np.arange(8.0),
            "trust": np.arange(8) / 2,
        }
    )


def in_partitions(whole: pd.DataFrame, sizes: tuple[int, ...] = SIZES) -> dd.DataFrame:
    """Cut a frame into partitions of these sizes, whose dtypes are those of the frame."""
    stops = np.cumsum(sizes)
    with dask.config.set({"dataframe.convert-string": False}):
        return dd.from_map(lambda cut: whole.iloc[slice(*cut)], list(zip(stops - sizes, stops, strict=True)))


def surveys(data: dt.Table) -> list[Survey]:
    return list(dask.compute(*data.survey(), scheduler="sync"))


def fitted(data: dt.Table) -> TableEncoding:
    return data.fit(surveys(data))


def blocks(data: dt.Table, encoding: TableEncoding | None = None, by_class: bool = False) -> list[Block]:
    return list(dask.compute(*data.convert(encoding or fitted(data), [], by_class), scheduler="sync"))


# -- blocks ---------------------------------------------------------------------------------------------------


def test_schema_lists_what_a_model_must_fit() -> None:
    data = dt.Table(in_partitions(mixed()), target="label", weight="trust")
    assert (data.numeric, data.categorical) == (["age", "smokes", "seen", "price"], ["colour"])
    assert fitted(data).schema == Schema(
        inputs=(Input((5,)), Input((1,), (5,))),
        num_outputs=2,
        feature_names=("age", "smokes", "seen", "price", "age is missing"),
        cardinalities=(5,),  # unknown, three colours, missing
    )
    assert fitted(data).schema.num_features == 5


def test_blocks_hold_each_partitions_rows_in_order() -> None:
    whole = mixed()
    found = blocks(dt.Table(in_partitions(whole), target="label", weight="trust"))
    assert tuple(len(block.inputs[0]) for block in found) == SIZES
    for block in found:
        numeric, categorical = block.inputs
        assert block.target is not None
        assert block.weight is not None
        assert (numeric.dtype, numeric.shape) == (np.float32, (len(block.inputs[0]), 5))
        assert (categorical.dtype, categorical.shape) == (np.int32, (len(block.inputs[0]), 1))
        assert (block.target.dtype, block.target.shape) == (np.int32, (len(block.inputs[0]),))
        assert (block.weight.dtype, block.weight.shape) == (np.float64, (len(block.inputs[0]),))
    numeric, categorical = (np.concatenate(parts) for parts in zip(*(block.inputs for block in found), strict=True))
    age = whole["age"].fillna(whole["age"].mean())
    np.testing.assert_allclose(numeric[:, 0], (age - age.mean()) / whole["age"].std(ddof=0), atol=1e-6)
    np.testing.assert_allclose(numeric[:, 2], (np.arange(8) - 3.5) / np.arange(8).std(), atol=1e-6)
    np.testing.assert_array_equal(numeric[:, 4], whole["age"].isna())
    np.testing.assert_array_equal(categorical[:, 0], [3, 1, 3, 4, 2, 3, 1, 3])
    np.testing.assert_array_equal(np.concatenate([block.target for block in found]), whole["label"] == "yes")
    np.testing.assert_array_equal(np.concatenate([block.weight for block in found]), whole["trust"])


def test_blocks_sorted_by_class_keep_their_rows_together() -> None:
    data = dt.Table(in_partitions(mixed()), target="label", numeric=["price"], weight="trust")
    encoding = fitted(data)
    for plain, ordered in zip(blocks(data, encoding), blocks(data, encoding, by_class=True), strict=True):
        assert plain.target is not None
        order = np.argsort(plain.target, kind="stable")
        np.testing.assert_array_equal(ordered.target, plain.target[order])
        np.testing.assert_array_equal(ordered.inputs[0], plain.inputs[0][order])
        np.testing.assert_array_equal(ordered.weight, plain.weight[order])


@pytest.mark.parametrize(
    ("roles", "widths"),
    [({}, [2, 1]), ({"categorical": []}, [2]), ({"numeric": []}, [1])],
    ids=["both", "numeric", "categorical"],
)
def test_input_without_columns_is_left_out(roles: dict[str, list[str]], widths: list[int]) -> None:
    data = dt.Table(in_partitions(mixed()[["age", "colour", "label"]]), target="label", **roles)
    assert [part.shape[1] for part in blocks(data)[0].inputs] == widths
    assert [part.shape for part in fitted(data).schema.inputs] == [(width,) for width in widths]


# -- roles ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "numeric", "categorical"),
    [
        ({}, ["age", "smokes", "seen", "price", "trust"], ["colour"]),
        ({"weight": "trust"}, ["age", "smokes", "seen", "price"], ["colour"]),
        ({"categorical": ["smokes"]}, ["age", "seen", "price", "trust"], ["smokes"]),
        ({"numeric": ["price", "age"], "categorical": []}, ["price", "age"], []),
    ],
    ids=["by dtype", "weight is no feature", "named otherwise", "order as given"],
)
def test_roles_of_columns(roles: dict[str, Any], numeric: list[str], categorical: list[str]) -> None:
    data = dt.Table(mixed(), target="label", **roles)
    assert (data.numeric, data.categorical) == (numeric, categorical)


def test_numbers_named_categorical_get_a_vocabulary() -> None:
    encoding = fitted(dt.Table(in_partitions(mixed()), target="label", numeric=[], categorical=["smokes", "price"]))
    assert [column.values for column in encoding.categorical] == [(False, True), tuple(map(float, range(8)))]


@pytest.mark.parametrize(
    ("target", "classes", "kind", "target_shape", "num_outputs"),
    [
        ("label", None, np.int32, (8,), 2),
        ("smokes", None, np.int32, (8,), 2),
        ("price", None, np.float32, (8,), 1),
        ("price", True, np.int32, (8,), 8),
        ("smokes", False, np.float32, (8,), 1),
        (["price"], None, np.float32, (8, 1), 1),
        (["price", "trust"], None, np.float32, (8, 2), 2),
        (["price", "smokes"], None, np.float32, (8, 2), 2),
    ],
)
def test_target_is_labels_or_numbers(
    target: Any, classes: bool | None, kind: type, target_shape: tuple[int, ...], num_outputs: int
) -> None:
    data = dt.Table(in_partitions(mixed(), (8,)), target=target, numeric=["age"], categorical=[], classes=classes)
    [block] = blocks(data)
    assert block.target is not None
    assert (block.target.dtype, block.target.shape) == (kind, target_shape)
    assert fitted(data).schema.num_outputs == num_outputs
    if kind is np.float32:
        expected = mixed()[target].to_numpy(dtype=np.float32)
        np.testing.assert_array_equal(block.target, expected)


# -- partitions -----------------------------------------------------------------------------------------------


def test_pandas_is_cut_the_same_way_on_any_cluster() -> None:
    data = table(rows=20)
    assert [survey.rows for survey in surveys(data)] == [survey.rows for survey in surveys(table(rows=20))]
    assert sum(survey.rows for survey in surveys(data)) == 20
    whole = [block.inputs[0] for block in blocks(data)]
    [apart] = blocks(dt.Table(in_partitions(frame(20), (20,)), target="label", numeric=["a", "b"]))
    np.testing.assert_allclose(np.concatenate(whole), apart.inputs[0], atol=1e-6)


def test_pandas_keeps_its_order_under_any_index() -> None:
    shuffled = frame(20).sample(frac=1, random_state=0)
    data = dt.Table(shuffled, target="number", numeric=["a"], categorical=[])
    np.testing.assert_array_equal(
        np.concatenate([block.target for block in blocks(data)]), shuffled["number"].to_numpy(np.float32)
    )


@pytest.mark.parametrize("sizes", [(8,), (1,) * 8, (0, 5, 0, 3), (2, 6)], ids=str)
def test_encoding_is_close_over_any_partitioning(sizes: tuple[int, ...]) -> None:
    found, expected = (fitted(dt.Table(in_partitions(mixed(), cut), target="label")) for cut in (sizes, SIZES))
    assert found.schema == expected.schema
    assert (found.categorical, found.target) == (expected.categorical, expected.target)
    for ours, theirs in zip(found.numeric, expected.numeric, strict=True):
        np.testing.assert_allclose([ours.mean, ours.deviation], [theirs.mean, theirs.deviation], rtol=1e-12)


def test_encoding_is_equal_over_equal_partitions_whoever_computes_them() -> None:
    data = dt.Table(in_partitions(mixed()), target="label")
    threaded = dask.compute(*data.survey(), scheduler="threads", num_workers=3)
    assert data.fit(threaded) == fitted(dt.Table(in_partitions(mixed()), target="label"))


def test_parquet_of_several_files_one_of_them_empty(tmp_path: Path) -> None:
    whole = mixed().assign(colour=lambda rows: rows["colour"].astype("category"))
    stops = np.cumsum(SIZES)
    for number, (size, stop) in enumerate(zip(SIZES, stops, strict=True)):
        whole.iloc[stop - size : stop].to_parquet(tmp_path / f"part-{number}.parquet")
    roles = {"target": "label", "numeric": ["age"], "categorical": ["colour"], "weight": "trust"}
    read = dt.Table(dd.read_parquet(tmp_path), **roles)
    expected = dt.Table(in_partitions(mixed()), **roles)
    assert fitted(read).numeric == fitted(expected).numeric
    assert fitted(read).categorical == fitted(expected).categorical
    for ours, theirs in zip(blocks(read), blocks(expected), strict=True):
        for one, other in zip((*ours.inputs, *ours[1:3]), (*theirs.inputs, *theirs[1:3]), strict=True):
            np.testing.assert_array_equal(one, other)


def test_only_named_columns_are_read() -> None:
    asked: list[Any] = []

    def read(number: int, columns: list[str] | None = None) -> pd.DataFrame:
        asked.append(columns)
        part = mixed().iloc[4 * number :][:4]
        return part if columns is None else part[columns]

    source = dd.from_map(read, [0, 1], meta=mixed().iloc[:0])
    data = dt.Table(source, target="label", numeric=["age"], categorical=["colour"], weight="trust")
    blocks(data)
    assert len(asked) == 4  # two partitions, twice: statistics, then conversion
    assert {frozenset(columns) for columns in asked} == {frozenset({"age", "colour", "label", "trust"})}


def test_surveys_count_what_cannot_be_used() -> None:
    whole = mixed().assign(
        label=["yes", None, "no", "yes", "no", "no", "no", "yes"],
        trust=[1.0, 1.0, -1.0, np.nan, np.inf, 0.0, 1.0, 1.0],
    )
    found = surveys(dt.Table(in_partitions(whole, (4, 4)), target="label", weight="trust"))
    assert [survey.target.unusable for survey in found] == [1, 0]
    assert [survey.unusable_weights for survey in found] == [2, 1]
    assert [survey.target.labels for survey in found] == [{"yes": 2, "no": 1}, {"yes": 1, "no": 3}]


# -- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "column",
    [
        pd.Series([1j] * 8),
        pd.Series(pd.period_range("2024", periods=8)),
        pd.Series(pd.interval_range(0, 8)),
    ],
    ids=lambda column: str(column.dtype),
)
def test_unsupported_column_is_named_with_its_dtype_and_a_fix(column: pd.Series) -> None:
    odd = mixed().assign(odd=column)
    with pytest.raises(DataError) as caught:
        dt.Table(odd, target="label")
    for word in ("'odd'", str(column.dtype), "convert it", "numeric= and categorical="):
        assert word in str(caught.value)
    assert dt.Table(odd, target="label", numeric=["age"], categorical=["colour"]).numeric == ["age"]


@pytest.mark.parametrize("value", [[1], {1}, {"a": 1}], ids=lambda value: type(value).__name__)
def test_column_of_objects_is_named_with_its_dtype_and_a_fix(value: Any) -> None:
    with dask.config.set({"dataframe.convert-string": False}):
        data = dt.Table(mixed().assign(odd=[value] * 8), target="label")
    with pytest.raises(DataError) as caught:
        surveys(data)
    for word in ("'odd'", "object", type(value).__name__, "leave it out"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ({"target": "lable"}, ["'lable'", "did you mean 'label'"]),
        ({"target": ["price", "prise"]}, ["'prise'", "did you mean 'price'"]),
        ({"target": "label", "weight": "truts"}, ["'truts'", "did you mean 'trust'"]),
        ({"target": "label", "numeric": ["agee"]}, ["'agee'", "did you mean 'age'"]),
        ({"target": "label", "categorical": ["color"]}, ["'color'", "did you mean 'colour'"]),
        ({"target": "label", "numeric": ["label"]}, ["one role", "'label'"]),
        ({"target": "label", "categorical": ["label"]}, ["one role", "'label'"]),
        ({"target": "label", "numeric": ["age"], "categorical": ["age"]}, ["one role", "'age'"]),
        ({"target": "label", "weight": "trust", "numeric": ["trust"]}, ["one role", "'trust'"]),
        ({"target": "price", "weight": "price"}, ["one role", "'price'"]),
        ({"target": "label", "numeric": ["age", "age"]}, ["'age'"]),
        ({"target": ["price", "price"]}, ["'price'"]),
        ({"target": []}, ["target"]),
        ({"target": "label", "numeric": ["colour"]}, ["'colour'", "numeric", "categorical"]),
        ({"target": "label", "weight": "colour"}, ["'colour'", "numeric"]),
        ({"target": "colour", "classes": False}, ["'colour'", "numeric", "class label"]),
        ({"target": ["price", "colour"]}, ["'colour'", "numeric"]),
        ({"target": ["price", "trust"], "classes": True}, ["one column", "classes=False"]),
        ({"target": "label", "numeric": [], "categorical": []}, ["feature columns"]),
    ],
    ids=str,
)
def test_roles_that_cannot_be_met_are_named(roles: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        dt.Table(in_partitions(mixed()), **roles)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("name", ["age", "colour"])
def test_columns_of_one_name_are_refused(name: str) -> None:
    twice = mixed()[["price", name, name, "label"]]
    with pytest.raises(DataError, match=f"'{name}'"):
        dt.Table(dd.from_pandas(twice, npartitions=2), target="label")


@pytest.mark.parametrize("thing", [np.zeros((3, 2)), {"a": [1]}, [1, 2]], ids=lambda thing: type(thing).__name__)
def test_table_is_made_of_a_dataframe(thing: Any) -> None:
    with pytest.raises(DataError, match="Dask or pandas DataFrame"):
        dt.Table(thing, target="a")


def test_partition_without_a_trained_column_is_named() -> None:
    encoding = fitted(dt.Table(in_partitions(mixed()), target="label"))
    with pytest.raises(DataError, match=r"'colour' is not among"):
        encoding.inputs(mixed().drop(columns="colour"))


# -- travelling -----------------------------------------------------------------------------------------------

DAYS = pd.Series(pd.to_datetime(["2024-01-01", "2024-02-01"] * 4))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"label": [True, False] * 4},
        {"label": [3, -1] * 4},
        {"label": pd.Series(["p", "q"] * 4, dtype="category")},
        {"label": np.arange(8.0) / 3},
        {"label": DAYS},
        {"label": DAYS.dt.tz_localize("Europe/Paris")},
        {"colour": [7, 8] * 4},
        {"colour": pd.Series([True, False] * 4, dtype="category")},
        {"colour": DAYS.astype("category")},
        {"colour": DAYS.dt.tz_localize("Europe/Paris").astype("category")},
        {"colour": pd.cut(pd.Series(np.arange(8)), 3)},
        {"colour": pd.Series(pd.to_timedelta([1, 2] * 4, unit="h")).astype("category")},
        {"colour": pd.Series([datetime(2024, 1, 1, 12), datetime(2024, 2, 1)] * 4, dtype=object)},
        {"colour": pd.Series([date(2024, 1, 1), date(2024, 2, 1)] * 4, dtype=object)},
        {"colour": pd.Series([Decimal("0.10"), Decimal("2")] * 4, dtype=object)},
        {"colour": pd.Series([b"\xff", b""] * 4, dtype=object)},
        {"colour": pd.Series([(1, "a"), (2, "b")] * 4, dtype=object)},
    ],
    ids=lambda change: " ".join(f"{name} {pd.Series(values).dtype}" for name, values in change.items()) or "plain",
)
def test_encoding_comes_back_from_json(change: dict[str, Any]) -> None:
    data = dt.Table(in_partitions(mixed().assign(**change)), "label", numeric=["age"], categorical=["colour"])
    encoding = fitted(data)
    back = encoding_from_json(json.loads(json.dumps(encoding.to_json())))
    assert back == encoding
    for ours, theirs in zip(blocks(data, back), blocks(data, encoding), strict=True):  # type: ignore[arg-type]
        for one, other in zip((*ours.inputs, ours.target), (*theirs.inputs, theirs.target), strict=True):
            np.testing.assert_array_equal(one, other)


def test_encoding_of_several_targets_comes_back_from_json() -> None:
    encoding = fitted(dt.Table(in_partitions(mixed()), ["price", "trust"], numeric=["age"], categorical=[]))
    assert encoding_from_json(json.loads(json.dumps(encoding.to_json()))) == encoding
