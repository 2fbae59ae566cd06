"""What every source of data promises. A new one is one more line of `SOURCES`."""

from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
import torch
from dask.delayed import Delayed

import dasktrain as dt
from dasktrain.data.block import Block, gather
from dasktrain.data.ragged import Ragged
from dasktrain.data.records import RecordsEncoding
from dasktrain.data.saved import encoding_from_json
from dasktrain.data.source import Encoding, Source, Survey
from dasktrain.errors import DataError
from dasktrain.plan import Rows
from tests.small import frame

TEXTS = ["one two three", "four", "", "five six"] * 6
ROWS = 24


def stacked(records: list[Any]) -> Any:
    return torch.tensor([[record["x"]] for record in records]), torch.tensor([record["y"] for record in records])


def arrays(rows: int = ROWS) -> dt.Arrays:
    rng = np.random.default_rng(rows)
    return dt.Arrays(rng.normal(size=(rows, 3)).astype(np.float32), np.arange(rows) % 2)


SOURCES: dict[str, Any] = {
    "table": lambda: dt.Table(frame(ROWS).assign(colour=["red", "blue"] * (ROWS // 2)), target="label", numeric=["a"]),
    "numbers": lambda: dt.Table(frame(ROWS), target=["a", "b"], categorical=[], numeric=["number"]),
    "arrays": arrays,
    "language": lambda: dt.Text(TEXTS, context=6),
    "labelled": lambda: dt.Text([(text, len(text) % 2) for text in TEXTS], 0, 1, context=8),
    "paired": lambda: dt.Text([(text, text[::-1]) for text in TEXTS], 0, into=1, context=8),
    "records": lambda: dt.Records([{"x": float(number), "y": number % 2} for number in range(ROWS)], stacked),
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> Source:
    made: Source = SOURCES[request.param]()
    return made.staged(lambda tasks: list(dask.persist(*tasks)))


def computed(tasks: list[Delayed]) -> list[Any]:
    return list(dask.compute(*tasks, scheduler="synchronous"))


def surveyed(source: Source) -> tuple[list[Survey], Encoding]:
    surveys = computed(source.survey())
    return surveys, source.fit(surveys)


def blocks(source: Source, by_class: bool = False) -> list[Block]:
    surveys, encoding = surveyed(source)
    return computed(source.convert(encoding, surveys, by_class))


def whole(blocks: list[Block], encoding: Encoding) -> Any:
    """Return all rows as one batch."""
    firsts: list[Any] = [block.inputs[0] for block in blocks]
    sizes = [first.num_rows if isinstance(first, Ragged) else len(first) for first in firsts]
    rows = Rows(np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(size) for size in sizes]))
    return gather(lambda number: blocks[number], rows, encoding.collate)


def tensors(inputs: Any) -> list[torch.Tensor]:
    return list(inputs.values()) if isinstance(inputs, dict) else list(inputs)


def test_a_survey_and_a_block_a_partition_count_the_same_rows(source: Source) -> None:
    surveys, encoding = surveyed(source)
    found = computed(source.convert(encoding, surveys, False))
    assert len(found) == len(surveys)
    assert whole(found, encoding).rows == sum(survey.rows for survey in surveys) > 0


def test_a_partition_that_is_converted_again_has_its_fingerprint_again(source: Source) -> None:
    assert [block.fingerprint for block in blocks(source)] == [block.fingerprint for block in blocks(source)]


def test_a_made_up_batch_is_like_those_of_the_data(source: Source) -> None:
    surveys, encoding = surveyed(source)
    sample = source.sample(encoding, surveys, 3)
    real = whole(computed(source.convert(encoding, surveys, False)), encoding)
    assert 1 <= sample.rows <= 3
    for made_up, part in zip(tensors(sample.inputs), tensors(real.inputs), strict=True):
        assert made_up.dtype == part.dtype
        assert made_up.shape[2:] == part.shape[2:]
        if not part.is_floating_point():
            assert made_up.max() >= part.max()
    assert sample.target.dtype == real.target.dtype


def test_an_encoding_is_read_back_as_it_was_saved(source: Source) -> None:
    surveys, encoding = surveyed(source)
    again = encoding_from_json(encoding.to_json())
    if isinstance(encoding, RecordsEncoding):  # its function is not saved
        assert again.to_json() == encoding.to_json()
        return
    assert again.schema == encoding.schema
    found = (computed(source.convert(each, surveys, False)) for each in (encoding, again))
    assert len({tuple(block.fingerprint for block in each) for each in found}) == 1


def test_rows_by_class_are_the_same_rows_sorted(source: Source) -> None:
    if any(survey.target.labels is None for survey in computed(source.survey())):
        return  # only labels can be sorted by
    for before, after in zip(blocks(source), blocks(source, by_class=True), strict=True):
        assert before.target is not None
        assert after.target is not None
        assert np.array_equal(np.sort(before.target), after.target)


def test_a_source_of_another_kind_does_not_fit(source: Source) -> None:
    other = arrays() if not isinstance(source, dt.Arrays) else dt.Table(pd.DataFrame({"x": [0.0], "y": [1.0]}), "y")
    _, encoding = surveyed(source)
    with pytest.raises(DataError):
        other.sample(encoding, computed(other.survey()), 1)


def test_it_says_what_it_is(source: Source) -> None:
    assert "(" in repr(source)
    assert "object at" not in repr(source)
