"""Texts to be turned into other texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dask.delayed import Delayed

from dasktrain.data.block import Batch, Block, Collate, Column, Gathered, as_block
from dasktrain.data.fields import strings, texts_of
from dasktrain.data.labelled import made_up_texts
from dasktrain.data.packed import IGNORED, SAMPLE_TOKENS
from dasktrain.data.ragged import Ragged
from dasktrain.data.source import Encoding, Input, Schema, Survey
from dasktrain.data.target import TargetSurvey
from dasktrain.data.tokenised import TextSource, Tokenised, run_each
from dasktrain.data.tokens import Vocabulary
from dasktrain.errors import DataError


@dataclass(frozen=True)
class TeacherForced:
    """Pads texts; what is written is read back one place later, behind `start`, and `end` follows it."""

    pad: int
    pad_written: int
    start: int
    end: int

    by_length = True

    def __call__(self, rows: Gathered) -> Batch:
        """Return what the encoder and the decoder read, and what the decoder is to write."""
        texts, *written = rows.columns
        named = {"input_ids": texts.padded(self.pad), "attention_mask": texts.mask()}
        if not written:
            return Batch(named, None, rows.weight, rows.count)
        (answer,) = written
        wanted = answer.followed_by(self.end).padded(IGNORED)
        before = torch.full((rows.count, 1), self.start)
        named["decoder_input_ids"] = torch.cat(
            [before, wanted[:, :-1].masked_fill(wanted[:, :-1] == IGNORED, self.pad_written)], dim=1
        )
        return Batch(named, wanted, rows.weight, rows.count)


@dataclass(frozen=True)
class PairedEncoding:
    """How pairs of texts become ``model(input_ids, attention_mask, decoder_input_ids)``.

    Attributes
    ----------
    vocabulary, written : Vocabulary
        Of texts read and of those written.
    """

    vocabulary: Vocabulary
    written: Vocabulary
    context: int
    text: Any

    target = None

    @property
    def schema(self) -> Schema:
        """What a model must fit: outputs are tokens that are written."""
        return Schema((Input((self.context,), (self.vocabulary.size,)),), self.written.size)

    @property
    def collate(self) -> Collate:
        """Batches are padded and shifted."""
        return TeacherForced(self.vocabulary.pad, self.written.pad, self.written.start, self.written.end)

    def inputs(self, partition: Any) -> tuple[Column, ...]:
        """Tokenise texts to be read: a DataFrame, a Series, or an iterable of texts or of records as in training."""
        texts = texts_of(partition, self.text)
        return (self.vocabulary.encode(strings(texts, "the texts to read"), self.context)[0],)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "source": "paired",
            "vocabulary": self.vocabulary.to_json(),
            "written": self.written.to_json(),
            "context": self.context,
            "text": self.text,
        }


class PairedText(TextSource):
    """Pairs of texts, each at most `context` tokens, of which the second is to be written when the first is read."""

    def __init__(self, partitions: Sequence[Delayed], reader: Any, context: int) -> None:
        super().__init__(partitions, reader)
        self.context = context

    def __repr__(self) -> str:
        text, _, into = self.reader.fields
        return f"Text({len(self.tokens)} partitions, text={text!r}, into={into!r}, context={self.context})"

    def survey(self) -> list[Delayed]:
        """Return one task per partition whose result is its Survey."""
        return run_each(_survey, (), self.tokens)

    def fit(self, surveys: Sequence[Survey]) -> PairedEncoding:
        """Fit an encoding to the surveys of all partitions, in their order."""
        read, written = self.reader.tokenizers
        tops = np.array([survey.columns["tops"] for survey in surveys]).max(axis=0).tolist()
        if read == written:
            tops = [max(tops)] * 2  # one vocabulary for both
        vocabularies = [Vocabulary.of(each, top) for each, top in zip((read, written), tops, strict=True)]
        return PairedEncoding(vocabularies[0], vocabularies[1], self.context, self.reader.fields[0])

    def sample(self, encoding: Encoding, surveys: Sequence[Survey], rows: int) -> Batch:
        """Make up pairs of which the first has texts as long as any of these."""
        if not isinstance(encoding, PairedEncoding):
            raise DataError("The validation data must be of the training data's kind, however they are pairs of texts")
        vocabularies = encoding.vocabulary, encoding.written
        tops, longest = (
            np.array([survey.columns[name] for survey in surveys]).max(axis=0) for name in ("tops", "longest")
        )
        rows = max(1, min(rows, SAMPLE_TOKENS // max(1, int(longest.max()))))
        texts = []
        for vocabulary, top, length in zip(vocabularies, tops.tolist(), longest.tolist(), strict=True):
            vocabulary.check(top)
            texts.append(made_up_texts(rows, max(1, length), vocabulary.size))
        return encoding.collate(Gathered(tuple(texts), None, None, rows))

    def convert(self, encoding: Encoding, surveys: Sequence[Survey], by_class: bool) -> list[Delayed]:
        """Return one task per partition whose result is its Block."""
        return run_each(_convert, (encoding,), self.tokens)


def _survey(tokens: Tokenised) -> Survey:
    columns = (tokens.texts, tokens.written)
    lengths = [int(column.lengths.max(initial=0)) for column in columns if column is not None]
    tops = [int(column.values.max(initial=0)) for column in columns if column is not None]
    found = {"longest": lengths, "tops": tops}
    return Survey(tokens.texts.num_rows, TargetSurvey(None, 0), cut=tokens.cut, columns=found)


def _convert(encoding: PairedEncoding, tokens: Tokenised) -> Block:
    assert tokens.written is not None
    texts = tokens.texts.filled(encoding.vocabulary.end)
    return as_block(
        tuple(
            Ragged(column.values.astype(vocabulary.dtype), column.offsets)
            for column, vocabulary in ((texts, encoding.vocabulary), (tokens.written, encoding.written))
        )
    )
