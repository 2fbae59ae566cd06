"""Small problems that every wire must solve with the same bits."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import dask.array as da
import numpy as np
import torch
from torch import Tensor, nn

import dasktrain as dt
from tests.reference import reference_digest

#: deliberately uneven, one empty, one of a single row
PARTITIONS = (97, 0, 1, 210, 33, 62)
CLASSES = 3
SETTINGS = {"epochs": 2, "batch_size": 50, "seed": 7}

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4),
    "AdamW": partial(torch.optim.AdamW, lr=1e-2),
}


def mlp() -> nn.Module:
    """Plain layers."""
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def normalised() -> nn.Module:
    """Buffers that change and random numbers that are drawn."""
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, CLASSES))


class Embedded(nn.Module):
    """Rows of a table that most shards do not touch, and a parameter that no shard does."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 5)
        self.head = nn.Linear(4 * 5, CLASSES)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, tokens: Tensor) -> Tensor:
        """(rows, 4) integers -> (rows, classes)."""
        return self.head(self.embedding(tokens).flatten(1))


class Tables(nn.Module):
    """Sparse tables: of tokens, the first of which is padding, and of bags; most of their rows nobody touches."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(40, 5, padding_idx=0, sparse=True)
        self.head = nn.Linear(4 * 5 + 3, CLASSES)
        self.bags = nn.EmbeddingBag(40, 3, mode="sum", sparse=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """(rows, 4) integers -> (rows, classes)."""
        return self.head(torch.cat([self.tokens(tokens).flatten(1), self.bags(tokens)], dim=1))


MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "normalised": normalised, "embedded": Embedded}
#: those that step what is dense, and tables
SPARSE: dict[str, tuple[Callable[..., torch.optim.Optimizer], Callable[..., torch.optim.Optimizer]]] = {
    "SGD": (partial(torch.optim.SGD, lr=0.1),) * 2,
    "Adagrad": (partial(torch.optim.Adagrad, lr=0.1),) * 2,
    "AdamW and SparseAdam": (OPTIMIZERS["AdamW"], partial(torch.optim.SparseAdam, lr=0.05)),
}


@dataclass(frozen=True)
class Problem:
    """A model, an optimizer, and the rows for them."""

    model: str
    optimizer: str

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return X and y."""
        rng = np.random.default_rng(5)
        rows = sum(PARTITIONS)
        X = (
            rng.integers(0, 12, (rows, 4))
            if self.model in ("embedded", "tables")
            else rng.normal(size=(rows, 6)).astype(np.float32)
        )
        return X, (np.abs(X).sum(axis=1) * 7).astype(np.int64) % CLASSES

    @property
    def data(self) -> dt.Arrays:
        """Return the rows in their partitions."""
        X, y = self.arrays
        chunks = tuple(PARTITIONS)
        return dt.Arrays(da.from_array(X, chunks=(chunks, X.shape[1])), da.from_array(y, chunks=(chunks,)))

    def trainer(self, observers: list[dt.Observer] | None = None) -> dt.Trainer:
        """Return the trainer; observers see the run."""
        dense, sparse = self.optimizers
        both = partial(dt.Optimizers, makers={"dense": dense, "sparse": sparse})
        return dt.Trainer(
            lambda schema: self.build(),
            loss=nn.CrossEntropyLoss(),
            optimizer=dense if sparse in (None, dense) else both,
            observers=observers or [],
        )

    def build(self) -> nn.Module:
        """Return the model."""
        return Tables() if self.model == "tables" else MODELS[self.model]()

    @property
    def optimizers(self) -> tuple[Any, Any]:
        """Return what makes the optimizers of all that is dense, and of tables."""
        return SPARSE[self.optimizer] if self.model == "tables" else (OPTIMIZERS[self.optimizer], None)

    def fit(self, client: object, **settings: object) -> dt.Result:
        """Train on a client or wire."""
        return self.trainer().fit(self.data, client=client, **(SETTINGS | settings))  # type: ignore[arg-type]


@cache
def expected(problem: Problem) -> str:
    """Return the digest of the single-process reference."""
    before, random = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    try:
        X, y = problem.arrays
        dense, sparse = problem.optimizers
        return reference_digest(X, y, PARTITIONS, problem.build, dense, **SETTINGS, make_sparse=sparse)
    finally:
        torch.set_num_threads(before)
        torch.set_rng_state(random)


PROBLEMS = [Problem(model, optimizer) for model in MODELS for optimizer in OPTIMIZERS]
OF_TABLES = [Problem("tables", optimizer) for optimizer in SPARSE]
