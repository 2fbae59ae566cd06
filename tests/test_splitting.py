"""Parts of a data set: exact, reproducible, whole groups, whole moments."""

from itertools import pairwise
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dasktrain as dt
from dasktrain.data import quantiles
from dasktrain.data.quantiles import exact_quantiles
from dasktrain.errors import DataError, PlanError

few = settings(max_examples=15, deadline=None)
THIRDS = (0.5, 0.3, 0.2)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    with dask.config.set(scheduler="sync"):
        yield


def rows(count: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "id": np.arange(count),
            "kind": np.where(rng.random(count) < 0.1, "rare", "common"),
            "user": rng.integers(0, 25, count),
            "when": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.permutation(count), unit="h"),
        },
        index=pd.RangeIndex(1000, 1000 + count, name="row"),
    )


def frame(partitions: int = 5, **other: Any) -> Any:
    return dd.from_pandas(rows(**other), npartitions=partitions)


def computed(parts: Any) -> list[pd.DataFrame]:
    return list(dask.compute(*parts))


@st.composite
def cut(draw: st.DrawFn) -> tuple[Any, list[float]]:
    """Draw a frame in partitions of any size, some empty, and fractions."""
    sizes = draw(st.lists(st.integers(0, 30), min_size=1, max_size=5).filter(any))
    kinds = draw(st.lists(st.sampled_from("abc"), min_size=sum(sizes), max_size=sum(sizes)))
    whole = pd.DataFrame({"id": np.arange(sum(sizes)), "kind": kinds})
    edges = np.cumsum([0, *sizes]).tolist()
    parts = [whole.iloc[start:stop] for start, stop in pairwise(edges)]
    shares = draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    return dd.from_delayed([dask.delayed(part) for part in parts], meta=whole), (
        np.array(shares) / sum(shares)
    ).tolist()


# -- at random, by class ------------------------------------------------------------------------------------------


@few
@given(cut(), st.integers(0, 2**40), st.sampled_from([None, "kind"]))
def test_parts_are_a_partition_of_the_rows_in_their_order_and_exact_to_a_row_of_each_class(
    whole: tuple[Any, list[float]], seed: int, stratify: str | None
) -> None:
    data, fractions = whole
    parts = computed(dt.split(data, fractions, stratify=stratify, seed=seed))
    assert sorted(pd.concat(parts)["id"]) == data["id"].compute().tolist()
    assert all(part["id"].is_monotonic_increasing for part in parts)
    kinds = data["kind"].compute()
    for kind in kinds.unique() if stratify else [None]:
        total = len(kinds) if kind is None else (kinds == kind).sum()
        for part, fraction in zip(parts, fractions, strict=True):
            found = len(part) if kind is None else (part["kind"] == kind).sum()
            assert abs(found - fraction * total) <= 1


