"""What a round costs when there is nothing to compute: 1,010 parameters, 2 workers, Dask wire.

Beside it, alternately, the same run on the in-process wire: what is not the wire's.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from dask.distributed import Client, LocalCluster
from torch import nn

import dasktrain as dt
from benchmarks.measure import spread, write

PAIRS, ROUNDS, WARM = 10, 400, 50


def run() -> None:
    """Measure and write."""
    rng = np.random.default_rng(0)
    data = dt.Arrays(rng.normal(size=(64, 100)).astype(np.float32), rng.integers(0, 10, 64))
    trainer = dt.Trainer(nn.Linear(100, 10), nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=0.01), observers=[])

    def rounds(client: Any) -> list[float]:
        result = trainer.fit(data, batch_size=2, shards=2, max_rounds=ROUNDS + WARM, client=client)
        return [record["seconds"] for record in result.history.rounds[WARM:]]

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        pairs = [(rounds(client), rounds(dt.LocalWire(2))) for _ in range(PAIRS)]
    dask, local = ([seconds for pair in pairs for seconds in pair[place]] for place in (0, 1))
    ratios = [float(np.median(one) / np.median(other)) for one, other in pairs]
    write(
        "empty_round",
        {
            "dask wire, ms a round": spread(dask, 1e3),
            "in-process wire, ms a round": spread(local, 1e3),
            "ratio of medians": spread(ratios),
            "goal": "p50 <= 1.5 ms",
        },
    )


if __name__ == "__main__":
    run()
