"""Seconds of a step against PyTorch DDP on gloo, and against bare forward and backward: 2 workers x 1 thread.

The same model, rows and global batch, alternately. Both use the optimizer as a user gets it: ``AdamW(lr=...)``.
What our rounds spend their time on is drawn beside the figures.
"""

import sys
from functools import partial
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from dask.distributed import Client, LocalCluster
from torch import nn

import dasktrain as dt
from benchmarks.measure import RESULTS, spread, write
from benchmarks.peers import ddp
from benchmarks.problems import STEPS, Step, rows_for

PAIRS, WARM, WORKERS = 20, 5, 2
#: steps of each half of a pair
COUNTS = {"4k": 300, "0.8M": 60, "9.4M": 10, "54.6M": 6}
GOALS = {"4k": 0.35, "0.8M": 0.80, "9.4M": 0.92, "54.6M": 0.72}


def bare(case: Step, count: int) -> list[float]:
    """Return the seconds of forward and backward alone, on one thread."""
    torch.set_num_threads(1)
    X, y = map(torch.from_numpy, rows_for(case, WORKERS, 0))
    model = case.model()
    seconds = []
    for _ in range(count + WARM):
        started = perf_counter()
        model.zero_grad()
        F.cross_entropy(model(X[: case.rows]), y[: case.rows]).backward()
        seconds.append(perf_counter() - started)
    torch.set_num_threads(WORKERS)
    return seconds[WARM:]


def ours(case: Step, optimizer: str, count: int, client: Client) -> list[float]:
    """Return the seconds of each round."""
    X, y = (
        np.concatenate(part) for part in zip(*(rows_for(case, WORKERS, rank) for rank in range(WORKERS)), strict=True)
    )
    trainer = dt.Trainer(
        case.model(), nn.CrossEntropyLoss(), partial(getattr(torch.optim, optimizer), lr=1e-3), observers=[]
    )
    result = trainer.fit(
        dt.Arrays(X, y), batch_size=case.rows * WORKERS, shards=WORKERS, max_rounds=count + WARM, client=client
    )
    result.profile().savefig(RESULTS / f"steps-{case.name}-{optimizer}.png", dpi=80)
    return [record["seconds"] for record in result.history.rounds[WARM:]]


def compared(case: Step, optimizer: str, client: Client, pairs: int) -> dict[str, object]:
    """Measure one case, alternately."""
    count = COUNTS[case.name]
    found = [(ours(case, optimizer, count, client), ddp.steps(case, optimizer, count, WARM)) for _ in range(pairs)]
    alone = float(np.median(bare(case, count)))
    one, other = ([float(np.median(pair[place])) for pair in found] for place in (0, 1))
    return {
        "dasktrain, ms": spread(one, 1e3),
        "DDP, ms": spread(other, 1e3),
        "bare forward and backward, ms": round(alone * 1e3, 3),
        "ratio": spread([a / b for a, b in zip(one, other, strict=True)]),
        "bound of the ratio by bare compute": round(alone / float(np.median(other)), 3),
        "goal": f"<= {GOALS[case.name]}",
    }


def run(names: list[str], pairs: int = PAIRS) -> None:
    """Measure and write."""
    figures = {}
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        for case in STEPS:
            for optimizer in ("SGD", "AdamW"):
                if not names or case.name in names:
                    figures[f"{case.name}, {optimizer}"] = compared(case, optimizer, client, pairs)
                    print(case.name, optimizer, figures[f"{case.name}, {optimizer}"], flush=True)
    write("steps", {"pairs": pairs, **figures})


if __name__ == "__main__":
    run(sys.argv[2:], int(sys.argv[1]) if sys.argv[1:] else PAIRS)
