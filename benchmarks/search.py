"""Eight candidates in one pass over a table of a million rows, against one after another; with the same digests.

``python -m benchmarks.search [pairs [rows]]``: 2 workers x 1 thread, 28 columns, MLPs of 32 and 64, batches of 1024,
one epoch. What a search saves is reading, converting and gathering, and most of each round's way: of models so large
that computing is nearly all there is, it saves nothing.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter

import dask.dataframe as dd
import torch
from dask.distributed import Client, LocalCluster
from torch import nn

import dasktrain as dt
from benchmarks.measure import spread, write
from benchmarks.problems import write_table

ROWS, PARTITIONS, PAIRS, WORKERS = 1_000_000, 16, 3, 2
GRID = {"lr": [1e-3, 3e-3, 1e-2, 3e-2], "width": [32, 64]}
SETTINGS = {"epochs": 1, "batch_size": 1024, "shards": WORKERS}


def make(lr: float, width: int) -> dt.Trainer:
    """Return a candidate's trainer."""

    def model(schema: dt.Schema) -> nn.Module:
        return nn.Sequential(nn.Linear(28, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    return dt.Trainer(model, nn.CrossEntropyLoss(), partial(torch.optim.AdamW, lr=lr), observers=[])


def together(data: dt.Table, client: Client) -> list[str]:
    """Train all in one pass; return their digests."""
    found = dt.search(make, GRID, data, client=client, **SETTINGS)
    return list(found.frame.sort_values("candidate")["digest"])


def in_turn(data: dt.Table, client: Client) -> list[str]:
    """Train one after another; return their digests."""
    candidates = [{"lr": lr, "width": width} for lr in GRID["lr"] for width in GRID["width"]]
    return [make(**candidate).fit(data, client=client, **SETTINGS).digest for candidate in candidates]


def run(pairs: int = PAIRS, rows: int = ROWS) -> None:
    """Measure and write."""
    seconds: dict[str, list[float]] = {"together": [], "in turn": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        data = dt.Table(dd.read_parquet(write_table(Path(folder) / "table", rows, PARTITIONS)), target="label")
        for _ in range(pairs):
            digests = []
            for name, train in (("together", together), ("in turn", in_turn)):
                began = perf_counter()
                digests.append(train(data, client))
                seconds[name].append(perf_counter() - began)
            assert digests[0] == digests[1], digests
    ratios = [turn / one for turn, one in zip(seconds["in turn"], seconds["together"], strict=True)]
    figures = {f"{name}, s": spread(found, 1.0) for name, found in seconds.items()}
    goal = "at least 2 times faster, same digests"
    write("search", {"pairs": pairs, "rows": rows, **figures, "times faster": spread(ratios, 1.0), "goal": goal})


if __name__ == "__main__":
    run(*map(int, sys.argv[1:]))
