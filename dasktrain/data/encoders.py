"""From columns to numbers: one pass of statistics, merged in partition order, then a pure function of them.

================  ==========================================================  ======================
column            what the model gets                                         fitted
================  ==========================================================  ======================
float, integer    (x - mean) / standard deviation                             mean, deviation
boolean           the same over 0 and 1                                       mean, deviation
datetime          the same over seconds since 1970 (UTC)                      mean, deviation
timedelta         the same over seconds                                       mean, deviation
any of these      missing -> 0 (the mean); one more 0/1 feature says so if    whether any was missing
                  any was missing in training
string, category  1 + place in the sorted vocabulary; 0 for a value not seen  vocabulary
                  in training and, if none was missing then, for missing
================  ==========================================================  ======================
"""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from dasktrain.data.plain import require_json
from dasktrain.errors import DataError

Floats = NDArray[np.float64]
#: A vocabulary is gathered on the driver; a column with more values than this is an identifier, not a category.
MOST_CATEGORIES = 100_000


@dataclass(frozen=True)
class Moments:
    """Count, mean, sum of squared deviations and range of a column's finite values, and what was not finite."""

    count: int
    mean: float
    deviations: float
    low: float
    high: float
    missing: int
    infinite: int

    @staticmethod
    def of(values: Floats) -> "Moments":
        """Measure one partition, (rows,) with NaN for missing."""
        finite = values[np.isfinite(values)]
        missing = int(np.isnan(values).sum())
        with np.errstate(over="ignore", invalid="ignore"):  # refused when fitted
            mean = float(finite.mean()) if len(finite) else 0.0
            deviations = float(np.square(finite - mean).sum())
        low, high = float(finite.min(initial=math.inf)), float(finite.max(initial=-math.inf))
        return Moments(len(finite), mean, deviations, low, high, missing, len(values) - len(finite) - missing)

    @staticmethod
    def of_row(numbers: Floats) -> "Moments":
        """Turn what `row` returned back, (7,)."""
        count, mean, deviations, low, high, missing, infinite = numbers.tolist()
        return Moments(int(count), mean, deviations, low, high, int(missing), int(infinite))

    def row(self) -> tuple[float, ...]:
        """Return all of it as numbers, of which those of many columns are an array; counts are exact up to 2^53."""
        return self.count, self.mean, self.deviations, self.low, self.high, self.missing, self.infinite

    def __add__(self, other: "Moments") -> "Moments":
        """Merge two stretches of rows (Chan, Golub and LeVeque, "Updating Formulae", 1979)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        share = other.count / count if count else 0.0
        return Moments(
            count,
            self.mean + delta * share,
            self.deviations + other.deviations + delta * delta * self.count * share,
            min(self.low, other.low),
            max(self.high, other.high),
            self.missing + other.missing,
            self.infinite + other.infinite,
        )


@dataclass(frozen=True)
class Values:
    """The distinct values of a column and how many rows had none."""

    values: frozenset[Hashable]
    missing: int
    rows: int

    @staticmethod
    def of(column: "pd.Series[Any]") -> "Values":
        """Collect one partition."""
        present = column.dropna()
        return Values(frozenset(plain(present.unique())), len(column) - len(present), len(column))

    def __add__(self, other: "Values") -> "Values":
        return Values(self.values | other.values, self.missing + other.missing, self.rows + other.rows)


@dataclass(frozen=True)
class Numeric:
    """A standardised column; `indicator` adds a feature that is 1 where the value is missing."""

    name: str
    mean: float
    deviation: float
    indicator: bool

    @staticmethod
    def fit(name: str, moments: Moments) -> "Numeric":
        """Fit to a column's merged moments; a constant column is centred only."""
        if moments.infinite:
            raise DataError(
                f"Column {name!r} must be finite or missing, however {moments.infinite} rows are infinite; "
                "replace them or leave the column out"
            )
        if not moments.count:
            raise DataError(f"Column {name!r} must have values, however every row is missing; leave it out")
        if not math.isfinite(moments.mean) or not math.isfinite(moments.deviations):
            raise DataError(
                f"Column {name!r} must have squares that float64 holds, however it reaches from {moments.low:g} to "
                f"{moments.high:g}; scale it down"
            )
        if moments.low == moments.high:
            return Numeric(name, moments.low, 1.0, moments.missing > 0)
        deviation = math.sqrt(moments.deviations / moments.count)
        return Numeric(name, moments.mean, deviation or 1.0, moments.missing > 0)

    def encode(self, values: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """Return standardised values and where they were missing, both (rows,)."""
        missing = np.isnan(values)
        encoded = (values - self.mean) / self.deviation
        encoded[missing] = 0.0
        return encoded, missing


@dataclass(frozen=True)
class Categorical:
    """A column as places in its vocabulary, from 1; 0 is unknown."""

    name: str
    values: tuple[Hashable, ...]
    missing: bool

    @staticmethod
    def fit(name: str, seen: Values) -> "Categorical":
        """Fit to a column's merged values."""
        if not seen.values:
            raise DataError(f"Column {name!r} must have values, however every row is missing; leave it out")
        if len(seen.values) > MOST_CATEGORIES:
            raise DataError(
                f"Column {name!r} must have at most {MOST_CATEGORIES} categories, however it has "
                f"{len(seen.values)}; leave it out or hash it to fewer"
            )
        require_json(name, seen.values)
        return Categorical(name, tuple(ordered(seen.values)), seen.missing > 0)

    @property
    def cardinality(self) -> int:
        """Rows an embedding needs: unknown, the vocabulary, and missing if training had it."""
        return 1 + len(self.values) + self.missing

    def encode(self, column: "pd.Series[Any]") -> NDArray[np.int32]:
        """Return (rows,) places."""
        places = positions(self.values, column) + 1
        if self.missing:
            places[column.isna().to_numpy()] = 1 + len(self.values)
        return places.astype(np.int32)


def positions(values: tuple[Hashable, ...], column: "pd.Series[Any]") -> NDArray[np.int64]:
    """Return each row's place in `values`, -1 where it is not among them."""
    codes, distinct = pd.factorize(column)  # so that only distinct values are looked up
    places = {value: place for place, value in enumerate(values)}
    known = np.array([places.get(value, -1) for value in plain(distinct)] + [-1], dtype=np.int64)
    return known[codes]  # a missing value has code -1, the last


def plain(values: Iterable[Any]) -> list[Hashable]:
    """Return plain Python values, so that equal categories of any column type are equal."""
    return [value.item() if isinstance(value, np.generic) and hasattr(value, "item") else value for value in values]


def ordered(values: Iterable[Hashable]) -> list[Hashable]:
    """Sort values of any mixture of types, the same way everywhere."""
    return sorted(values, key=lambda value: (type(value).__name__, value))


def is_numeric(dtype: Any) -> bool:
    """Tell whether a column of `dtype` is encoded as a number."""
    api = pd.api.types
    if api.is_complex_dtype(dtype) or isinstance(dtype, pd.CategoricalDtype):
        return False
    return bool(api.is_numeric_dtype(dtype) or api.is_bool_dtype(dtype) or _is_time(dtype))


def is_categorical(dtype: Any) -> bool:
    """Tell whether a column of `dtype` is encoded by a vocabulary."""
    if isinstance(dtype, pd.ArrowDtype):
        kind = dtype.pyarrow_dtype
        return bool(pa.types.is_dictionary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))
    return bool(
        isinstance(dtype, pd.CategoricalDtype)
        or pd.api.types.is_string_dtype(dtype)
        or pd.api.types.is_object_dtype(dtype)
    )


def _is_time(dtype: Any) -> bool:
    return not isinstance(dtype, pd.PeriodDtype) and getattr(dtype, "kind", "") in ("m", "M")


def floats(column: "pd.Series[Any]") -> Floats:
    """Return any numeric column as float64, NaN for missing; times in seconds (since 1970, UTC)."""
    if _is_time(column.dtype) and column.dtype.kind == "M":
        instants = pd.to_datetime(column, utc=True)
        column = (instants - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    elif _is_time(column.dtype):
        column = pd.to_timedelta(column) / pd.Timedelta(seconds=1)
    return column.to_numpy(dtype=np.float64, na_value=np.nan)
