"""How rows of tables, arrays and labelled texts become a model's inputs; Dask is not needed for it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dasktrain.data.block import Array, Batch, Collate, Column, Gathered, Stack
from dasktrain.data.encoders import Categorical, Numeric, floats, is_numeric
from dasktrain.data.fields import strings, texts_of
from dasktrain.data.plain import to_json
from dasktrain.data.source import Input, Schema
from dasktrain.data.target import Target
from dasktrain.data.tokens import Vocabulary
from dasktrain.errors import DataError


@dataclass(frozen=True)
class TableEncoding:
    """How a table's columns become ``model(numeric, categorical)``; an input without columns is left out.

    numeric is (rows, features) float32: the numeric columns in order, then missing-value indicators.
    categorical is (rows, columns) int64.
    """

    numeric: tuple[Numeric, ...]
    categorical: tuple[Categorical, ...]
    target: Target

    @property
    def schema(self) -> Schema:
        """What a model must fit."""
        names = [column.name for column in self.numeric]
        names += [f"{column.name} is missing" for column in self.numeric if column.indicator]
        cardinalities = tuple(column.cardinality for column in self.categorical)
        inputs = [Input((len(names),))] if names else []
        inputs += [Input((len(cardinalities),), cardinalities)] if cardinalities else []
        return Schema(tuple(inputs), self.target.num_outputs, tuple(names), cardinalities)

    @property
    def collate(self) -> Collate:
        """Batches are arrays as they are."""
        return Stack()

    def check(self, frame: pd.DataFrame) -> None:
        """Raise DataError if `frame`, a partition or its empty model, lacks a column or has it of another kind."""
        for column in (*self.numeric, *self.categorical):
            name: str = column.name  # type: ignore[attr-defined]
            if name not in frame:
                raise DataError(
                    f"The table must have the columns the model was trained on, however {name!r} is "
                    f"not among {list(frame.columns)}"
                )
            if isinstance(column, Numeric) and not is_numeric(frame[name].dtype):
                raise DataError(
                    f"Column {name!r} must be numeric as in training, however here it is {frame[name].dtype} "
                    "(text or another kind); convert it"
                )

    def inputs(self, partition: pd.DataFrame) -> tuple[Array, ...]:
        """Encode one partition."""
        self.check(partition)
        inputs: list[Array] = []
        rows = len(partition)
        if self.numeric:
            width = len(self.numeric) + sum(column.indicator for column in self.numeric)
            encoded = np.empty((rows, width), dtype=np.float32)
            indicators = iter(range(len(self.numeric), width))
            for place, column in enumerate(self.numeric):
                encoded[:, place], missing = column.encode(floats(partition[column.name]))
                if column.indicator:
                    encoded[:, next(indicators)] = missing
            inputs.append(encoded)
        if self.categorical:
            codes = [column.encode(partition[column.name]) for column in self.categorical]
            inputs.append(np.stack(codes, axis=1))
        return tuple(inputs)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "source": "table",
            "numeric": [to_json(column) for column in self.numeric],
            "categorical": [to_json(column) for column in self.categorical],
            "target": to_json(self.target),
        }


@dataclass(frozen=True)
class ArrayEncoding:
    """How rows of an array become ``model(X)``: floats and booleans as float32, integers as int64."""

    shape: tuple[int, ...]
    least: int  # smallest integer
    bound: int | None  # exclusive upper bound of integers, None for floats
    target: Target

    @property
    def schema(self) -> Schema:
        """What a model must fit."""
        bounds = None if self.bound is None else (self.bound,)
        return Schema((Input(self.shape, bounds, self.least),), self.target.num_outputs)

    @property
    def collate(self) -> Collate:
        """Batches are arrays as they are."""
        return Stack()

    def inputs(self, partition: Array) -> tuple[Array, ...]:
        """Encode one block of rows."""
        partition = np.asarray(partition)
        if partition.shape[1:] != self.shape:
            raise DataError(f"Rows must have shape {self.shape}, however they have shape {partition.shape[1:]}")
        return (np.ascontiguousarray(partition, dtype=np.float32 if self.bound is None else np.int64),)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        target = to_json(self.target)
        return {"source": "arrays", "shape": self.shape, "least": self.least, "bound": self.bound, "target": target}


@dataclass(frozen=True)
class Padded:
    """Pads texts to the longest of their batch."""

    pad: int

    by_length = True

    def __call__(self, rows: Gathered) -> Batch:
        """Return (rows, longest) tokens and their mask."""
        (texts,) = rows.columns
        read = {"input_ids": texts.padded(self.pad), "attention_mask": texts.mask()}
        return Batch(read, rows.target, rows.weight, rows.count)


@dataclass(frozen=True)
class LabelledEncoding:
    """How texts become ``model(input_ids, attention_mask)``, and outputs labels."""

    vocabulary: Vocabulary
    context: int
    text: Any  # the column or field they are in; None: they are the records
    target: Target

    @property
    def schema(self) -> Schema:
        """What a model must fit."""
        return Schema((Input((self.context,), (self.vocabulary.size,)),), self.target.num_outputs)

    @property
    def collate(self) -> Collate:
        """Batches are padded."""
        return Padded(self.vocabulary.pad)

    def check(self, frame: Any) -> None:
        """Raise DataError if `frame`, a partition or its empty model, lacks the column of texts."""
        if isinstance(frame, pd.DataFrame) and self.text not in frame:
            raise DataError(
                f"The data must have the column of texts the model was trained on, however {self.text!r} is not among "
                f"{list(frame.columns)}"
            )

    def inputs(self, partition: Any) -> tuple[Column, ...]:
        """Tokenise one partition: a DataFrame, a Series, or an iterable of texts or of records as in training."""
        texts = texts_of(partition, self.text)
        return (self.vocabulary.encode(strings(texts, "the texts to predict for"), self.context)[0],)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "source": "labelled",
            "vocabulary": self.vocabulary.to_json(),
            "context": self.context,
            "text": self.text,
            "target": to_json(self.target),
        }
