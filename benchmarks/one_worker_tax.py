"""What dasktrain costs on one worker: against a plain loop over the same shards and rows, 0.8M parameters.

The plain loop accumulates the gradients of the same shards as torch does it, and steps: of one with all 1024 rows, and
of 8, as many as there are if nothing is said.
"""

from functools import partial
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from dask.distributed import Client, LocalCluster
from torch import nn

import dasktrain as dt
from benchmarks.measure import spread, write
from benchmarks.problems import mlp
from dasktrain.plan import Plan, rows_only

ROWS, INPUTS, CLASSES, BATCH = 32_768, 100, 10, 1024
#: shards -> what the ratio is to be
GOALS = {1: "<= 1.03", 8: "<= 1.10"}
PAIRS, ROUNDS, WARM = 20, 30, 3


def plain(X: torch.Tensor, y: torch.Tensor, model: nn.Module, shards: int) -> list[float]:
    """Return the seconds of each round of a plain loop."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    plan = Plan(rows_only([ROWS // 8] * 8), shards, BATCH)
    seconds = []
    for round in range(ROUNDS + WARM):
        started = perf_counter()
        optimizer.zero_grad()
        for shard in range(shards):
            rows = plan.rows(0, round % plan.rounds, shard)
            index = torch.from_numpy(rows.partition * (ROWS // 8) + rows.row)
            (F.cross_entropy(model(X[index]), y[index], reduction="sum") / BATCH).backward()
        optimizer.step()
        seconds.append(perf_counter() - started)
    return seconds[WARM:]


def run() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(ROWS, INPUTS)).astype(np.float32), rng.integers(0, CLASSES, ROWS)
    model = mlp(INPUTS, 840, CLASSES)
    trainer = dt.Trainer(model, nn.CrossEntropyLoss(), partial(torch.optim.AdamW, lr=1e-3), observers=[])

    def ours(client: Client, shards: int) -> list[float]:
        result = trainer.fit(dt.Arrays(X, y), batch_size=BATCH, shards=shards, max_rounds=ROUNDS + WARM, client=client)
        return [record["seconds"] for record in result.history.rounds[WARM:]]

    figures = {}
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        for shards, goal in GOALS.items():
            rows = torch.from_numpy(X), torch.from_numpy(y)
            pairs = [(ours(client, shards), plain(*rows, model, shards)) for _ in range(PAIRS)]
            figures[f"{shards} shards"] = {
                "dasktrain, ms a round": spread([second for pair in pairs for second in pair[0]], 1e3),
                "plain loop, ms a round": spread([second for pair in pairs for second in pair[1]], 1e3),
                "ratio of medians": spread([float(np.median(one) / np.median(other)) for one, other in pairs]),
                "goal": goal,
            }
    write("one_worker_tax", {"parameters": sum(parameter.numel() for parameter in model.parameters()), **figures})


if __name__ == "__main__":
    run()