def test_a_split_is_reproducible_by_its_seed_and_keeps_index_divisions_and_dtypes() -> None:
    data = frame()
    one, again, other = (dt.split(data, THIRDS, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(one[0].compute(), again[0].compute())
    assert set(one[0].compute().index) != set(other[0].compute().index)
    assert one[1].divisions == data.divisions
    assert one[1].dtypes.equals(data.dtypes)
    whole = rows()
    for part in computed(one):
        pd.testing.assert_frame_equal(part, whole.loc[part.index], check_dtype=False)


# -- by group -----------------------------------------------------------------------------------------------------


@few
@given(st.integers(0, 2**40), st.lists(st.integers(1, 9), min_size=2, max_size=2), st.permutations(range(200)))
def test_a_group_is_in_one_part_the_same_for_any_partitioning_and_order(
    seed: int, partitions: list[int], order: list[int]
) -> None:
    shuffled = rows().iloc[order]
    frames = [
        dd.from_pandas(each, npartitions=n, sort=False) for each, n in zip((rows(), shuffled), partitions, strict=True)
    ]
    ones, others = (
        [set(part["user"]) for part in computed(dt.split(each, group="user", seed=seed))] for each in frames
    )
    assert ones == others
    assert not ones[0] & ones[1]
    assert ones[0] | ones[1] == set(rows()["user"])


def test_groups_of_many_keys_are_about_as_many_as_the_fractions_say() -> None:
    keys = pd.DataFrame({"key": np.arange(20_000)})
    sizes = [len(part) for part in computed(dt.split(dd.from_pandas(keys, npartitions=3), THIRDS, group="key"))]
    np.testing.assert_allclose(np.array(sizes) / 20_000, THIRDS, atol=0.02)


# -- in time ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [1, 7])
def test_a_cut_in_time_is_the_exact_quantile(partitions: int) -> None:
    parts = computed(dt.split(frame(partitions), THIRDS, time="when"))
    assert list(map(len, parts)) == [100, 60, 40]
    assert all(one["when"].max() < other["when"].min() for one, other in pairwise(parts))


@few
@given(
    st.lists(st.lists(st.integers(0, 40), max_size=60), min_size=1, max_size=4).filter(any),
    st.floats(0.01, 0.99),
    st.sampled_from([2, 3, 1024]),
)
def test_quantiles_are_those_of_all_values_sorted(values: list[list[int]], share: float, points: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantiles, "POINTS", points)
        (found,) = exact_quantiles([dask.delayed(pd.Series(some, dtype=np.int64)) for some in values], [share])
    whole = sorted(value for some in values for value in some)
    assert found == whole[min(len(whole) - 1, round(share * len(whole)))]


def test_a_gap_leaves_out_what_is_just_before_a_cut() -> None:
    cut = pd.Timestamp("2026-01-05")
    for at in (cut, "2026-01-05"):
        train, valid = computed(dt.split(frame(), time="when", at=at, gap=pd.Timedelta("12h")))
        assert (train["when"].max(), valid["when"].min()) == (cut - pd.Timedelta("12h"), cut)
        assert (len(train), len(valid)) == (96 - 11, 104)
    first, second, third = computed(dt.split(frame(), time="id", at=[50, 120], gap=10))
    assert (first["id"].max(), second["id"].min(), second["id"].max(), third["id"].min()) == (40, 50, 110, 120)


def test_rows_of_one_moment_stay_together() -> None:
    data = dd.from_pandas(pd.DataFrame({"t": [1] * 5 + [2] * 3 + [3] * 2, "x": range(10)}), npartitions=3)
    assert [set(part["t"]) for part in computed(dt.split(data, (0.6, 0.4), time="t"))] == [{1}, {2, 3}]


# -- arrays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", [None, "stratify", "group", "time"])
def test_arrays_are_split_as_frames_are(by: str | None) -> None:
    whole = rows()
    column = {"stratify": "kind", "group": "user", "time": "when"}.get(by or "")
    X = da.from_array(whole[["id", "user"]].to_numpy(), chunks=(40, 1))
    ids = whole["id"].to_numpy()
    given: dict[str, Any] = {} if by is None else {by: whole[column].to_numpy()}
    train, valid = dt.split((X, ids), **given)
    data = dd.from_pandas(whole, npartitions=5)
    frames = computed(dt.split(data, **({} if by is None else {by: column})))
    for (features, number), part in zip((train, valid), frames, strict=True):
        assert features.chunks[1] == (2,)
        np.testing.assert_array_equal(features.compute()[:, 0], number.compute())
        assert number.compute().tolist() == part["id"].tolist()
    fitted = dt.Arrays(train[0], train[1])
    assert len(fitted.survey()) == 5


# -- bad input ----------------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "fractions": ({"fractions": (0.8, 0.1)}, "add up to 1, however they are"),
    "one fraction": ({"fractions": (1.0,)}, "two or more"),
    "nothing left": ({"fractions": (1.0, 0.0)}, "positive"),
    "two ways": ({"group": "user", "stratify": "kind"}, "stratify and group are given"),
    "a cut of no time": ({"at": 3}, "must be in time"),
    "a gap of no time": ({"gap": 3, "group": "user"}, "must be in time"),
    "seed": ({"seed": -1}, "seed must be"),
    "column": ({"group": "usr"}, "'usr' is not; .*user"),
    "kind of a cut": ({"time": "when", "at": 3.5}, "must be of the times' kind"),
    "order of cuts": ({"time": "id", "at": [5, 5]}, "each later than the last"),
    "keyword": ({"by": "user"}, "by"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_split_is_refused_at_once(fault: str) -> None:
    given, message = FAULTS[fault]
    with pytest.raises((DataError, PlanError, TypeError), match=message):
        dt.split(frame(), **given)


def test_parts_of_one_moment_are_refused() -> None:
    data = dd.from_pandas(pd.DataFrame({"t": [1] * 9}), npartitions=2)
    with pytest.raises(DataError, match="must have times of their own"):
        dt.split(data, THIRDS, time="t")


def test_pandas_is_refused_with_what_to_use() -> None:
    with pytest.raises(DataError, match=r"use dask\.dataframe\.from_pandas"):
        dt.split(rows())
    with pytest.raises(DataError, match="a key a row"):
        dt.split((np.zeros((4, 2)),), group=np.zeros((4, 2)))
    with pytest.raises(DataError, match="must have rows"):
        dt.split(frame().loc[:0], time="when")


@pytest.mark.parametrize("by", ["stratify", "time"])
def test_a_row_without_a_class_or_a_time_is_refused(by: str) -> None:
    whole = rows()
    whole.loc[1003, ["kind", "when"]] = None
    with pytest.raises(DataError, match="however 1 of 40 of a partition have none"):
        dt.split(dd.from_pandas(whole, npartitions=5), **{by: {"stratify": "kind", "time": "when"}[by]})


def test_a_row_without_a_group_is_refused_when_the_parts_are_computed() -> None:
    whole = rows().astype({"user": float})
    whole.loc[1003, "user"] = np.nan
    train, _ = dt.split(dd.from_pandas(whole, npartitions=5), group="user")
    with pytest.raises(DataError, match="have none"):
        train.compute()
