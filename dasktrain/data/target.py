"""What a model is to predict: class labels of any type, or numbers."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasktrain.data.encoders import MOST_CATEGORIES, Moments, floats, ordered, plain, positions
from dasktrain.data.plain import require_json
from dasktrain.errors import DataError


@dataclass(frozen=True)
class TargetSurvey:
    """One partition's targets: rows per label, or moments of each column of numbers; and rows that cannot be used."""

    labels: dict[Hashable, int] | None
    unusable: int
    moments: tuple[Moments, ...] = ()


@dataclass(frozen=True)
class Labels:
    """Class labels as 0..classes-1 in sorted order, and back.

    Attributes
    ----------
    name : str
        Name of the predicted column.
    values : tuple
        The labels as plain Python values.
    dtype : numpy.dtype or pandas ExtensionDtype
        What the labels had, and get back.
    """

    name: str
    values: tuple[Hashable, ...]
    dtype: Any

    @property
    def num_outputs(self) -> int:
        """Classes."""
        return len(self.values)

    def encode(self, column: Any) -> NDArray[np.int32]:
        """Return (rows,) class numbers."""
        codes = positions(self.values, pd.Series(column))
        if (codes < 0).any():
            unseen = pd.Series(column)[codes < 0].iloc[0]
            raise DataError(self._unseen(unseen))
        return codes.astype(np.int32)

    def check(self, survey: TargetSurvey, where: str) -> None:
        """Refuse labels that training did not have."""
        for value in ordered(set(survey.labels or {}) - set(self.values)):
            raise DataError(f"{self._unseen(value)} (in {where})")

    def _unseen(self, value: Any) -> str:
        known = ", ".join(map(repr, self.values[:10])) + (", …" if len(self.values) > 10 else "")
        return (
            f"Every label of {self.name!r} must occur in the training data ({known}), "
            f"however {plain([value])[0]!r} does not; add such rows to it or drop them here"
        )

    def decode(self, output: NDArray[Any]) -> Any:
        """Turn module outputs into labels: the largest of (rows, classes), or the sign of one logit."""
        if output.ndim > 1 and output.shape[1] > 1:
            codes = output.argmax(axis=1)
        else:
            codes = (output.reshape(len(output)) > 0).astype(np.int64)
        if isinstance(self.dtype, pd.CategoricalDtype):
            places = self.dtype.categories.get_indexer(pd.Index(list(self.values), dtype=self.dtype.categories.dtype))
            return pd.Categorical.from_codes(places[codes], dtype=self.dtype)
        labels = pd.array(list(self.values), dtype=self.dtype).take(codes)
        return labels.to_numpy() if isinstance(labels, pd.arrays.NumpyExtensionArray) else labels


@dataclass(frozen=True)
class Numbers:
    """One or several numeric targets, as they are.

    Attributes
    ----------
    names : tuple of str
        Names of the predicted columns.
    flat : bool
        Whether the target is (rows,) and not (rows, columns).
    """

    names: tuple[str, ...]
    flat: bool = True

    @property
    def num_outputs(self) -> int:
        """Target columns."""
        return len(self.names)

    def encode(self, columns: Any) -> NDArray[np.float32]:
        """Return (rows,) or (rows, columns) float32."""
        return numbers(columns).astype(np.float32)

    def check(self, survey: TargetSurvey, where: str) -> None:
        """Numbers of any size are known."""

    def decode(self, output: NDArray[Any]) -> Any:
        """Return module outputs, (rows,) if there is one target."""
        return output.reshape(len(output)) if self.flat else output


