"""A table with a target as estimators aim at it: known labels, several labels a row, numbers on one scale."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any, Literal

import numpy as np
from dask.delayed import Delayed
from numpy.typing import NDArray

from dasktrain.data.block import Block, as_block
from dasktrain.data.encoders import ordered, plain
from dasktrain.data.source import Encoding, Survey
from dasktrain.data.table import Table, TableEncoding
from dasktrain.data.target import Indicators, Labels, Standardised, Target, TargetSurvey
from dasktrain.data.tokenised import run_each
from dasktrain.errors import DataError

Aim = Literal["labels", "indicators", "numbers"]
ClassWeight = Mapping[Any, float] | Literal["balanced"] | None


class Aimed(Table):
    """A :class:`dasktrain.Table` for an estimator.

    Parameters
    ----------
    frame, target, numeric, categorical, weight
        Of the table.
    aim
        ``"labels"``: of one column. ``"indicators"``: 0 or 1 in each of several. ``"numbers"``: standardised.
    labels
        Those there may be; None: those there are.
    class_weight
        Label -> factor of its rows' weights, 1 where it has none. ``"balanced"``: rows / (classes x rows of the class).
    encoding
        That of an earlier fit, which this one goes on from; None: fit one.
    """

    def __init__(
        self,
        frame: Any,
        target: str | Sequence[str],
        aim: Aim,
        numeric: Sequence[str] | None = None,
        categorical: Sequence[str] | None = None,
        weight: str | None = None,
        labels: Sequence[Any] | None = None,
        class_weight: ClassWeight = None,
        encoding: TableEncoding | None = None,
    ) -> None:
        super().__init__(frame, target, numeric, categorical, weight, classes=aim == "labels")
        self.aim, self.labels, self.class_weight, self.encoding = aim, labels, class_weight, encoding

    def fit(self, surveys: Sequence[Survey]) -> TableEncoding:
        """Fit an encoding to the surveys of all partitions, in their order, or go on with the one there is."""
        if self.encoding is None:
            return super().fit(surveys)
        self.sample(self.encoding, surveys, 1)  # refuses what does not fit
        return self.encoding

    def _fit_target(self, surveys: Sequence[TargetSurvey]) -> Target:
        names = tuple(self._targets)
        if self.aim == "indicators":
            return Indicators(names, dtype=self._common_dtype())
        if self.aim == "numbers":
            columns = zip(*(survey.moments for survey in surveys if survey.moments), strict=True)
            return Standardised.fit(names, isinstance(self.target, str), [reduce(add, column) for column in columns])
        if self.labels is not None:
            return Labels(names[0], tuple(ordered(plain(self.labels))), self.frame.dtypes[names[0]])
        return super()._fit_target(surveys)

    def _common_dtype(self) -> np.dtype[Any]:
        dtypes = {self.frame.dtypes[name] for name in self._targets}
        found = dtypes.pop()
        return found if isinstance(found, np.dtype) and not dtypes else np.dtype(np.int64)

    def convert(self, encoding: Encoding, surveys: Sequence[Survey], by_class: bool) -> list[Delayed]:
        """Return one task per partition whose result is its Block."""
        blocks = super().convert(encoding, surveys, by_class)
        if self.class_weight is None:
            return blocks
        assert isinstance(encoding.target, Labels)
        weights = class_weights(self.class_weight, encoding.target, [survey.target for survey in surveys])
        return run_each(_reweighted, (weights,), blocks)


def class_weights(wanted: ClassWeight, target: Labels, surveys: Sequence[TargetSurvey]) -> NDArray[np.float64]:
    """Return the factor of each class, (classes,), as scikit-learn's ``class_weight`` says."""
    if isinstance(wanted, str):
        counts = Counter[Any]()
        for survey in surveys:
            counts.update(survey.labels or {})
        rows = np.array([counts[label] for label in target.values])
        return np.asarray(rows.sum() / (np.count_nonzero(rows) * np.maximum(1, rows)), dtype=np.float64)
    factors = dict(zip(plain(wanted or {}), (wanted or {}).values(), strict=True))
    for label in factors.keys() - set(target.values):
        raise DataError(f"Every label of class_weight must be one of {list(target.values)}, however {label!r} is not")
    return np.array([factors.get(label, 1.0) for label in target.values], dtype=np.float64)


def _reweighted(weights: NDArray[np.float64], block: Block) -> Block:
    """Multiply the weights of rows by those of their classes."""
    assert block.target is not None
    factors = weights[block.target.astype(np.int64)]
    given = 1.0 if block.weight is None else block.weight.astype(np.float64)
    return as_block(block.inputs, block.target, factors * given)
