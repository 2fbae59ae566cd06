"""What all peers of the table have in common: its rows in memory, the model, the optimizer, the step and the clock."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.problems import COLUMNS, mlp

BATCH, WORKERS = 1024, 2
#: rows of a worker's batch
SHARE = BATCH // WORKERS


def rows_of(folder: Path, rank: int = 0, workers: int = 1) -> tuple[Tensor, Tensor]:
    """Return a worker's share of the table, float32 and contiguous, and its labels."""
    frame = pd.concat(pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))[rank::workers])
    X = np.ascontiguousarray(frame.drop(columns="label").to_numpy(np.float32))
    return torch.from_numpy(X), torch.from_numpy(frame["label"].to_numpy(np.int64))


@dataclass
class Shuffled:
    """Batches gathered by whole batches, in another order each time."""

    X: Tensor
    y: Tensor
    size: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(self.X)).split(self.size):
            yield self.X[rows], self.y[rows]


def model() -> nn.Module:
    """Return the model."""
    return mlp(COLUMNS, 256, 2)


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer, as a user gets it."""
    return torch.optim.AdamW(module.parameters(), lr=1e-3)


def seconds_of_epoch(module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], warm: int) -> float:
    """Train for an epoch and return how long it took; some rounds of another epoch before it do not count."""
    optimizer = adamw(module)
    for batch in islice(batches, warm):
        step(module, optimizer, *batch)
    started = perf_counter()
    for batch in batches:
        step(module, optimizer, *batch)
    return perf_counter() - started


def step(module: nn.Module, optimizer: torch.optim.Optimizer, X: Tensor, y: Tensor) -> None:
    """Take a step."""
    optimizer.zero_grad()
    F.cross_entropy(module(X), y).backward()
    optimizer.step()
