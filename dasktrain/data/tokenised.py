"""Texts as training data: where they are read from, and their tokens, made once."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import dask
import dask.bag as db
import dask.dataframe as dd
import pandas as pd
from dask.delayed import Delayed

from dasktrain.data.block import Batch
from dasktrain.data.fields import Field, column, strings
from dasktrain.data.ragged import Ragged
from dasktrain.data.source import Encoding, Persist, Survey
from dasktrain.data.table import PANDAS_PARTITIONS, from_pandas
from dasktrain.data.tokens import Tokenizer, cut_to
from dasktrain.errors import DataError
from dasktrain.shipping import pack, run_packed

S = TypeVar("S", bound="TextSource")


class Tokenised(NamedTuple):
    """One partition's texts as tokens."""

    texts: Ragged
    written: Ragged | None  # the text that each is to be turned into
    labels: list[Any] | None
    cut: int  # texts that were longer than they may be


@dataclass(frozen=True)
class Reader:
    """Turns a partition into tokens; travels to the workers.

    Attributes
    ----------
    fields : tuple
        Of a record: where its text, its label and the text to write are. A first None: the record is the text.
    tokenizers : tuple of Tokenizer
        Of texts read and of those written.
    longest : int or None
        Tokens that a text may have; None: texts are parts of a stream.
    """

    fields: tuple[Field | None, Field | None, Field | None]
    tokenizers: tuple[Tokenizer, Tokenizer]
    longest: int | None

    def __call__(self, partition: Any, number: int) -> Tokenised:
        """Tokenise one partition."""
        text, label, into = self.fields
        records = partition if isinstance(partition, pd.DataFrame) else list(partition)
        read, write = self.tokenizers
        texts, cut = read.encode(strings(column(records, text, number), f"partition {number}"), self.longest)
        written, more = None, 0
        if into is not None:
            # Without tokens that say where it begins and ends, and a place less: a batch adds `start` and `end`.
            whole, _ = write.encode(strings(column(records, into, number), f"partition {number}"), None)
            written, more = cut_to(whole, None if self.longest is None else self.longest - 1)
        return Tokenised(texts, written, None if label is None else column(records, label, number), cut + more)


class TextSource(ABC):
    """Partitions of texts; each kind of task has a body of its own.

    Parameters
    ----------
    partitions
        One task each, whose result is a DataFrame or an iterable of records.
    reader
        How they become tokens.
    """

    def __init__(self, partitions: Sequence[Delayed], reader: Reader) -> None:
        self.reader = reader
        self.tokens = run_each(reader, (), partitions, range(len(partitions)))

    def staged(self: S, persist: Persist) -> S:
        """Return this source with its tokens in the cluster's memory."""
        staged = copy.copy(self)
        staged.tokens = persist(self.tokens)
        return staged

    @abstractmethod
    def survey(self) -> list[Delayed]:
        """Return one task per partition whose result is its Survey."""

    @abstractmethod
    def fit(self, surveys: Sequence[Survey]) -> Encoding:
        """Fit an encoding to the surveys of all partitions, in their order."""

    @abstractmethod
    def sample(self, encoding: Encoding, surveys: Sequence[Survey], rows: int) -> Batch:
        """Make up texts like these, if they fit the encoding."""

    @abstractmethod
    def convert(self, encoding: Encoding, surveys: Sequence[Survey], by_class: bool) -> list[Delayed]:
        """Return one task per partition whose result is its Block."""


def run_each(function: Callable[..., Any], bound: tuple[Any, ...], *columns: Iterable[Any]) -> list[Delayed]:
    """Return a task for each of the columns' rows that calls ``function(*bound, *row)``.

    What is bound goes to the cluster as bytes, once for all tasks however large a tokenizer is.
    """
    shipped = dask.delayed(pack(function, *bound), pure=True)
    run = dask.delayed(run_packed, name=f"dasktrain-{getattr(function, '__name__', 'read').strip('_')}", pure=True)
    return [run(shipped, *row) for row in zip(*columns, strict=True)]


def opened(source: Any) -> Any:
    """Return the DataFrame that a URL stands for, anything else as it is."""
    return dd.read_parquet(str(source)) if isinstance(source, str | Path) else source


def partitions_of(source: Any, text: Field | None, *others: Field | None) -> tuple[list[Delayed], Field | None]:
    """Return one task per partition of what a user may give as texts, and the field that holds them.

    Of a DataFrame's columns only that one and the `others` are read.
    """
    source = opened(source)
    if isinstance(source, pd.DataFrame | pd.Series):
        source = from_pandas(source.to_frame() if isinstance(source, pd.Series) else source)
    if isinstance(source, dd.Series):
        source = source.to_frame()
    if isinstance(source, dd.DataFrame):
        names = list(source.columns)
        text = names[0] if text is None and len(names) == 1 else text
        if text not in names:
            raise DataError(f"text must name the column that holds texts, one of {names}, however it is {text!r}")
        read = [name for name in names if name == text or name in others]
        with dask.config.set({"optimization.tune.active": False}):
            return list(source[read].to_delayed()), text
    if isinstance(source, list | tuple):
        source = db.from_sequence(source, npartitions=min(PANDAS_PARTITIONS, max(1, len(source))))
    if not isinstance(source, db.Bag):
        raise DataError(
            "Texts must come as a Dask Bag, a DataFrame or Series, a list or the URL of a Parquet data set, however "
            f"they are {type(source)}"
        )
    return list(source.to_delayed()), text
