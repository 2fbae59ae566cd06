"""Documents as one stream of tokens, cut into rows of equal length: what a language model learns from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dask.delayed import Delayed

from dasktrain.data.block import Batch, Block, Column, Gathered, as_block
from dasktrain.data.ragged import Ragged
from dasktrain.data.source import Encoding, Input, Schema, Survey
from dasktrain.data.target import TargetSurvey
from dasktrain.data.tokenised import TextSource, Tokenised, run_each
from dasktrain.data.tokens import Vocabulary
from dasktrain.errors import BadInput, DataError

#: what a loss leaves out, as torch's do by default
IGNORED = -100
#: tokens of a made-up batch, about
SAMPLE_TOKENS = 2048


@dataclass(frozen=True)
class Stretch:
    """One partition's part of the stream.

    Attributes
    ----------
    start, stop : int
        Its place in the stream, in tokens.
    total : int
        Tokens of the stream.
    top : int
        Largest token.
    """

    start: int
    stop: int
    total: int
    top: int

    def rows(self, context: int) -> range:
        """Return which rows of `context` tokens begin here; the last token of the stream begins none."""
        last = max(0, self.total - 1)
        return range(*(math.ceil(min(edge, last) / context) for edge in (self.start, self.stop)))


@dataclass(frozen=True)
class Shift:
    """Splits rows of context + 1 tokens into what is read and, one place on, what is to be foretold."""

    by_length = False

    def __call__(self, rows: Gathered) -> Batch:
        """Return (rows, context) tokens and targets; what lies behind the end of the stream is not counted."""
        tokens, lengths = rows.columns
        behind = torch.arange(1, tokens.shape[1]) >= lengths[:, None]
        read = {"input_ids": tokens[:, :-1].contiguous()}
        return Batch(read, tokens[:, 1:].masked_fill(behind, IGNORED), rows.weight, rows.count)


@dataclass(frozen=True)
class PackedEncoding:
    """How documents become ``model(input_ids)``, rows of `context` tokens."""

    vocabulary: Vocabulary
    context: int

    target = None
    collate = Shift()

    @property
    def schema(self) -> Schema:
        """What a model must fit."""
        return Schema((Input((self.context,), (self.vocabulary.size,)),), self.vocabulary.size)

    def inputs(self, partition: Any) -> tuple[Column, ...]:
        """Raise BadInput: a row of documents has no prediction."""
        raise BadInput("A language model goes on with texts, however it was asked for predictions; use generate")

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"source": "packed", "vocabulary": self.vocabulary.to_json(), "context": self.context}


class PackedText(TextSource):
    """Documents, each followed by the token `end`, one after another in rows of `context` tokens.

    A row begins where the one before ends, across documents and partitions, and belongs to the partition it begins
    in. Every token but the stream's first is foretold once an epoch; an empty document adds nothing.
    """

    def __init__(self, partitions: Sequence[Delayed], reader: Any, context: int) -> None:
        super().__init__(partitions, reader)
        self.context = context

    def __repr__(self) -> str:
        return f"Text({len(self.tokens)} partitions of documents, context={self.context})"

    def survey(self) -> list[Delayed]:
        """Return one task per partition whose result is its Survey."""
        counts = run_each(_count, (), self.tokens)
        (starts,) = run_each(_starts, (), [counts])  # once for all: each must know how many tokens come before it
        places = range(len(self.tokens))
        return run_each(_survey, (self.context,), [starts] * len(places), places, self.tokens)

    def fit(self, surveys: Sequence[Survey]) -> PackedEncoding:
        """Fit an encoding to the surveys of all partitions, in their order."""
        top = max(survey.columns["stretch"].top for survey in surveys)
        return PackedEncoding(Vocabulary.of(self.reader.tokenizers[0], top), self.context)

    def sample(self, encoding: Encoding, surveys: Sequence[Survey], rows: int) -> Batch:
        """Make up rows, if these texts are cut as the encoding's are."""
        if not isinstance(encoding, PackedEncoding) or encoding.context != self.context:
            raise DataError(
                f"The validation data must be of the training data's kind, however they are texts in rows of "
                f"{self.context} tokens"
            )
        encoding.vocabulary.check(max(survey.columns["stretch"].top for survey in surveys))
        rows = max(1, min(rows, SAMPLE_TOKENS // self.context))
        size = encoding.vocabulary.size
        tokens = (size - 1 - torch.arange(rows * (self.context + 1))) % size  # from the largest on
        lengths = torch.full((rows,), self.context + 1)
        return encoding.collate(Gathered((tokens.reshape(rows, -1), lengths), None, None, rows))

    def convert(self, encoding: Encoding, surveys: Sequence[Survey], by_class: bool) -> list[Delayed]:
        """Return one task per partition whose result is its Block."""
        assert isinstance(encoding, PackedEncoding)
        stretches: list[Stretch] = [survey.columns["stretch"] for survey in surveys]
        vocabulary, context = encoding.vocabulary, self.context
        heads = run_each(_head, (vocabulary.end, context), self.tokens)
        completing = [
            [heads[follower] for follower in _followers(stretches, number, context)] for number in range(len(stretches))
        ]
        bound = (stretches, context, vocabulary.end, vocabulary.pad, vocabulary.dtype)
        return run_each(_pack, bound, range(len(stretches)), self.tokens, completing)


def _followers(stretches: Sequence[Stretch], number: int, context: int) -> list[int]:
    """Return the partitions whose first tokens complete the last row that begins in a partition."""
    rows, needed = stretches[number].rows(context), list[int]()
    if len(rows):
        behind, follower = rows.stop * context + 1, number + 1
        while follower < len(stretches) and stretches[follower].start < behind:
            needed.append(follower)
            follower += 1
    return needed


def _stream(tokens: Tokenised, end: int) -> Ragged:
    """Return documents that are not empty, each with its end."""
    return tokens.texts.take(np.flatnonzero(tokens.texts.lengths)).followed_by(end)


def _count(tokens: Tokenised) -> int:
    return len(tokens.texts.values) + int((tokens.texts.lengths > 0).sum())


def _starts(counts: Sequence[int]) -> list[int]:
    """Return where each partition's tokens begin in the stream, and where it ends."""
    return [0, *np.cumsum(counts).tolist()]


def _survey(context: int, starts: list[int], number: int, tokens: Tokenised) -> Survey:
    top = int(tokens.texts.values.max(initial=0))
    stretch = Stretch(starts[number], starts[number + 1], starts[-1], top)
    return Survey(len(stretch.rows(context)), TargetSurvey(None, 0), columns={"stretch": stretch})


def _head(end: int, context: int, tokens: Tokenised) -> Any:
    return _stream(tokens, end).values[:context]


def _pack(
    stretches: list[Stretch],
    context: int,
    end: int,
    pad: int,
    dtype: Any,
    number: int,
    tokens: Tokenised,
    heads: list[Any],
) -> Block:
    """Cut the rows that begin in one partition."""
    stretch = stretches[number]
    rows = stretch.rows(context)
    if not len(rows):
        return as_block((np.empty((0, context + 1), dtype=dtype), np.empty(0, dtype=np.int32)))
    stream = np.concatenate([_stream(tokens, end).values, *heads])[rows.start * context - stretch.start :]
    padded = np.full(len(rows) * context + 1, pad, dtype=dtype)
    padded[: len(stream)] = stream[: len(padded)]
    found = np.lib.stride_tricks.sliding_window_view(padded, context + 1)[::context]
    lengths = np.minimum(stretch.total - np.arange(rows.start, rows.stop) * context, context + 1)
    return as_block((np.ascontiguousarray(found), lengths.astype(np.int32)))
