"""Texts go on in the middle of an epoch, on another number of workers, with the same bits."""

from functools import partial
from pathlib import Path
from typing import Any

import dask.bag as db
import pytest
import torch
from torch import nn

import dasktrain as dt
from dasktrain.errors import BadInput
from dasktrain.models import Decoder, Encoder, EncoderDecoder

RECORDS = [("to be or not to be " * (1 + number % 4), number % 3, f"{number}") for number in range(120)]
LAYERS: dict[str, Any] = {"layers": 1, "width": 16, "heads": 2, "context": 16}
#: kind of task -> how texts are cut, model, loss
TASKS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "packed": ({}, partial(Decoder, 259, **LAYERS), dt.text.cross_entropy),
    "labelled": ({"label": 1}, partial(Encoder, 259, 3, **LAYERS), nn.CrossEntropyLoss()),
    "paired": ({"into": 2}, partial(EncoderDecoder, 259, 259, **LAYERS), dt.text.cross_entropy),
}


def fit(task: str, workers: int, *observers: dt.Observer, records: Any = RECORDS, **settings: Any) -> dt.Result:
    fields, model, loss = TASKS[task]
    data = dt.Text(db.from_sequence(records, npartitions=5), text=0, context=16, **fields)
    trainer = dt.Trainer(lambda schema: model(), loss, partial(torch.optim.AdamW, lr=1e-3), observers=[*observers])
    return trainer.fit(data, client=dt.LocalWire(workers), **({"epochs": 2, "batch_size": 32} | settings))


@pytest.mark.parametrize("task", TASKS)
def test_a_run_on_texts_that_was_stopped_ends_as_if_it_had_not(task: str, tmp_path: Path) -> None:
    url = str(tmp_path / "checkpoints")
    fit(task, 3, dt.Checkpoint(url, "1 round"), max_rounds=3)
    assert fit(task, 2, resume=url).digest == fit(task, 1).digest


@pytest.mark.parametrize("task", TASKS)
def test_other_texts_are_refused(task: str, tmp_path: Path) -> None:
    url = str(tmp_path / "checkpoints")
    fit(task, 1, dt.Checkpoint(url, "1 round"), max_rounds=1)
    text, *others = RECORDS[7]
    records = [*RECORDS[:7], (text.replace("to", "do"), *others), *RECORDS[8:]]
    with pytest.raises(BadInput, match="partition"):
        fit(task, 1, resume=url, records=records)
