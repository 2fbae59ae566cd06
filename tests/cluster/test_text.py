"""Texts on a cluster: the bits of one process, and what is written and predicted there."""

from pathlib import Path
from typing import Any

import dask.bag as db
import pytest
from distributed import Client

import dasktrain as dt
from dasktrain.errors import DataError
from tests.small import Watcher
from tests.test_text import CONTEXT, FRAME, VERSE, bag, classified, turned, went_on

KINDS: dict[str, tuple[Any, dict[str, str]]] = {
    "documents": (went_on, {}),
    "labels": (classified, {"label": "kind"}),
    "pairs": (turned, {"into": "back"}),
}


def data(**fields: str) -> Any:
    records = db.from_sequence(FRAME.to_dict("records"), npartitions=5)
    return dt.Text(records, "line", **fields, tokenizer=dt.text.train_bpe(VERSE, 270), context=CONTEXT)


@pytest.mark.parametrize(("fit", "fields"), KINDS.values(), ids=KINDS.keys())
def test_texts_have_the_bits_of_one_process(clean: Client, fit: Any, fields: dict[str, str]) -> None:
    assert fit(data(**fields), clean).digest == fit(data(**fields)).digest


def test_records_have_the_bits_of_one_process(clean: Client) -> None:
    from tests.test_records import by_name
    from tests.test_records import fit as fit_records

    assert fit_records(by_name, clean).digest == fit_records(by_name).digest


def test_texts_are_written_on_the_workers(clean: Client) -> None:
    for fit, fields in (KINDS["documents"], KINDS["pairs"]):
        result = fit(data(**fields), epochs=2)
        prompts = bag([VERSE[:3], VERSE[3:8]])
        lazy = result.generate(prompts, max_tokens=6, temperature=1.0)
        here = lazy.compute(scheduler="sync")
        assert list(clean.compute(lazy, sync=True)) == here
        assert len(here) == 8


def test_labels_are_predicted_on_the_workers(clean: Client) -> None:
    lazy = classified(data(label="kind")).predict(bag([VERSE[:5], [], VERSE[5:]]))
    assert list(clean.compute(lazy, sync=True)) == lazy.compute(scheduler="sync")


def test_metrics_are_means_over_the_cluster(clean: Client) -> None:
    result = classified(data(label="kind"))
    here = result.evaluate(data(label="kind"), {"accuracy": dt.accuracy})
    with clean.as_current():
        assert result.evaluate(data(label="kind"), {"accuracy": dt.accuracy}) == here


def test_tokenizer_is_trained_on_the_workers(clean: Client) -> None:
    here = dt.text.train_bpe(VERSE, 280).to_str()
    with clean.as_current():
        assert dt.text.train_bpe(db.from_sequence(VERSE, npartitions=20), 280).to_str() == here


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([["to be"], ["or", b"\xff"]], "UTF-8, however in partition 1"),
        ([["to be", None], []], "however 1 of 2 in partition 0"),
    ],
)
def test_texts_that_cannot_be_used_are_named_and_leave_nothing(clean: Client, texts: Any, message: str) -> None:
    watcher = Watcher()
    with pytest.raises(DataError, match=message):
        went_on(dt.Text(bag(texts), context=CONTEXT), clean, observers=[watcher])
    assert watcher.rounds == []


def test_files_in_another_encoding_are_refused(clean: Client, tmp_path: Path) -> None:
    (tmp_path / "menu.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"must be in the encoding they are read with, however .* 0xe9"):
        went_on(dt.Text(db.read_text(str(tmp_path / "*.txt")), context=CONTEXT), clean)