@dataclass(frozen=True)
class Standardised(Numbers):
    """Numbers that the model sees with mean 0 and deviation 1.

    Attributes
    ----------
    means, deviations : tuple of float
        Of each target.
    """

    means: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()

    @staticmethod
    def fit(names: tuple[str, ...], flat: bool, moments: Sequence[Moments]) -> "Standardised":
        """Fit to each target's merged moments; a constant one is centred only."""
        deviations = (math.sqrt(each.deviations / max(1, each.count)) for each in moments)
        return Standardised(
            names, flat, tuple(each.mean for each in moments), tuple(deviation or 1.0 for deviation in deviations)
        )

    def encode(self, columns: Any) -> NDArray[np.float32]:
        """Return (rows,) or (rows, columns) float32."""
        return ((numbers(columns) - self.means) / self.deviations).astype(np.float32)

    def decode(self, output: NDArray[Any]) -> Any:
        """Return module outputs on the scale of the targets, float64, (rows,) if there is one target."""
        return super().decode(
            output.reshape(len(output), self.num_outputs) * np.array(self.deviations) + np.array(self.means)
        )


@dataclass(frozen=True)
class Indicators(Numbers):
    """Labels of which a row may have any number: a column of 0 and 1 for each.

    Attributes
    ----------
    dtype : numpy.dtype
        What the columns had, and get back.
    """

    flat: bool = False
    dtype: Any = np.int64

    def encode(self, columns: Any) -> NDArray[np.float32]:
        """Return (rows, columns) float32."""
        values = super().encode(columns)
        odd = values[(values != 0) & (values != 1)]
        if odd.size:
            raise DataError(
                f"Indicators of labels {list(self.names)} must be 0 or 1, however one is {odd[0]:g}; "
                "have a column a label"
            )
        return values

    def decode(self, output: NDArray[Any]) -> Any:
        """Return 1 where a logit is positive."""
        return (output > 0).astype(self.dtype)


Target = Labels | Numbers


def numbers(columns: Any) -> NDArray[np.float64]:
    """Return a Series as (rows,), a DataFrame as (rows, columns), an array as it is, in float64."""
    if isinstance(columns, pd.DataFrame):
        return np.stack([floats(columns[name]) for name in columns], axis=1)
    return floats(columns) if isinstance(columns, pd.Series) else np.asarray(columns, dtype=np.float64)


def finite_rows(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell for each row of (rows, ...) whether all of it is finite."""
    finite: NDArray[np.bool_] = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    return finite


def survey_target(columns: Any, as_labels: bool) -> TargetSurvey:
    """Look at one partition's targets."""
    if not as_labels:
        values = numbers(columns)
        with np.errstate(over="ignore"):  # what float32 does not hold is unusable, too
            unusable = int((~finite_rows(values.astype(np.float32))).sum())
        return TargetSurvey(
            None, unusable, tuple(map(Moments.of, values.reshape(len(values), -1).T)) if len(values) else ()
        )
    column = pd.Series(columns)
    counts = column.value_counts(sort=False)
    counts = counts[counts > 0]
    labels = dict(zip(plain(counts.index), counts.tolist(), strict=True))
    infinite = sum(n for label, n in labels.items() if label in (float("inf"), float("-inf")))
    return TargetSurvey(labels, int(column.isna().sum()) + infinite)


def fit_labels(name: str, surveys: Sequence[TargetSurvey], dtype: Any) -> Labels:
    """Collect the labels of all partitions; `dtype` is the column's."""
    values: set[Hashable] = set().union(*(survey.labels or {} for survey in surveys))
    if len(values) > MOST_CATEGORIES:
        raise DataError(
            f"Target {name!r} must have at most {MOST_CATEGORIES} labels, however it has {len(values)}; "
            "pass classes=False if it is a number to predict"
        )
    require_json(name, values)
    known = tuple(ordered(values))
    if len(known) == 1:
        raise DataError(
            f"Target {name!r} must have two classes or more, however it has one class, {known[0]!r}; add others"
        )
    if isinstance(dtype, pd.CategoricalDtype) and not values <= set(plain(dtype.categories)):
        dtype = pd.CategoricalDtype(pd.Index(list(known)))  # Dask did not know the categories
    return Labels(name, known, dtype)


def is_float(dtype: Any) -> bool:
    """Tell whether targets of `dtype` are numbers unless said otherwise."""
    return bool(pd.api.types.is_float_dtype(dtype))
