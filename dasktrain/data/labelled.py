"""Texts with a label or a number each."""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
import pandas as pd
from dask.delayed import Delayed

from dasktrain.data.block import Batch, Block, Gathered, as_block
from dasktrain.data.encodings import LabelledEncoding
from dasktrain.data.packed import SAMPLE_TOKENS
from dasktrain.data.ragged import Ragged
from dasktrain.data.source import Encoding, Survey, sample_target
from dasktrain.data.target import Labels, Numbers, Target, fit_labels, survey_target
from dasktrain.data.tokenised import TextSource, Tokenised, run_each
from dasktrain.data.tokens import Vocabulary
from dasktrain.errors import DataError


class LabelledText(TextSource):
    """Texts, each at most `context` tokens, with what is to be said of each."""

    def __init__(self, partitions: Sequence[Delayed], reader: Any, context: int, classes: bool, dtype: Any) -> None:
        super().__init__(partitions, reader)
        self.context, self.classes, self.dtype = context, classes, dtype

    def __repr__(self) -> str:
        text, label, _ = self.reader.fields
        return f"Text({len(self.tokens)} partitions, text={text!r}, label={label!r}, context={self.context})"

    def survey(self) -> list[Delayed]:
        """Return one task per partition whose result is its Survey."""
        return run_each(_survey, (self.reader.fields[1], self.classes), self.tokens)

    def fit(self, surveys: Sequence[Survey]) -> LabelledEncoding:
        """Fit an encoding to the surveys of all partitions, in their order."""
        text, label, _ = self.reader.fields
        name = str(label)
        target: Target = Numbers((name,))
        if self.classes:
            labels: set[Any] = reduce(or_, (set(survey.target.labels or {}) for survey in surveys), set())
            dtype = pd.Series(list(labels)).dtype if self.dtype is None else self.dtype
            target = fit_labels(name, [survey.target for survey in surveys], dtype)
        top = max(survey.columns["top"] for survey in surveys)
        return LabelledEncoding(Vocabulary.of(self.reader.tokenizers[0], top), self.context, text, target)

    def sample(self, encoding: Encoding, surveys: Sequence[Survey], rows: int) -> Batch:
        """Make up texts of which the first is as long as any of these."""
        if not isinstance(encoding, LabelledEncoding):
            raise DataError("The validation data must be of the training data's kind, however they are labelled texts")
        vocabulary = encoding.vocabulary
        vocabulary.check(max(survey.columns["top"] for survey in surveys))
        longest = max(1, *(survey.columns["longest"] for survey in surveys))
        rows = max(1, min(rows, SAMPLE_TOKENS // longest))
        return encoding.collate(
            Gathered((made_up_texts(rows, longest, vocabulary.size),), sample_target(encoding.target, rows), None, rows)
        )

    def convert(self, encoding: Encoding, surveys: Sequence[Survey], by_class: bool) -> list[Delayed]:
        """Return one task per partition whose result is its Block."""
        return run_each(_convert, (encoding, by_class), self.tokens)


def made_up_texts(rows: int, longest: int, vocab_size: int) -> Ragged:
    """Return texts of which the first is the longest, with any tokens."""
    lengths = np.minimum(longest, 1 + np.arange(rows) * 7 % 32)
    lengths[0] = longest
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Ragged((vocab_size - 1 - np.arange(offsets[-1])) % vocab_size, offsets)


def _survey(label: Any, classes: bool, tokens: Tokenised) -> Survey:
    assert tokens.labels is not None
    try:
        target = survey_target(_series(tokens), classes)
    except (TypeError, ValueError) as error:
        remedy = "convert it" if classes else "convert it, or leave classes=False out if it is a label"
        raise DataError(f"{label!r} must be a label or a number of each text, however {error}; {remedy}") from error
    texts = tokens.texts
    found = {"longest": int(texts.lengths.max(initial=0)), "top": int(texts.values.max(initial=0))}
    return Survey(texts.num_rows, target, cut=tokens.cut, columns=found)


def _series(tokens: Tokenised) -> "pd.Series[Any]":
    return pd.Series(tokens.labels, dtype=None if tokens.labels else object)


def _convert(encoding: LabelledEncoding, by_class: bool, tokens: Tokenised) -> Block:
    target = encoding.target.encode(_series(tokens)) if tokens.labels else _nothing(encoding.target)
    texts = tokens.texts.filled(encoding.vocabulary.end)
    texts = Ragged(texts.values.astype(encoding.vocabulary.dtype), texts.offsets)
    if by_class:
        order = np.argsort(target, kind="stable")
        texts, target = texts.take(order), target[order]
    return as_block((texts,), target)


def _nothing(target: Target) -> Any:
    return np.empty(0, dtype=np.int32 if isinstance(target, Labels) else np.float32)
