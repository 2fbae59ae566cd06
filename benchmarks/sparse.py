"""Seconds of a round with a table of ten million rows, against the same with one of a hundred thousand.

Embeddings that are ``sparse=True``: both touch as many rows, so that the ratio should be about 1. Alternately, 2
workers on one host, with SGD and with SparseAdam; ``python -m benchmarks.sparse [pairs [rows]]``: ten million take
8 GB.
"""

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from dask.distributed import Client, LocalCluster
from torch import Tensor, nn

import dasktrain as dt
from benchmarks.measure import spread, write

SMALL, LARGE, WIDTH = 100_000, 10_000_000, 16
ROWS, TOKENS, BATCH = 8192, 4, 1024
PAIRS, COUNT, WARM, WORKERS = 3, 100, 10, 2
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "AdamW and SparseAdam": partial(
        dt.Optimizers,
        makers={"dense": partial(torch.optim.AdamW, lr=1e-3), "sparse": partial(torch.optim.SparseAdam, lr=1e-3)},
    ),
}


class Tables(nn.Module):
    """The mean of a few rows of a table, and a linear layer."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(rows, WIDTH, sparse=True)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """(rows, tokens) integers -> (rows, 2)."""
        return self.head(self.table(tokens))


def seconds(rows: int, optimizer: str, client: Client) -> list[float]:
    """Return the seconds of each round with a table of so many rows."""
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, rows, (ROWS, TOKENS)), rng.integers(0, 2, ROWS)
    trainer = dt.Trainer(lambda schema: Tables(rows), nn.CrossEntropyLoss(), OPTIMIZERS[optimizer], observers=[])
    result = trainer.fit(dt.Arrays(X, y), batch_size=BATCH, shards=WORKERS, max_rounds=COUNT + WARM, client=client)
    return [record["seconds"] for record in result.history.rounds[WARM:]]


def compared(optimizer: str, client: Client, pairs: int, most: int) -> dict[str, object]:
    """Measure both tables, alternately."""
    found = [[float(np.median(seconds(rows, optimizer, client))) for rows in (most, SMALL)] for _ in range(pairs)]
    large, small = zip(*found, strict=True)
    return {
        f"{most:,} rows, ms": spread(large, 1e3),
        f"{SMALL:,} rows, ms": spread(small, 1e3),
        "ratio": spread([one / other for one, other in found]),
    }


def run(pairs: int = PAIRS, most: int = LARGE) -> None:
    """Measure and write."""
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, memory_limit=0, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        figures = {optimizer: compared(optimizer, client, pairs, most) for optimizer in OPTIMIZERS}
    touched = f"{BATCH * TOKENS} at most of {WIDTH} numbers"
    write("sparse", {"pairs": pairs, "rows touched": touched, **figures})


if __name__ == "__main__":
    run(*map(int, sys.argv[1:]))
