"""What it costs to be watched: seconds of a round with a log, TensorBoard and the dashboard, and with nothing.

0.8M parameters, 128 rows a worker, 2 workers of one thread each; alternately.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from dask.distributed import Client, LocalCluster
from torch import nn

import dasktrain as dt
from benchmarks.measure import spread, write
from benchmarks.problems import STEPS, Step, rows_for

PAIRS, COUNT, WARM, WORKERS = 20, 120, 5, 2


def seconds(case: Step, client: Client, observers: list[dt.Observer]) -> float:
    """Return the median seconds from the end of a round to the end of the next, whatever lies between them."""
    parts = [rows_for(case, WORKERS, rank) for rank in range(WORKERS)]
    X, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    trainer = dt.Trainer(
        case.model(), nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=1e-3), observers=[*observers, clock := Clock()]
    )
    trainer.fit(dt.Arrays(X, y), batch_size=case.rows * WORKERS, shards=WORKERS, max_rounds=COUNT + WARM, client=client)
    return float(np.median(np.diff(clock.ends[WARM:])))


class Clock(dt.Observer):
    """Notes when rounds end."""

    order = 2  # after all others

    def __init__(self) -> None:
        self.ends: list[float] = []

    def round(self, record: dict[str, object]) -> None:
        """Note it."""
        self.ends.append(perf_counter())


def watching(directory: str) -> list[dt.Observer]:
    """Return those that watch."""
    where = Path(directory)
    return [dt.Dashboard(), dt.TensorBoard(str(where / "events")), dt.Log(str(where / "log.jsonl"), every="round")]


def run(pairs: int = PAIRS) -> None:
    """Measure and write."""
    (case,) = (case for case in STEPS if case.name == "0.8M")
    found = []
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        for _ in range(pairs):
            with tempfile.TemporaryDirectory() as directory:
                found.append((seconds(case, client, watching(directory)), seconds(case, client, [])))
    watched, alone = ([pair[place] for pair in found] for place in (0, 1))
    figures = {
        "watched, ms": spread(watched, 1e3),
        "alone, ms": spread(alone, 1e3),
        "ratio": spread([a / b for a, b in found]),
        "goal": "<= 1.02",
    }
    write("observers", {"case": case.name, "pairs": pairs, **figures})


if __name__ == "__main__":
    run(*map(int, sys.argv[1:]))
