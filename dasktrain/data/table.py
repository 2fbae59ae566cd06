"""A Dask DataFrame (or pandas) as training data."""

from collections import Counter
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.delayed import Delayed

from dasktrain.data.block import Batch, Block, as_block
from dasktrain.data.encoders import (
    Categorical,
    Moments,
    Numeric,
    Values,
    floats,
    is_categorical,
    is_numeric,
)
from dasktrain.data.encodings import TableEncoding
from dasktrain.data.groups import Dealt, Groupable, GroupSurvey
from dasktrain.data.source import Encoding, Persist, Survey, made_up_batch
from dasktrain.data.target import Numbers, Target, TargetSurvey, fit_labels, is_float, survey_target
from dasktrain.errors import DataError, known_keywords, nearest
from dasktrain.shipping import pack, run_packed

#: pandas input is cut into this many partitions, on any cluster: results depend on the partitioning
PANDAS_PARTITIONS = 8


def from_pandas(frame: Any) -> Any:
    """Cut a pandas DataFrame or Series into partitions, with its dtypes as they are."""
    with dask.config.set({"dataframe.convert-string": False}):
        return dd.from_pandas(frame, npartitions=PANDAS_PARTITIONS, sort=False)


class Table(Groupable):
    """A DataFrame with one or several target columns.

    Parameters
    ----------
    frame
        Dask DataFrame, or pandas (cut into 8 partitions). Read twice: once for statistics, once to convert.
        Persist it first if reading is dear.
    target
        Column to predict, or a list of numeric columns to predict together.
    numeric, categorical
        Columns to use as each; an empty list for none. None: all that their dtype makes so and that are not
        named otherwise. :mod:`dasktrain.data.encoders` lists what becomes of each dtype.
    weight
        Column of sample weights, finite and >= 0. Not a feature.
    classes
        Whether the target is a class label. None: unless it is floating point.
    group
        Column of keys: rows of one key are read by one shard, whichever partitions they lie in, and no key may be in
        training and validation data both. Not a feature. Keys are dealt to shards by their hash, evenly by rows.

    Raises
    ------
    DataError
        A column is missing or of a dtype that has no encoding.

    Examples
    --------
    >>> import pandas as pd
    >>> Table(pd.DataFrame({"x": [1.0, 2.0], "colour": ["red", "blue"], "y": [0, 1]}), target="y")
    Table(target='y', numeric=['x'], categorical=['colour'])
    """

    @known_keywords
    def __init__(
        self,
        frame: Any,
        target: str | Sequence[str],
        numeric: Sequence[str] | None = None,
        categorical: Sequence[str] | None = None,
        weight: str | None = None,
        classes: bool | None = None,
        group: str | None = None,
    ) -> None:
        if isinstance(frame, pd.DataFrame):
            frame = from_pandas(frame)
        if not isinstance(frame, dd.DataFrame):
            raise DataError(f"A Table must be made from a Dask or pandas DataFrame, however it is {type(frame)}")
        self.frame = frame
        self.target = target if isinstance(target, str) else list(target)
        self.weight, self.group = weight, group
        self._targets = [target] if isinstance(target, str) else list(target)
        if not self._targets:
            raise DataError("A Table must have a target column, however target is empty")
        self._others = [name for name in (weight, group) if name]
        self._require(*self._targets, *self._others, *(numeric or ()), *(categorical or ()))
        self._check_roles(numeric, categorical)
        self.numeric = self._columns(numeric, is_numeric, categorical)
        self.categorical = self._columns(categorical, is_categorical, numeric)
        if numeric is None and categorical is None:
            self._refuse_unsupported()
        self._check_numeric(*self.numeric, *([weight] if weight else []))
        if not self.numeric and not self.categorical:
            raise DataError("A Table must have feature columns, however only target and weight are left")
        dtypes = [frame.dtypes[name] for name in self._targets]
        self.classes = classes if classes is not None else len(dtypes) == 1 and not is_float(dtypes[0])
        if not self.classes:
            self._check_numeric(*self._targets)
        elif len(dtypes) > 1:
            raise DataError("Class labels must be one column, however the target is several; pass classes=False")

    def __repr__(self) -> str:
        return f"Table(target={self.target!r}, numeric={self.numeric}, categorical={self.categorical})"

    def _require(self, *names: str) -> None:
        columns = [str(column) for column in self.frame.columns]
        for name in names:
            if name not in columns:
                raise DataError(
                    f"Every named column must be in the table, however {name!r} is not; {nearest(name, columns)}"
                )

    def _check_roles(self, numeric: Sequence[str] | None, categorical: Sequence[str] | None) -> None:
        """Refuse columns of one name, and a column that was given two roles."""
        for names, fault in (
            (list(self.frame.columns), "a name of its own, however several are called"),
            (
                [*self._targets, *self._others, *(numeric or ()), *(categorical or ())],
                "one role, however it was given two:",
            ),
        ):
            for name, count in Counter(names).items():
                if count > 1:
                    raise DataError(f"A column must have {fault} {name!r}")

    def _columns(self, given: Sequence[str] | None, fits: Any, other: Sequence[str] | None) -> list[str]:
        if given is not None:
            return list(given)
        taken = {*self._targets, *self._others, *(other or ())}
        return [name for name, dtype in self.frame.dtypes.items() if name not in taken and fits(dtype)]

    def _refuse_unsupported(self) -> None:
        used = {*self._targets, *self._others, *self.numeric, *self.categorical}
        for name, dtype in self.frame.dtypes.items():
            if name not in used:
                raise DataError(
                    f"Every column must have an encoding, however column {name!r} has dtype {dtype}; convert it "
                    "to numbers or strings, or name the columns to use with numeric= and categorical="
                )

    def _check_numeric(self, *names: str) -> None:
        for name in names:
            if not is_numeric(self.frame.dtypes[name]):
                raise DataError(
                    f"Column {name!r} must be numeric here, however its dtype is {self.frame.dtypes[name]}; "
                    "convert it or use it as categorical or as a class label"
                )

    # -- the Source protocol ------------------------------------------------------------------------------

    def staged(self, persist: Persist) -> "Table":
        """Return this table: what is read twice is the user's own."""
        return self

    def survey(self) -> list[Delayed]:
        """Return one task per partition whose result is its Survey."""
        target = self._targets[0] if self.classes or isinstance(self.target, str) else self._targets
        columns = tuple(self.numeric), tuple(self.categorical)
        return self._map(_survey, *columns, target, self.classes, self.weight, self.group)

    def fit(self, surveys: Sequence[Survey]) -> TableEncoding:
        """Fit an encoding to the surveys of all partitions, in their order."""
        moments = [survey.columns["moments"] for survey in surveys]
        values = [survey.columns["values"] for survey in surveys]
        numeric = [reduce(add, (Moments.of_row(each[place]) for each in moments)) for place in range(len(self.numeric))]
        categorical = [reduce(add, column) for column in zip(*values, strict=True)]
        return TableEncoding(
            tuple(map(Numeric.fit, self.numeric, numeric)),
            tuple(map(Categorical.fit, self.categorical, categorical)),
            self._fit_target([survey.target for survey in surveys]),
        )

    def _fit_target(self, surveys: Sequence[TargetSurvey]) -> Target:
        if not self.classes:
            return Numbers(tuple(self._targets), flat=isinstance(self.target, str))
        name = self._targets[0]
        return fit_labels(name, surveys, self.frame.dtypes[name])

    def sample(self, encoding: Encoding, surveys: Sequence[Survey], rows: int) -> Batch:
        """Make up rows like these, if they have the columns that the encoding was fitted to."""
        if not isinstance(encoding, TableEncoding):
            raise DataError("The validation data must be of the training data's kind, however they are a Table")
        encoding.check(self.frame._meta)
        names = encoding.target.names if isinstance(encoding.target, Numbers) else (encoding.target.name,)
        if list(names) != self._targets:
            raise DataError(f"The validation data must have target {list(names)}, however it is {self._targets}")
        for place, name in enumerate(self.numeric):
            infinite = sum(Moments.of_row(survey.columns["moments"][place]).infinite for survey in surveys)
            if infinite:
                raise DataError(
                    f"Column {name!r} of the validation data must be finite or missing, however {infinite} rows are "
                    "infinite; replace them"
                )
        return made_up_batch(encoding.schema, encoding.target, rows, self.weight is not None)

    def convert(self, encoding: Encoding, surveys: Sequence[Survey], by_class: bool) -> list[Delayed]:
        """Return one task per partition whose result is its Block."""
        target = (
            self._targets if isinstance(encoding.target, Numbers) and not encoding.target.flat else self._targets[0]
        )
        return self._map(_convert, encoding, target, self.weight, by_class, self.group, self.dealt)

    def _map(self, function: Any, *bound: Any) -> list[Delayed]:
        names = [*self._targets, *self.numeric, *self.categorical, *self._others]
        # Two selections of one Parquet file may be repartitioned differently, and a persisted selection is
        # broken, while this stage of the optimiser is on (dask#12193, dask#12488).
        with dask.config.set({"optimization.tune.active": False}):
            mapped = dd.map_partitions(
                run_packed,
                pack(function, *bound),
                self.frame[list(dict.fromkeys(names))],
                meta=pd.Series(dtype=object),
                enforce_metadata=False,
            )
            delayed: list[Delayed] = mapped.to_delayed()
        return delayed


