"""Texts that cannot be used: an error that names what is wrong, before the first round, and nothing left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.bag as db
import dask.dataframe as dd
import pandas as pd
import pytest
from torch import nn

import dasktrain as dt
from dasktrain.errors import BadInput, DataError, ModelError, PlanError, UnknownKeyword
from dasktrain.models import Decoder, Encoder, EncoderDecoder
from tests.small import Watcher
from tests.test_bad_input import refused
from tests.test_text import (
    CONTEXT,
    FRAME,
    VERSE,
    bag,
    classified,
    computed,
    convolutions,
    decoder,
    encoder_decoder,
    turned,
    went_on,
)
from tests.test_tokens import words

BROKEN = b"caf\xe9"  # in Latin-1


def changed(column: str, place: int, value: Any) -> dd.DataFrame:
    """Return the verse in four partitions of four, with one value changed."""
    values = FRAME[column].tolist()
    values[place] = value
    frame = FRAME.assign(**{column: pd.Series(values, index=FRAME.index, dtype=object)})
    return dd.from_pandas(frame, npartitions=4, sort=False)


def text(source: Any, *fields: Any, **more: Any) -> Any:
    return dt.Text(source, *fields, **({"context": CONTEXT} | more))


# -- texts ------------------------------------------------------------------------------------------------------

TEXTS: dict[str, tuple[Callable[..., Any], Callable[[], Any], list[str]]] = {
    "bytes are not UTF-8": (
        went_on,
        lambda: text(bag([[b"to be"], [b"or", BROKEN]])),
        ["UTF-8", "partition 1", "end of data", 'errors="replace"'],
    ),
    "half a character": (went_on, lambda: text(["to be", "\udce9"]), ["UTF-8", "partition 1", "surrogates"]),
    "text is None": (went_on, lambda: text(changed("line", 9, None), "line"), ["string", "1 of 4", "partition 2"]),
    "text is NaN": (
        classified,
        lambda: text(changed("line", 0, float("nan")), "line", "kind"),
        ["string", "1 of 4", "partition 0", "drop"],
    ),
    "text is NA": (went_on, lambda: text(pd.Series(["to", pd.NA, "be"], dtype="string")), ["1 of 1", "partition 1"]),
    "text is a number": (went_on, lambda: text(bag([["to", 3, 4]])), ["2 of 3", "such as 3"]),
    "text to write is missing": (
        turned,
        lambda: text(changed("back", 5, None), "line", into="back"),
        ["string", "1 of 4", "partition 1"],
    ),
    "label is missing": (
        classified,
        lambda: text(changed("kind", 6, None), "line", "kind"),
        ["target", "1 of 4", "partition 1 of the training data"],
    ),
    "label is infinite": (
        classified,
        lambda: text(bag([[("to", 0.5), ("be", float("inf"))]]), 0, 1, classes=False),
        ["finite", "1 of 2"],
    ),
    "label is no number": (
        classified,
        lambda: text(FRAME, "line", "kind", classes=False),
        ["'kind'", "number", "classes"],
    ),
    "one label only": (classified, lambda: text(bag([[("to", "verb"), ("be", "verb")]]), 0, 1), ["'verb'", "one"]),
    "no documents": (went_on, lambda: text([]), ["must have rows"]),
    "no partitions with documents": (went_on, lambda: text(bag([[], []])), ["must have rows", "2 partitions"]),
    "no labelled texts": (classified, lambda: text(FRAME[:0], "line", "kind"), ["must have rows"]),
    "no pairs": (turned, lambda: text(FRAME[:0], "line", into="back"), ["must have rows"]),
    "documents are all empty": (went_on, lambda: text(["", "", ""]), ["must have rows"]),
    "record lacks the text": (went_on, lambda: text(bag([[{"a": "to"}, {"b": "be"}]]), "a"), ["'a'", "partition 0"]),
    "record lacks the label": (classified, lambda: text(bag([[("to",), ("be", 1)]]), 0, 1), ["1", "partition 0"]),
    "record is no record": (went_on, lambda: text(bag([["to", "be"]]), "a"), ["'a'", "partition 0"]),
    "token is no number": (went_on, lambda: text(VERSE, tokenizer=str.split), ["whole numbers"]),
    "token is too large": (
        went_on,
        lambda: text(VERSE, tokenizer=lambda line: list(line.encode()), vocab_size=100),
        ["0 to 99", "vocab_size"],
    ),
    "no room for special tokens": (
        classified,
        lambda: text(FRAME, "line", "kind", tokenizer=words(wrapped=True), context=2),
        ["room", "2 tokens", "context"],
    ),
}


@pytest.mark.parametrize(("fit", "data", "words"), TEXTS.values(), ids=TEXTS.keys())
def test_texts_that_cannot_be_used(fit: Callable[..., Any], data: Callable[[], Any], words: list[str]) -> None:
    refused(DataError, words, lambda wire, watcher: fit(data(), wire, observers=[watcher]))


def test_files_in_another_encoding_are_refused(tmp_path: Path) -> None:
    (tmp_path / "menu.txt").write_bytes(b"tea\n" + BROKEN + b"\n")
    words = ["encoding", "0xe9", "db.read_text", 'errors="replace"']
    data = text(db.read_text(str(tmp_path / "*.txt")))
    refused(DataError, words, lambda wire, watcher: went_on(data, wire, observers=[watcher]))
    assert went_on(text(db.read_text(str(tmp_path / "*.txt"), errors="replace"))).ended == "epochs"


@pytest.mark.parametrize("length", [0, 1, CONTEXT, 1000 * CONTEXT])
def test_texts_may_be_of_any_length(length: int) -> None:
    """An empty text with a label is one token, an empty document nothing; a long one is cut, or many rows."""
    pairs = [("a" * length, "b" * length, 0), ("to be", "or not", 1)]
    assert len(classified(text(pairs, 0, 2)).history) == 1
    assert len(turned(text(pairs, 0, into=1)).history) == 1
    assert went_on(text([pairs[0][0], "to be"]), max_rounds=3).history.rounds


# -- fields and settings ----------------------------------------------------------------------------------------

CALLS: dict[str, tuple[type[Exception], Callable[[], Any], list[str]]] = {
    "column of texts": (DataError, lambda: text(FRAME, "lines"), ["'line', 'kind', 'back'", "'lines'"]),
    "no column of texts": (DataError, lambda: text(FRAME), ["'line', 'kind', 'back'", "None"]),
    "column of labels": (BadInput, lambda: text(FRAME, "line", "sort"), ["label", "'kind'", "'sort'"]),
    "column to write": (BadInput, lambda: text(FRAME, "line", into="front"), ["into", "'back'", "'front'"]),
    "column of labels of a Series": (BadInput, lambda: text(FRAME["line"], label="kind"), ["label", "'kind'"]),
    "label and into": (BadInput, lambda: text(FRAME, "line", "kind", "back"), ["both"]),
    "context": (BadInput, lambda: text(VERSE, context=1), ["context", "at least 2", "1"]),
    "context is no whole number": (BadInput, lambda: text(VERSE, context=8.5), ["context", "whole number", "8.5"]),
    "source": (DataError, lambda: text(3), ["Bag", "int"]),
    "tokenizer": (BadInput, lambda: text(VERSE, tokenizer="bpe"), ["tokenizer", "'bytes'"]),
    "keyword": (UnknownKeyword, lambda: text(VERSE, contxt=8), ["'contxt'", "did you mean 'context'"]),
}


@pytest.mark.parametrize(("error", "call", "words"), CALLS.values(), ids=CALLS.keys())
def test_what_cannot_be_asked_for_is_refused_at_once(
    error: type[Exception], call: Callable[[], Any], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        call()
    assert [word for word in words if word not in str(caught.value)] == []


def test_column_that_a_parquet_lacks_is_refused_at_once(tmp_path: Path) -> None:
    dd.from_pandas(FRAME, npartitions=2, sort=False).to_parquet(str(tmp_path))
    for fields in ({"text": "lines"}, {"text": "line", "label": "sort"}, {"text": "line", "into": "front"}):
        with pytest.raises(BadInput, match=r"however it is '(lines|sort|front)'"):
            text(str(tmp_path), **fields)


@pytest.mark.parametrize(
    ("fit", "fields"), [(went_on, {}), (turned, {"into": "back"}), (classified, {"label": "kind", "classes": False})]
)
def test_balancing_needs_classes(fit: Callable[..., Any], fields: dict[str, Any]) -> None:
    data = text(FRAME.assign(kind=1.5), "line", **fields)
    settings = {"loss": nn.MSELoss(), "model": lambda schema: convolutions(schema)} if "label" in fields else {}
    refused(
        PlanError,
        ["stratified", "class labels"],
        lambda wire, watcher: fit(data, wire, observers=[watcher], partition="stratified", **settings),
    )


# -- validation and models --------------------------------------------------------------------------------------

DOCUMENTS, LABELLED, PAIRED = (text(FRAME, "line", **more) for more in ({}, {"label": "kind"}, {"into": "back"}))
VALIDATION: dict[str, tuple[Callable[..., Any], Any, Any, list[str]]] = {
    "documents for labels": (classified, LABELLED, DOCUMENTS, ["validation", "kind", "rows of 8 tokens"]),
    "documents for pairs": (turned, PAIRED, DOCUMENTS, ["validation", "kind"]),
    "labels for documents": (went_on, DOCUMENTS, LABELLED, ["validation", "kind", "labelled texts"]),
    "labels for pairs": (turned, PAIRED, LABELLED, ["validation", "kind", "labelled texts"]),
    "pairs for documents": (went_on, DOCUMENTS, PAIRED, ["validation", "kind", "pairs of texts"]),
    "pairs for labels": (classified, LABELLED, PAIRED, ["validation", "kind", "pairs of texts"]),
    "another context": (went_on, DOCUMENTS, text(VERSE, context=7), ["validation", "rows of 7 tokens"]),
    "a label never seen": (
        classified,
        LABELLED,
        text(changed("kind", 13, "huge"), "line", "kind"),
        ["'kind'", "'huge'", "'long', 'middle', 'short'", "partition 3 of the validation data"],
    ),
    "no documents": (went_on, DOCUMENTS, text(["", ""]), ["validation data must have rows"]),
    "no labels": (classified, LABELLED, text(FRAME[:0], "line", "kind"), ["validation data must have rows"]),
    "a token never seen": (
        went_on,
        text(VERSE, tokenizer=lambda line: list(line.encode())),
        text(["\N{SNOWMAN}"], tokenizer=lambda line: list(line.encode())),
        ["226", "vocab_size"],
    ),
}


@pytest.mark.parametrize(("fit", "data", "validation", "words"), VALIDATION.values(), ids=VALIDATION.keys())
def test_validation_that_does_not_fit(fit: Callable[..., Any], data: Any, validation: Any, words: list[str]) -> None:
    refused(DataError, words, lambda wire, watcher: fit(data, wire, validation=validation, observers=[watcher]))


SIZE: dict[str, Any] = {"layers": 1, "width": 16, "heads": 2}
MODELS: dict[str, tuple[Callable[..., Any], Any, nn.Module, list[str]]] = {
    "fewer tokens": (went_on, DOCUMENTS, Decoder(258, context=CONTEXT, **SIZE), ["input_ids", "to 258"]),
    "many fewer tokens": (
        went_on,
        text(VERSE, tokenizer=lambda line: [1], vocab_size=50_000),
        Decoder(49_000, context=CONTEXT, **SIZE),
        ["input_ids", "50002"],
    ),
    "shorter context": (went_on, DOCUMENTS, Decoder(259, context=CONTEXT - 1, **SIZE), ["input_ids", "at most 7"]),
    "fewer tokens of labelled texts": (classified, LABELLED, Encoder(258, 3, **SIZE), ["input_ids", "to 258"]),
    "fewer labels": (classified, LABELLED, Encoder(259, 2, **SIZE), ["loss", "target", "to 2"]),
    "shorter labelled texts": (classified, LABELLED, Encoder(259, 3, context=7, **SIZE), ["at most 7 tokens"]),
    "fewer tokens to read": (turned, PAIRED, EncoderDecoder(258, 259, **SIZE), ["input_ids", "to 258"]),
    "fewer tokens to write": (turned, PAIRED, EncoderDecoder(259, 258, **SIZE), ["decoder_input_ids"]),
    "no decoder": (turned, PAIRED, Decoder(259, context=CONTEXT, **SIZE), ["attention_mask", "decoder_input_ids"]),
}


@pytest.mark.parametrize(("fit", "data", "model", "words"), MODELS.values(), ids=MODELS.keys())
def test_model_that_does_not_fit_the_texts(
    fit: Callable[..., Any], data: Any, model: nn.Module, words: list[str]
) -> None:
    refused(ModelError, words, lambda wire, watcher: fit(data, wire, model=model, observers=[watcher]))


# -- afterwards -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results() -> dict[str, dt.Result]:
    return {
        "documents": went_on(DOCUMENTS, model=decoder),
        "labels": classified(LABELLED),
        "pairs": turned(PAIRED, model=encoder_decoder),
    }


def test_texts_to_predict_for_that_cannot_be_used(results: dict[str, dt.Result]) -> None:
    result = results["labels"]
    for source, message in (
        (bag([["to", None]]), "must be a string, however 1 of 2 in the texts to predict for"),
        (bag([[BROKEN]]), "must be UTF-8, however in the texts to predict for"),
        (pd.DataFrame({"line": ["to", None]}), "must be a string"),
    ):
        with pytest.raises(DataError, match=message):
            computed(result.predict(source))
    with pytest.raises(DataError, match=r"column of texts .* however 'line' is not among"):
        result.predict(FRAME[["kind"]])
    with pytest.raises(BadInput, match="predicts for Bags, DataFrames and Series of texts"):
        result.predict(3)


def test_what_a_model_was_not_trained_for_is_refused(results: dict[str, dt.Result]) -> None:
    for kind in ("documents", "pairs"):
        with pytest.raises(BadInput, match="however this model's are neither; use generate"):
            results[kind].predict(FRAME)
    with pytest.raises(BadInput, match="however this is a TextCNN trained on LabelledEncoding"):
        results["labels"].generate(VERSE)
    with pytest.raises(BadInput, match="pass the column itself, as a Series"):
        results["documents"].generate(FRAME)
    for kind in ("documents", "pairs"):
        with pytest.raises(BadInput, match="Texts must come as a Bag"):
            results[kind].generate(3)
        with pytest.raises(DataError, match="must be a string, however 1 of 2"):
            results[kind].generate(["to", None])


def test_evaluation_on_data_of_another_kind_is_refused(results: dict[str, dt.Result]) -> None:
    for kind, data in (("documents", LABELLED), ("labels", PAIRED), ("pairs", DOCUMENTS)):
        with pytest.raises(DataError, match="of the training data's kind"):
            results[kind].evaluate(data, {"accuracy": dt.accuracy})
    watcher = Watcher()
    with pytest.raises(DataError, match="evaluated data must have rows"):
        results["documents"].evaluate(text([""]), {"loss": dt.text.cross_entropy})
    assert watcher.rounds == []
