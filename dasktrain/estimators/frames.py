"""Features, targets and weights, in one collection or apart, as one frame with a name for each column.

=============================  ====================================================================================
given                          becomes
=============================  ====================================================================================
a frame and names of columns   itself
a frame and other collections  the frame with more columns, joined partition by partition, or row by row in memory
an array                       a frame with columns x0, x1, ...
=============================  ====================================================================================
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd

from dasktrain.data.arrays import as_features, like
from dasktrain.errors import DataError
from dasktrain.shipping import pack, run_packed


class Given(NamedTuple):
    """What `fit` is given: a frame with names of columns, or collections."""

    X: Any
    y: Any
    weight: Any = None


@dataclass(frozen=True)
class Joined:
    """A frame that has all columns, and which of them are the target and the weight."""

    frame: Any
    target: str | list[str]
    weight: str | None

    @property
    def targets(self) -> list[str]:
        """Names of the target's columns."""
        return [self.target] if isinstance(self.target, str) else self.target


def is_dask(X: Any) -> bool:
    """Tell whether rows are on a cluster."""
    return isinstance(X, dd.DataFrame | da.Array)


def is_frame(X: Any) -> bool:
    """Tell whether columns may have names."""
    return isinstance(X, dd.DataFrame | pd.DataFrame)


def names_columns(X: Any, y: Any) -> bool:
    """Tell whether `y` is the name of a column of `X`, or a list of such names."""
    if isinstance(y, str):
        if not is_frame(X):
            raise DataError(f"y must name a column of a DataFrame, however X is {type(X)}; give its values")
        return True
    listed = isinstance(y, list) and bool(y) and all(isinstance(name, str) for name in y)
    return listed and is_frame(X) and len(set(y)) == len(y) and set(y) <= set(X.columns)


def named(given: Given) -> list[str]:
    """Return the columns of X that are not features."""
    columns = ([given.y] if isinstance(given.y, str) else given.y) if names_columns(given.X, given.y) else []
    columns = [*columns, given.weight] if isinstance(given.weight, str) else list(columns)
    for name in columns:
        if name not in given.X.columns:
            raise DataError(f"y and sample_weight must name columns of X, however {name!r} is not; it has {[*given.X]}")
    return columns


def without(X: Any, columns: Iterable[str]) -> Any:
    """Return a frame without columns, where it has them; anything else as it is."""
    dropped = set(columns)
    return X[[name for name in X.columns if name not in dropped]] if is_frame(X) and dropped else X


def column_names(X: Any) -> list[str]:
    """Return the names of columns, if all are text, else x0, x1, ..."""
    named = is_frame(X) and all(isinstance(name, str) for name in X.columns)
    return list(X.columns) if named else _numbered("x", X.shape[1])


def as_frame(X: Any, names: Sequence[str]) -> Any:
    """Return features as a frame with these names for its columns."""
    if is_frame(X):
        return X if list(X.columns) == names else X.rename(columns=dict(zip(X.columns, names, strict=True)))
    return dd.from_dask_array(as_features(X), columns=names) if is_dask(X) else pd.DataFrame(X, columns=list(names))


def joined(given: Given, names: Sequence[str]) -> Joined:
    """Return everything as one frame; `names` are those of features that are apart from their targets."""
    X, y, weight = given
    together = names_columns(X, y)
    frame, target = X if together else as_frame(X, names), y
    taken, parts = list(frame.columns), []
    if not together:
        targets = _free(_names_of(y), taken)
        target = targets if _width(y) is not None else targets[0]
        parts.append((y, targets))
    if weight is not None and not isinstance(weight, str):
        (name,) = _free(["weight"], [*taken, *(name for _, labels in parts for name in labels)])
        parts.append((weight, [name]))
        weight = name
    return Joined(_beside(X, frame, parts), target, weight)


def _names_of(y: Any) -> list[str]:
    if hasattr(y, "columns"):
        return list(map(str, y.columns))
    width = _width(y)
    return [str(y.name) if isinstance(y, dd.Series) and y.name else "y"] if width is None else _numbered("y", width)


def _width(y: Any) -> int | None:
    """Return how many columns there are, None if there is no second axis."""
    return int(y.shape[1]) if len(y.shape) > 1 else None


def _numbered(letter: str, count: int) -> list[str]:
    return [f"{letter}{number}" for number in range(count)]


def _free(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Return names that are not taken."""
    found = []
    for name in names:
        while name in taken or name in found:
            name += "_"
        found.append(name)
    return found


def _beside(X: Any, frame: Any, parts: list[tuple[Any, list[str]]]) -> Any:
    """Return a frame with more columns."""
    if not parts:
        return frame
    names = [names for _, names in parts]
    if isinstance(frame, pd.DataFrame):
        return _with_columns(names, frame, *(values for values, _ in parts))
    collections = [_partitioned(values, X, frame, names) for values, names in parts]
    with dask.config.set({"optimization.tune.active": False}):
        return dd.map_partitions(
            run_packed,
            pack(_with_columns, names),
            frame,
            *collections,
            align_dataframes=False,
            meta=_with_columns(names, frame._meta, *(part._meta for part in collections)),
        )


def _partitioned(values: Any, X: Any, frame: Any, names: list[str]) -> Any:
    """Return a Dask Series or DataFrame with the partitions of `frame`."""
    if not isinstance(values, dd.DataFrame | dd.Series):
        if not isinstance(X, da.Array) and not isinstance(values, da.Array):
            raise DataError(
                "What belongs to a Dask DataFrame must be one of its columns or a Dask collection, however "
                f"{names} are {type(values)}; make it a column"
            )
        array = like(values, as_features(X), str(names)) if isinstance(X, da.Array) else values
        values = dd.from_dask_array(array, columns=names[0] if array.ndim == 1 else names)
    if values.npartitions != frame.npartitions:
        raise DataError(
            f"Collections that belong together must have the same partitions, however X has {frame.npartitions} and "
            f"{names} {values.npartitions}; make one a column of the other"
        )
    return values


def _with_columns(names: list[list[str]], frame: pd.DataFrame, *parts: Any) -> pd.DataFrame:
    columns: dict[str, Any] = {}
    for labels, part in zip(names, parts, strict=True):
        if len(part) != len(frame):
            raise DataError(
                f"X and {labels} must have the same rows in each partition, however they have {len(frame)} and "
                f"{len(part)}; make one a column of the other"
            )
        if part.ndim == 1:
            columns[labels[0]] = getattr(part, "array", part)
        else:
            columns |= dict(zip(labels, np.asarray(part).T, strict=True))
    return pd.concat([frame, pd.DataFrame(columns, index=frame.index)], axis=1)
