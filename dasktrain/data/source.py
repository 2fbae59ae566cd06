"""What every source of data does: survey its partitions once, fit, then convert them where they lie."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dasktrain.data.block import Batch, Collate, Column
from dasktrain.data.groups import GroupSurvey
from dasktrain.data.target import Labels, Target, TargetSurvey
from dasktrain.domain import made_up
from dasktrain.errors import DataError, PlanError
from dasktrain.plan import rows_only

if TYPE_CHECKING:
    from dask.delayed import Delayed


@dataclass(frozen=True)
class Input:
    """One tensor the module is called with.

    Attributes
    ----------
    shape : tuple of int
        Of one row.
    bounds : tuple of int or None
        None for float32. For int64: exclusive upper bound of each element along the last axis, or one for all.
    least : int
        Smallest integer.
    """

    shape: tuple[int, ...]
    bounds: tuple[int, ...] | None = None
    least: int = 0


@dataclass(frozen=True)
class Schema:
    """What a model must fit; a callable ``model(schema)`` is given it.

    Attributes
    ----------
    inputs : tuple of Input
        What the module is called with, in order.
    feature_names : tuple of str
        Columns of the numeric input, missing-value indicators last.
    cardinalities : tuple of int
        For each categorical column, the rows its embedding needs.
    num_outputs : int
        Classes, or target columns.
    """

    inputs: tuple[Input, ...]
    num_outputs: int
    feature_names: tuple[str, ...] = ()
    cardinalities: tuple[int, ...] = ()

    @property
    def num_features(self) -> int:
        """Width of a row of the first float input."""
        return next((int(np.prod(part.shape)) for part in self.inputs if part.bounds is None), 0)

    @property
    def vocab_size(self) -> int:
        """One more than the largest integer of the first input that has any: tokens of a text."""
        return next((max(part.bounds) for part in self.inputs if part.bounds), 0)

    @property
    def context(self) -> int:
        """Length of a row of the first input, or of the longest: tokens of a text."""
        return self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else 0


@dataclass(frozen=True)
class Survey:
    """What one look at a partition found."""

    rows: int
    target: TargetSurvey
    unusable_weights: int = 0
    cut: int = 0  # texts that were longer than they may be
    columns: Mapping[str, Any] = field(default_factory=dict)  # what the source itself wants to know
    groups: GroupSurvey | None = None


class Encoding(Protocol):
    """How rows become inputs and outputs become predictions; travels with the trained model."""

    @property
    def target(self) -> Target | None:
        """What is predicted of a row; None: something that is neither a label nor a number."""

    @property
    def schema(self) -> Schema:
        """What a model must fit."""

    @property
    def collate(self) -> Collate:
        """What makes batches of what `inputs` returned."""

    def inputs(self, partition: Any) -> tuple[Column, ...]:
        """Return what a block has of one partition's rows."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values from which `encoding_from_json` makes an equal encoding."""


#: given tasks, returns tasks in their place whose results stay on the cluster as long as they are referred to
Persist = Callable[[Sequence["Delayed"]], list["Delayed"]]


class Source(Protocol):
    """Rows with targets, in Dask partitions."""

    def staged(self, persist: Persist) -> "Source":
        """Return this source with what both `survey` and `convert` start from in memory, if it is dear to compute."""

    def survey(self) -> "list[Delayed]":
        """Return one task per partition whose result is its Survey."""

    def fit(self, surveys: Sequence[Survey]) -> Encoding:
        """Fit an encoding to the surveys of all partitions, in their order."""

    def sample(self, encoding: Encoding, surveys: Sequence[Survey], rows: int) -> Batch:
        """Make up a batch that is as wide, and whose integers are as large, as any of these rows.

        It has `rows` rows, or fewer where rows are long.

        Raises
        ------
        DataError
            The rows do not fit the encoding, which was fitted to others.
        """

    def convert(self, encoding: Encoding, surveys: Sequence[Survey], by_class: bool) -> "list[Delayed]":
        """Return one task per partition whose result is its Block, rows sorted by class if asked for."""


def check_surveys(surveys: Sequence[Survey], name: str, target: Target | None = None) -> None:
    """Refuse a data set without rows, with targets or weights that cannot be used, or with unknown labels.

    Raises
    ------
    DataError
        Names the partition and how many of its rows are to blame.
    """
    if not any(survey.rows for survey in surveys):
        raise DataError(f"The {name} data must have rows, however all {len(surveys)} partitions are empty")
    for number, survey in enumerate(surveys):
        where = f"partition {number} of the {name} data"
        if survey.target.unusable:
            raise DataError(
                f"Every target must be present and finite, however {survey.target.unusable} of {survey.rows} "
                f"in {where} are missing or infinite; drop those rows"
            )
        if survey.unusable_weights:
            raise DataError(
                f"Every weight must be finite and not negative, however {survey.unusable_weights} of "
                f"{survey.rows} in {where} are; drop those rows"
            )
        if survey.groups is not None and survey.groups.missing:
            raise DataError(
                f"Every row must have a group, however {survey.groups.missing} of {survey.rows} in {where} have none; "
                "fill them in or drop those rows"
            )
        if target is not None:
            target.check(survey.target, where)


def groups_of(surveys: Sequence[Survey]) -> list[GroupSurvey]:
    """Return what was found of partitions' groups; nothing if rows have none."""
    return [survey.groups for survey in surveys if survey.groups is not None]


def strata(surveys: Sequence[Survey], target: Target | None) -> NDArray[np.int64]:
    """Return rows of each of the target's classes in each partition, (partitions, classes); None: one class."""
    if target is None:
        return rows_only([survey.rows for survey in surveys])
    if not isinstance(target, Labels):
        raise PlanError(
            'partition="stratified" must have class labels to balance, however the target is numeric; '
            'use "block" or "random"'
        )
    counts = [survey.target.labels or {} for survey in surveys]
    return np.array([[rows.get(label, 0) for label in target.values] for rows in counts])


def made_up_batch(schema: Schema, target: Target, rows: int, weighted: bool) -> Batch:
    """Make up a batch that is as wide, and whose integers are as large, as any of the data."""
    return Batch(
        inputs=tuple(
            made_up(rows, *part.shape) if part.bounds is None else _integers(part, rows) for part in schema.inputs
        ),
        target=sample_target(target, rows),
        weight=torch.ones(rows, dtype=torch.float64) if weighted else None,
        rows=rows,
    )


def _integers(part: Input, rows: int) -> Tensor:
    """Return (rows, ...) of the largest integers, every other one the smallest if that is below zero."""
    assert part.bounds is not None
    values = torch.tensor(part.bounds).sub(1).expand(rows, *part.shape).clone()
    if part.least < 0:
        values.view(-1)[::2] = part.least
    return values


def sample_target(target: Target, rows: int) -> Tensor:
    """Make up targets, labels as large as any."""
    if isinstance(target, Labels):
        return torch.full((rows,), target.num_outputs - 1)
    return torch.zeros(rows) if target.flat else torch.zeros(rows, target.num_outputs)
