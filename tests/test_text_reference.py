"""Text, however it falls into partitions, shards and workers: the bits of a plain loop over plain lists."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import dask
import dask.bag as db
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.data.source import Source
from dasktrain.models import Decoder, Encoder, EncoderDecoder
from dasktrain.plan import Plan, rows_only
from tests.reference import trained_digest

SGD = partial(torch.optim.SGD, lr=0.1)
END, PAD, START = 258, 256, 257
CONTEXT, SHARDS, EPOCHS, BATCH = 8, 4, 2, 7
#: partitions of documents: uneven, one empty, with empty documents, and shorter than a row
DOCUMENTS = [
    ["to be, or not to be", "", "that is the question"],
    [],
    ["whether"],
    ["x", "y", "z"],
    ["'tis nobler in the mind to suffer", "ä ö ü", ""],
]
PAIRS = [
    [(text, text[::-1][:9], len(text) % 3) for text in part]
    for part in [*DOCUMENTS, ["a longer text than eight tokens"]]
]


def bag(partitions: list[Any]) -> db.Bag:
    """Return a Bag of just these partitions."""
    return db.from_delayed([dask.delayed(list)(part) for part in partitions])


def fit(data: Source, model: nn.Module, loss: object, workers: int, **settings: object) -> dt.Result:
    trainer = dt.Trainer(lambda schema: model, loss, SGD, observers=[])  # type: ignore[arg-type]
    return trainer.fit(
        data,
        client=dt.LocalWire(workers),
        epochs=EPOCHS,
        batch_size=BATCH,
        shards=SHARDS,
        **settings,  # type: ignore[arg-type]
    )


def decoder() -> nn.Module:
    return Decoder(259, layers=1, width=16, heads=2, context=CONTEXT, dropout=0.1)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.set_rng_state(state)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_language_model_has_the_bits_of_a_plain_loop_over_one_stream(workers: int) -> None:
    stream = [token for part in DOCUMENTS for text in part if text for token in [*text.encode(), END]]
    rows = [stream[start : start + CONTEXT + 1] for start in range(0, len(stream) - 1, CONTEXT)]
    ends = np.cumsum([sum(len(text.encode()) + 1 for text in part if text) for part in DOCUMENTS])
    begins = np.arange(len(rows)) * CONTEXT
    counts = [int(((begins >= low) & (begins < high)).sum()) for low, high in pairwise([0, *ends])]

    def loss(model: nn.Module, chosen: np.ndarray) -> tuple[Tensor, float]:
        width = CONTEXT + 1
        padded = torch.tensor([rows[row] + [PAD] * (width - len(rows[row])) for row in chosen])
        wanted = torch.tensor([rows[row][1:] + [-100] * (width - len(rows[row])) for row in chosen])
        scores = model(padded[:, :-1])
        return F.cross_entropy(scores.flatten(0, 1), wanted.flatten(), reduction="sum"), float((wanted >= 0).sum())

    expected = trained_digest(Plan(rows_only(counts), SHARDS, BATCH), decoder, SGD, EPOCHS, loss)
    result = fit(dt.Text(bag(DOCUMENTS), context=CONTEXT), seeded(decoder), dt.text.cross_entropy, workers)
    assert result.digest == expected
    assert sum(record["rows"] for record in result.history) == EPOCHS * len(rows)


def encoder() -> nn.Module:
    return Encoder(259, 3, layers=1, width=16, heads=2, context=CONTEXT, dropout=0.1)


def padded(texts: list[list[int]], value: int) -> Tensor:
    longest = max(map(len, texts))
    return torch.tensor([text + [value] * (longest - len(text)) for text in texts])


def by_length_plan(counts: list[int]) -> Plan:
    return Plan(rows_only(counts), SHARDS, BATCH, by_length=True)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_classification_has_the_bits_of_a_plain_loop_over_padded_texts(workers: int) -> None:
    flat = [record for part in PAIRS for record in part]
    tokens = [list(text.encode())[:CONTEXT] or [END] for text, _, _ in flat]
    labels = torch.tensor([label for _, _, label in flat])

    def loss(model: nn.Module, chosen: np.ndarray) -> tuple[Tensor, float]:
        texts = [tokens[row] for row in chosen]
        scores = model(padded(texts, PAD), padded([[1] * len(text) for text in texts], 0))
        return F.cross_entropy(scores, labels[chosen], reduction="none").sum(), len(chosen)

    lengths = np.array([len(text) for text in tokens])
    plan = by_length_plan([len(part) for part in PAIRS])
    expected = trained_digest(plan, encoder, SGD, EPOCHS, loss, lengths)
    data = dt.Text(bag(PAIRS), text=0, label=2, context=CONTEXT)
    assert fit(data, seeded(encoder), nn.CrossEntropyLoss(), workers).digest == expected


def encoder_decoder() -> nn.Module:
    return EncoderDecoder(259, 259, layers=1, width=16, heads=2, context=CONTEXT, dropout=0.1)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_sequence_to_sequence_has_the_bits_of_a_plain_loop_with_teacher_forcing(workers: int) -> None:
    flat = [record for part in PAIRS for record in part]
    read = [list(text.encode())[:CONTEXT] or [END] for text, _, _ in flat]
    write = [list(text.encode())[: CONTEXT - 1] for _, text, _ in flat]

    def loss(model: nn.Module, chosen: np.ndarray) -> tuple[Tensor, float]:
        texts, answers = [read[row] for row in chosen], [write[row] for row in chosen]
        before = padded([[START, *answer] for answer in answers], PAD)
        wanted = padded([[*answer, END] for answer in answers], -100)
        scores = model(padded(texts, PAD), padded([[1] * len(text) for text in texts], 0), before)
        return F.cross_entropy(scores.flatten(0, 1), wanted.flatten(), reduction="sum"), float((wanted >= 0).sum())

    lengths = np.array([len(text) for text in read])
    plan = by_length_plan([len(part) for part in PAIRS])
    expected = trained_digest(plan, encoder_decoder, SGD, EPOCHS, loss, lengths)
    data = dt.Text(bag(PAIRS), text=0, into=1, context=CONTEXT)
    assert fit(data, seeded(encoder_decoder), dt.text.cross_entropy, workers).digest == expected
