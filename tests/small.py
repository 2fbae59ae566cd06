"""A small table, a small model, and how to train the one on the other in this process."""

import inspect
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

import dasktrain as dt
from dasktrain.observe import Record, Run

SGD = partial(torch.optim.SGD, lr=0.1)
LABELS = ["high", "low", "middle"]
_TRAINER = set(inspect.signature(dt.Trainer.__init__).parameters)


def frame(rows: int = 60) -> pd.DataFrame:
    """Return two features that tell something of three labels, and of a number."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, rows))
    label = np.array(LABELS)[np.digitize(a + b / 2, [-0.4, 0.4])]
    return pd.DataFrame({"a": a, "b": b, "number": a - b, "label": label})


def table(rows: int = 60, target: Any = "label", **settings: Any) -> dt.Table:
    """Return the small frame as training data."""
    return dt.Table(frame(rows), target=target, **({"numeric": ["a", "b"], "categorical": []} | settings))


def linear(schema: dt.Schema) -> nn.Module:
    """Return the least model that fits a schema."""
    return nn.Linear(schema.num_features, schema.num_outputs)


def fit(data: Any, wire: dt.LocalWire | None = None, **settings: Any) -> dt.Result:
    """Train for an epoch, with whatever settings of Trainer and of fit are given."""
    settings = {
        "model": linear,
        "loss": nn.CrossEntropyLoss(),
        "optimizer": SGD,
        "observers": [],
        "epochs": 1,
        "batch_size": 20,
    } | settings
    trainer = dt.Trainer(**{name: settings.pop(name) for name in list(settings) if name in _TRAINER})
    return trainer.fit(data, client=wire or dt.LocalWire(), **settings)


def closed(wire: dt.LocalWire) -> bool:
    """Tell whether a wire holds nothing any more."""
    return not (wire._blocks or wire._replicas or wire._events)


class Watcher(dt.Observer):
    """Keeps what it is told; asks to stop after so many rounds."""

    def __init__(self, stop_after_rounds: int | None = None) -> None:
        self.stop_after_rounds = stop_after_rounds
        self.stages: list[str] = []
        self.runs: list[Run] = []
        self.rounds: list[Record] = []
        self.epochs: list[Record] = []
        self.ends = 0

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def start(self, run: Run) -> None:
        self.runs.append(run)

    def round(self, record: Record) -> bool | None:
        self.rounds.append(record)
        return len(self.rounds) == self.stop_after_rounds

    def epoch(self, record: Record) -> bool | None:
        self.epochs.append(record)
        return None

    def end(self) -> None:
        self.ends += 1