def _survey(
    numeric: tuple[str, ...],
    categorical: tuple[str, ...],
    target: Any,
    classes: bool,
    weight: str | None,
    group: str | None,
    frame: pd.DataFrame,
) -> Survey:
    # As one array: of hundreds of columns a thousand objects a partition are more than a worker has memory for.
    moments = np.array([Moments.of(floats(frame[name])).row() for name in numeric]).reshape(-1, 7)
    values: list[Values] = []
    for name in categorical:
        try:
            values.append(Values.of(frame[name]))
        except TypeError as error:
            raise DataError(
                f"Column {name!r} (dtype {frame[name].dtype}) must hold strings or other plain values, "
                f"however {error}; convert it or leave it out with categorical="
            ) from error
    weights = floats(frame[weight]) if weight else np.empty(0)
    return Survey(
        len(frame),
        survey_target(frame[target], classes),
        int((~(weights >= 0) | np.isinf(weights)).sum()),
        columns={"moments": moments, "values": values},
        groups=GroupSurvey.of(frame[group]) if group else None,
    )


def _convert(
    encoding: TableEncoding,
    target: Any,
    weight: str | None,
    by_class: bool,
    group: str | None,
    dealt: Dealt | None,
    frame: pd.DataFrame,
) -> Block:
    if dealt is not None:
        frame = frame.iloc[dealt.order(frame[group])]
    encoded = encoding.target.encode(frame[target])
    if by_class:
        order = np.argsort(encoded, kind="stable")
        frame, encoded = frame.iloc[order], encoded[order]
    return as_block(encoding.inputs(frame), encoded, floats(frame[weight]) if weight else None)
