"""A table with a target as estimators aim at it: known labels, several labels a row, numbers on one scale."""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any, Literal

import numpy as np

from dasktrain.data.encoders import ordered, plain
from dasktrain.data.encodings import TableEncoding
from dasktrain.data.source import Survey
from dasktrain.data.table import Table
from dasktrain.data.target import Indicators, Labels, Standardised, Target, TargetSurvey

Aim = Literal["labels", "indicators", "numbers"]


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
        encoding: TableEncoding | None = None,
    ) -> None:
        super().__init__(frame, target, numeric, categorical, weight, classes=aim == "labels")
        self.aim, self.labels, self.encoding = aim, labels, encoding

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
