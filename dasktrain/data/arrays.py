"""Dask Arrays (or NumPy) as training data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed
from numpy.typing import NDArray

from dasktrain.data.block import Array, Batch, Block, as_block
from dasktrain.data.encodings import ArrayEncoding
from dasktrain.data.groups import Dealt, Groupable, GroupSurvey
from dasktrain.data.source import Encoding, Input, Persist, Schema, Survey, made_up_batch
from dasktrain.data.table import PANDAS_PARTITIONS
from dasktrain.data.target import Numbers, Target, finite_rows, fit_labels, is_float, survey_target
from dasktrain.errors import DataError, known_keywords
from dasktrain.shipping import pack, run_packed


@dataclass(frozen=True)
class Extent:
    """Rows of a block that are not finite, and its smallest and largest integer."""

    unusable: int
    least: int
    top: int


class Arrays(Groupable):
    """An array of rows and an array of their targets.

    Parameters
    ----------
    X
        (rows, ...) Dask or NumPy array; chunk sizes may be unknown. Chunks along other axes are joined.
        Not standardised.
    y
        (rows,) labels or numbers, or (rows, targets) numbers. Its blocks must match X's where sizes are unknown.
    weight
        (rows,) sample weights, finite and >= 0.
    classes
        Whether y is a class label. None: unless it is floating point or has several columns.
    group
        (rows,) keys: rows of one key are read by one shard; see :class:`dasktrain.Table`.
    """

    @known_keywords
    def __init__(self, X: Any, y: Any, weight: Any = None, classes: bool | None = None, group: Any = None) -> None:
        self.X = as_features(X)
        if self.X.dtype.kind not in "fiub":
            raise DataError(f"X must be numeric, however its dtype is {self.X.dtype}; use dt.Table for columns")
        self.y = like(y, self.X, "y")
        self.weight = None if weight is None else like(weight, self.X, "weight")
        self.group = None if group is None else like(group, self.X, "group")
        self.classes = classes if classes is not None else self.y.ndim == 1 and not is_float(self.y.dtype)
        self._check_kinds()
        if self.classes and self.y.ndim != 1:
            raise DataError(f"Class labels must be (rows,), however y has {self.y.ndim} dimensions; pass classes=False")

    def _check_kinds(self) -> None:
        numbers = [("weight", self.weight, 1)] if self.weight is not None else []
        numbers += [] if self.classes else [("y", self.y, 2)]
        for name, array, most in numbers:
            if array.dtype.kind not in "fiub" or array.ndim > most:
                raise DataError(
                    f"{name} must be numeric with at most {most} dimensions, however it has {array.ndim} of "
                    f"{array.dtype}; convert it"
                )
        if self.group is not None and self.group.ndim != 1:
            raise DataError(f"group must be a key a row, (rows,), however it has {self.group.ndim} dimensions")
        if self.y.dtype.kind == "c":
            raise DataError(f"Labels must be of a kind that can be sorted, however y is {self.y.dtype}; convert it")

    def __repr__(self) -> str:
        return f"Arrays(X={self.X}, y={self.y})"

    def staged(self, persist: Persist) -> "Arrays":
        """Return these arrays: what is read twice is the user's own."""
        return self

    def survey(self) -> list[Delayed]:
        """Return one task per block of rows whose result is its Survey."""
        return self._map(_survey, self.classes)

    def fit(self, surveys: Sequence[Survey]) -> ArrayEncoding:
        """Fit an encoding to the surveys of all blocks, in their order."""
        reach = self._input(surveys, "X")
        bound = None if reach.bounds is None else reach.bounds[0]
        target: Target = Numbers(tuple(f"y{place}" for place in range(self._targets)), flat=self.y.ndim == 1)
        if self.classes:
            target = fit_labels("y", [survey.target for survey in surveys], self.y.dtype)
        return ArrayEncoding(reach.shape, reach.least, bound, target)

    @property
    def _targets(self) -> int:
        return 1 if self.y.ndim == 1 else int(self.y.shape[1])

    def _input(self, surveys: Sequence[Survey], name: str) -> Input:
        """Return what X is to the model, if all of it is finite."""
        extents: list[Extent] = [survey.columns["X"] for survey in surveys]
        unusable = sum(extent.unusable for extent in extents)
        if unusable:
            raise DataError(f"{name} must be finite, however {unusable} rows hold NaN or infinity; fill or drop them")
        least, top = min(extent.least for extent in extents), max(extent.top for extent in extents)
        shape = tuple(int(size) for size in self.X.shape[1:])
        return Input(shape, (top + 1,), least) if self.X.dtype.kind in "iu" else Input(shape)

    def sample(self, encoding: Encoding, surveys: Sequence[Survey], rows: int) -> Batch:
        """Make up rows like these, if they are like those that the encoding was fitted to."""
        if not isinstance(encoding, ArrayEncoding):
            raise DataError("The validation data must be of the training data's kind, however they are Arrays")
        reach = self._input(surveys, "X of the validation data")
        if reach.shape != encoding.shape or (reach.bounds is None) != (encoding.bound is None):
            raise DataError(
                f"Validation rows must have shape {encoding.shape} and training's kind of dtype, however they have "
                f"shape {reach.shape} and {self.X.dtype}"
            )
        if not self.classes and self._targets != encoding.target.num_outputs:
            raise DataError(
                f"Validation y must have {encoding.target.num_outputs} columns, however it has {self._targets}"
            )
        schema = Schema((reach,), encoding.target.num_outputs)
        return made_up_batch(schema, encoding.target, rows, self.weight is not None)

    def convert(self, encoding: Encoding, surveys: Sequence[Survey], by_class: bool) -> list[Delayed]:
        """Return one task per block of rows whose result is its Block."""
        return self._map(_convert, encoding, by_class, self.dealt)

    def _map(self, function: Any, *bound: Any) -> list[Delayed]:
        parts = {"X": self.X, "y": self.y, "weight": self.weight, "group": self.group}
        columns = {name: part.to_delayed().ravel() for name, part in parts.items() if part is not None}
        payload = pack(_by_name, function, bound, tuple(columns))
        run = dask.delayed(run_packed, name=f"dasktrain-{function.__name__}", pure=True)
        return [run(payload, *pieces) for pieces in zip(*columns.values(), strict=True)]


