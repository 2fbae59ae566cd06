"""Texts as training data: nothing is lost, wherever they come from; predictions go out as the texts came in."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dasktrain as dt
from dasktrain.data.block import batches
from dasktrain.data.packed import IGNORED
from dasktrain.data.tokenised import partitions_of
from dasktrain.models import Decoder, EncoderDecoder, TextCNN
from tests import small
from tests.test_tokens import words

few = settings(max_examples=40, deadline=None)
CONTEXT, END = 8, 258
VERSE = [
    "to be, or not to be",
    "",
    "that is the question",
    "whether 'tis nobler",
    "in the mind to suffer",
    "the slings and arrows",
    "ä",
    "of outrageous fortune",
    "or to take arms",
    "against a sea",
    "of troubles",
    "and by opposing",
    "end them",
    "to die",
    "to sleep",
    "no more",
]
LABELS = [["short", "long", "middle"][len(text) % 3] for text in VERSE]
FRAME = pd.DataFrame({"line": VERSE, "kind": LABELS, "back": [text[::-1] for text in VERSE]}, index=range(100, 116))


pytestmark = pytest.mark.usefixtures("one_thread")


def decoder(schema: dt.Schema) -> nn.Module:
    return Decoder(schema.vocab_size, layers=1, width=16, heads=2, context=schema.context)


def convolutions(schema: dt.Schema) -> nn.Module:
    return TextCNN(schema.vocab_size, schema.num_outputs, width=8, channels=4, kernels=(3, 5))


def encoder_decoder(schema: dt.Schema) -> nn.Module:
    return EncoderDecoder(schema.vocab_size, schema.num_outputs, layers=1, width=16, heads=2, context=CONTEXT)


def went_on(data: Any, wire: dt.LocalWire | None = None, **settings: Any) -> dt.Result:
    """Train a language model."""
    return small.fit(data, wire, **({"model": decoder, "loss": dt.text.cross_entropy, "batch_size": 5} | settings))


def classified(data: Any, wire: dt.LocalWire | None = None, **settings: Any) -> dt.Result:
    return small.fit(data, wire, **({"model": convolutions, "batch_size": 5} | settings))


def turned(data: Any, wire: dt.LocalWire | None = None, **settings: Any) -> dt.Result:
    settings = {"model": encoder_decoder, "loss": dt.text.cross_entropy, "batch_size": 5} | settings
    return small.fit(data, wire, **settings)


def bag(partitions: Sequence[Sequence[Any]]) -> db.Bag:
    return db.from_delayed([dask.delayed(list)(part) for part in partitions])


def computed(lazy: Any) -> Any:
    return lazy.compute(scheduler="sync")


# -- packing ----------------------------------------------------------------------------------------------------


@few
@given(st.lists(st.lists(st.text("abä", max_size=9), max_size=4), min_size=1, max_size=6), st.integers(2, 7))
def test_rows_are_the_stream_and_every_token_but_the_first_is_foretold_once(
    partitions: list[list[str]], context: int
) -> None:
    stream = [token for part in partitions for text in part if text for token in [*text.encode(), END]]
    data = dt.Text(bag(partitions), context=context)
    surveys = dask.compute(*data.survey(), scheduler="sync")
    encoding = data.fit(surveys)
    blocks = dask.compute(*data.convert(encoding, surveys, by_class=False), scheduler="sync")

    assert [len(block.inputs[0]) for block in blocks] == [survey.rows for survey in surveys]
    assert sum(survey.rows for survey in surveys) == -(-max(0, len(stream) - 1) // context)
    rows = [row[:length].tolist() for block in blocks for row, length in zip(*block.inputs, strict=True)]
    assert stream[:1] + [token for row in rows for token in row[1:]] == stream
    assert all(before[-1] == after[0] for before, after in pairwise(rows))

    seen, foretold = [], []
    for block in blocks:
        for batch in batches(block, encoding.collate, 3):
            assert isinstance(batch.inputs, dict)
            counted = batch.target != IGNORED
            seen += batch.inputs["input_ids"][counted].tolist()
            foretold += batch.target[counted].tolist()
    assert (seen, foretold) == (stream[:-1], stream[1:])


@few
@given(st.lists(st.text("ab", max_size=9), min_size=1, max_size=8).filter(any), st.integers(2, 7), st.data())
def test_rows_are_the_same_for_any_partitioning(texts: list[str], context: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(texts)), max_size=4)))
    parts = [texts[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(texts)], strict=True)]

    def rows(partitions: list[list[str]]) -> np.ndarray:
        source = dt.Text(bag(partitions), context=context)
        surveys = dask.compute(*source.survey(), scheduler="sync")
        found = source.convert(source.fit(surveys), surveys, by_class=False)
        return np.concatenate([block.inputs[0] for block in dask.compute(*found, scheduler="sync")])

    np.testing.assert_array_equal(rows(parts), rows([texts]))


# -- sources ----------------------------------------------------------------------------------------------------


def documents(folder: Path) -> dict[str, Any]:
    """Return the same documents in the same eight partitions, in every form they can have."""
    dd.from_pandas(FRAME, npartitions=8, sort=False).to_parquet(str(folder / "verse"))
    for number in range(8):
        lines = [f"{text}\n" for text in VERSE[number * 2 : number * 2 + 2]]
        (folder / f"{number}.txt").write_text("".join(lines))
    return {
        "Bag": {"source": db.from_sequence(VERSE, npartitions=8)},
        "list": {"source": VERSE},
        "bytes": {"source": bag([[text.encode() for text in VERSE[at : at + 2]] for at in range(0, 16, 2)])},
        "Series": {"source": dd.from_pandas(FRAME, npartitions=8, sort=False)["line"]},
        "pandas Series": {"source": FRAME["line"]},
        "column": {"source": dd.from_pandas(FRAME, npartitions=8, sort=False), "text": "line"},
        "pandas column": {"source": FRAME, "text": "line"},
        "records": {"source": db.from_sequence(FRAME.to_dict("records"), npartitions=8), "text": "line"},
        "tuples": {"source": db.from_sequence(list(FRAME.itertuples(index=False)), npartitions=8), "text": 0},
        "Parquet": {"source": str(folder / "verse"), "text": "line"},
        "path": {"source": folder / "verse", "text": "line"},
        "files": {"source": db.read_text(str(folder / "*.txt")).str.rstrip("\n")},
    }


def test_same_documents_are_the_same_data_in_any_form(tmp_path: Path) -> None:
    digests = {
        name: went_on(dt.Text(**given, context=CONTEXT), shards=2).digest for name, given in documents(tmp_path).items()
    }
    assert len(digests) == 12
    assert set(digests.values()) == {digests["Bag"]}


def test_same_labelled_and_paired_texts_are_the_same_data_in_any_form(tmp_path: Path) -> None:
    forms = documents(tmp_path)
    for label, into, fit in (("kind", None, classified), (None, "back", turned)):
        places = {"line": 0, "kind": 1, "back": 2}
        digests = set()
        for name in ("column", "pandas column", "records", "tuples", "Parquet", "path"):
            fields = {"label": label, "into": into}
            if name == "tuples":
                fields = {key: places.get(field) for key, field in fields.items()}
            digests.add(fit(dt.Text(**forms[name], **fields, context=CONTEXT)).digest)
        assert len(digests) == 1


def test_only_columns_that_are_named_are_read(tmp_path: Path) -> None:
    whole = dd.from_pandas(FRAME.assign(other=1.0), npartitions=2, sort=False)
    whole.to_parquet(str(tmp_path))
    for source in (str(tmp_path), whole, whole.compute()):
        for others, columns in (((), ["line"]), (("kind", None), ["line", "kind"]), ((None, "back"), ["line", "back"])):
            partitions, text = partitions_of(source, "line", *others)
            assert [list(part) for part in dask.compute(*partitions, scheduler="sync")] == [columns] * len(partitions)
            assert text == "line"


@pytest.mark.parametrize("fields", [{}, {"label": "kind"}, {"into": "back"}], ids=["documents", "labels", "pairs"])
def test_texts_are_read_and_tokenised_once(fields: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "log"

    def noted(what: str, value: Any) -> Any:
        with log.open("a") as file:
            file.write(f"{what}\n")
        return value

    def tokens(text: str) -> list[int]:
        return noted("text", [len(word) for word in text.split()])

    source = bag([FRAME.to_dict("records")[start : start + 4] for start in range(0, 16, 4)])
    data = dt.Text(source.map(partial(noted, "record")), "line", tokenizer=tokens, context=CONTEXT, **fields)
    fit = {(): went_on, ("label",): classified, ("into",): turned}[tuple(fields)]
    fit(data, epochs=2)
    assert log.read_text().count("record") == 16
    assert log.read_text().count("text") == (32 if "into" in fields else 16)


def test_label_that_is_a_floating_point_column_is_a_number(tmp_path: Path) -> None:
    frame = FRAME.assign(kind=FRAME["line"].str.len() / 10)
    dd.from_pandas(frame, npartitions=8, sort=False).to_parquet(str(tmp_path / "verse"))
    found = [
        classified(dt.Text(source, "line", label="kind", context=CONTEXT, **more), loss=nn.MSELoss()).digest
        for source, more in (
            (frame, {}),
            (str(tmp_path / "verse"), {}),
            (db.from_sequence(frame.to_dict("records"), npartitions=8), {"classes": False}),
        )
    ]
    assert len(set(found)) == 1


def test_classes_may_be_balanced() -> None:
    data = dt.Text(FRAME, "line", label="kind", context=CONTEXT)
    surveys = dask.compute(*data.survey(), scheduler="sync")
    for plain, balanced in zip(
        *(
            dask.compute(*data.convert(data.fit(surveys), surveys, by_class=by_class), scheduler="sync")
            for by_class in (False, True)
        ),
        strict=True,
    ):
        order = np.argsort(plain.target, kind="stable")
        np.testing.assert_array_equal(balanced.target, plain.target[order])
        np.testing.assert_array_equal(balanced.inputs[0].values, plain.inputs[0].take(order).values)
    one, two = (classified(data, dt.LocalWire(workers), partition="stratified").digest for workers in (1, 2))
    assert one == two != classified(data).digest


def test_written_text_begins_and_ends_once_whatever_its_tokenizer_adds() -> None:
    """Those of T5, BART or BERT add an end, or both, to every text."""
    data = dt.Text([("to be", "be or to be or"), ("to", "")], text=0, into=1, tokenizer=words(wrapped=True), context=5)
    surveys = dask.compute(*data.survey(), scheduler="sync")
    encoding = data.fit(surveys)
    found = []
    for block in dask.compute(*data.convert(encoding, surveys, by_class=False), scheduler="sync"):
        for batch in batches(block, encoding.collate, 1):
            assert isinstance(batch.inputs, dict)
            found.append([batch.inputs["input_ids"], batch.inputs["decoder_input_ids"], batch.target])
    to, be, or_, start, end = (words().token_to_id(word) for word in ("to", "be", "or", "[CLS]", "[SEP]"))
    assert [[part.tolist() for part in row] for row in found] == [
        [[[start, to, be, end]], [[start, be, or_, to, be]], [[be, or_, to, be, end]]],
        [[[start, to, end]], [[start]], [[end]]],
    ]
    assert sum(survey.cut for survey in surveys) == 1


@pytest.mark.parametrize(("fit", "fields"), [(classified, {"label": "kind"}), (turned, {"into": "back"})])
def test_texts_that_are_cut_are_told(fit: Any, fields: dict[str, str]) -> None:
    watcher, lengths = small.Watcher(), FRAME["line"].str.encode("utf-8").str.len()
    # What is written has a token less: its end follows.
    cut = (lengths > CONTEXT).sum() + ((lengths > CONTEXT - 1).sum() if "into" in fields else 0)
    assert 5 < (lengths > CONTEXT).sum() < 16
    data = dt.Text(FRAME, "line", context=CONTEXT, **fields)
    fit(data, observers=[watcher], validation=dt.Text(FRAME[13:14], "line", context=CONTEXT, **fields))
    told = [stage for stage in watcher.stages if "longer than" in stage]
    assert told == [f"{cut} texts of 16 rows of training are longer than they may be, and are cut"]


# -- predicting -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier() -> dt.Result:
    return classified(dt.Text(FRAME, "line", label="kind", context=CONTEXT), epochs=3)


def probabilities(result: dt.Result) -> np.ndarray:
    """Read texts one by one, without padding."""
    with torch.no_grad():
        tokens = [torch.tensor([list(text.encode())[:CONTEXT] or [END]]) for text in VERSE]
        return torch.cat([result.model(text) for text in tokens]).softmax(dim=1).numpy()


def test_predictions_are_those_of_each_text_alone(classifier: dt.Result) -> None:
    expected = probabilities(classifier)
    labels = np.array(["long", "middle", "short"])[expected.argmax(axis=1)]
    assert len(set(labels)) > 1
    frame = dd.from_pandas(FRAME[["line"]], npartitions=3, sort=False)
    for source in (frame, frame["line"], FRAME, FRAME["line"]):
        lazy, shares = classifier.predict(source), classifier.predict_proba(source)
        assert isinstance(lazy, dd.Series)
        found = computed(lazy)
        assert found.tolist() == labels.tolist()
        assert found.name == "kind"
        assert computed(shares).columns.tolist() == ["long", "middle", "short"]
        np.testing.assert_allclose(computed(shares), expected, atol=1e-6)
        assert found.index.tolist() == computed(shares).index.tolist() == FRAME.index.tolist()
    texts = db.from_sequence(VERSE, npartitions=5)
    assert computed(classifier.predict(texts)) == labels.tolist()
    np.testing.assert_allclose(computed(classifier.predict_proba(texts)), expected, atol=1e-6)


def test_predictions_are_lazy(classifier: dt.Result, tmp_path: Path) -> None:
    def read(text: str) -> str:
        (tmp_path / "was read").touch()
        return text

    lazy = classifier.predict(db.from_sequence(VERSE, npartitions=2).map(read))
    assert isinstance(lazy, db.Bag)
    assert not (tmp_path / "was read").exists()
    computed(lazy)
    assert (tmp_path / "was read").exists()


def test_partition_without_texts_has_no_predictions(classifier: dt.Result) -> None:
    assert len(computed(classifier.predict(bag([[], VERSE[:2], []])))) == 2
    nothing = dd.from_pandas(FRAME, npartitions=2, sort=False)
    assert len(computed(classifier.predict(nothing[nothing["line"] == "no such line"]))) == 0


# -- saving -----------------------------------------------------------------------------------------------------

MODES: dict[str, tuple[Any, Any, dict[str, str]]] = {
    "documents": (went_on, decoder, {}),
    "labels": (classified, convolutions, {"label": "kind"}),
    "pairs": (turned, encoder_decoder, {"into": "back"}),
}
modes = pytest.mark.parametrize(("fit", "model", "fields"), MODES.values(), ids=MODES.keys())


def said(result: dt.Result, texts: list[str]) -> Any:
    if result.encoding.target is None:
        return result.generate(texts, max_tokens=5)
    return computed(result.predict_proba(pd.Series(texts))).to_numpy().tolist()


@modes
@pytest.mark.parametrize("tokenizer", ["bytes", "words"])
def test_saved_model_says_the_same(
    fit: Any, model: Any, fields: dict[str, str], tokenizer: Any, tmp_path: Path
) -> None:
    if tokenizer == "words":
        tokenizer = dt.text.train_bpe(VERSE, 270)
    result = fit(dt.Text(FRAME, "line", **fields, tokenizer=tokenizer, context=CONTEXT))
    result.save(str(tmp_path))
    back = dt.load(str(tmp_path), model)
    assert back.digest == result.digest
    assert back.encoding == result.encoding
    assert said(back, VERSE) == said(result, VERSE)


@modes
def test_run_that_goes_on_ends_as_if_it_had_not_stopped(
    fit: Any, model: Any, fields: dict[str, str], tmp_path: Path
) -> None:
    def data() -> Any:
        return dt.Text(FRAME, "line", **fields, context=CONTEXT)

    whole = fit(data(), epochs=3, model=model)
    half = len(whole.history.rounds) // 2
    fit(data(), epochs=3, max_rounds=half, observers=[dt.Checkpoint(str(tmp_path))])
    assert fit(data(), dt.LocalWire(2), epochs=3, resume=str(tmp_path)).digest == whole.digest
    with pytest.raises(dt.errors.BadInput, match="must have the plan, model and data of the checkpoint"):
        fit(dt.Text(FRAME[::-1], "line", **fields, context=CONTEXT), epochs=3, resume=str(tmp_path))


@modes
def test_saved_model_lacks_a_tokenizer_that_is_a_function_until_it_is_given(
    fit: Any, model: Any, fields: dict[str, str], tmp_path: Path
) -> None:
    def lengths(text: str) -> list[int]:
        return [len(word) for word in text.split()]

    lengths.decode = lambda tokens: " ".join(map(str, tokens))  # type: ignore[attr-defined]
    result = fit(dt.Text(FRAME, "line", **fields, tokenizer=lengths, context=CONTEXT))
    result.save(str(tmp_path))
    back = dt.load(str(tmp_path), model)
    with pytest.raises(dt.errors.BadInput, match="however that of a saved model, 'lengths', is a function"):
        said(back, VERSE)
    assert said(dt.load(str(tmp_path), model, tokenizer=lengths), VERSE) == said(result, VERSE)