def as_features(array: Any) -> da.Array:
    """Return an array as blocks of whole rows, (rows, 1) if it was (rows,)."""
    blocks = as_blocks(array)
    return blocks[:, None] if blocks.ndim == 1 else blocks


def as_blocks(array: Any) -> da.Array:
    """Return an array as blocks of whole rows."""
    if not isinstance(array, da.Array):
        array = np.asarray(array)
        if array.ndim == 0:
            raise DataError("Arrays must have rows, however a scalar was given")
        rows = max(1, -(-len(array) // PANDAS_PARTITIONS))
        array = da.from_array(array, chunks=(rows, *array.shape[1:]))
    return array.rechunk(dict.fromkeys(range(1, array.ndim), -1)) if array.ndim > 1 else array


def like(array: Any, rows: da.Array, name: str) -> da.Array:
    """Give `array` the row blocks of `rows`."""
    array = as_blocks(array)
    known = not any(math.isnan(size) for size in (*array.chunks[0], *rows.chunks[0]))
    if known and array.shape[0] != rows.shape[0]:
        raise DataError(f"{name} must have a row for each of X's {rows.shape[0]}, however it has {array.shape[0]}")
    if known:
        return array.rechunk({0: rows.chunks[0]})
    if array.numblocks[0] != rows.numblocks[0]:
        raise DataError(
            f"{name} must have X's {rows.numblocks[0]} blocks where sizes are unknown, however it has "
            f"{array.numblocks[0]}; call compute_chunk_sizes() on both"
        )
    return array


def _by_name(function: Any, bound: tuple[Any, ...], names: tuple[str, ...], *blocks: Any) -> Any:
    return function(*bound, **dict(zip(names, blocks, strict=True)))


def _survey(classes: bool, X: Array, y: Array, weight: NDArray[np.float64] | None = None, group: Any = None) -> Survey:
    if not len(X) == len(y) == len(y if weight is None else weight) == len(y if group is None else group):
        raise DataError(f"X and y must have the same rows in each block, however they have {len(X)} and {len(y)}")
    bad = least = top = 0
    if X.dtype.kind in "iu" and X.size:
        least, top = min(0, int(X.min())), int(X.max())
    elif X.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what float32 does not hold is unusable, too
            bad = int((~finite_rows(X.astype(np.float32))).sum())
    weights = np.empty(0) if weight is None else np.asarray(weight, dtype=np.float64)
    unusable = int((~(weights >= 0) | np.isinf(weights)).sum())
    groups = None if group is None else GroupSurvey.of(group)
    return Survey(len(X), survey_target(y, classes), unusable, columns={"X": Extent(bad, least, top)}, groups=groups)


def _convert(
    encoding: ArrayEncoding,
    by_class: bool,
    dealt: Dealt | None,
    X: Array,
    y: Array,
    weight: NDArray[np.float64] | None = None,
    group: Any = None,
) -> Block:
    target = encoding.target.encode(y)
    order: Any = np.argsort(target, kind="stable") if by_class else slice(None)
    if dealt is not None:
        order = dealt.order(group)
    weights = None if weight is None else np.asarray(weight, dtype=np.float64)[order]
    return as_block(encoding.inputs(np.asarray(X)[order]), target[order], weights)
