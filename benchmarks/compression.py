"""Payloads made small: bytes that cross, and accuracy of a small classifier of digits on held-out rows.

Everything else is the same: model, rows, optimizer, rounds. Bytes are those of the loopback interface while rounds go
on, by two workers of one shard each that share no memory with the driver; Dask's own messages are among them, and
those of any other job of this machine. What becomes of text: `benchmarks.few_bytes`.
"""

from argparse import ArgumentParser
from functools import partial
from statistics import mean
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
from dask.distributed import Client, LocalCluster
from sklearn.datasets import load_digits
from torch import nn

import dasktrain as dt
from benchmarks.few_bytes import WORKERS, Meter
from benchmarks.measure import write
from dasktrain.compression import Compression

SEEDS, EPOCHS, BATCH, HELD_OUT = 3, 60, 64, 360
COMPRESSIONS: dict[str, Compression | None] = {
    "none": None,
    "bfloat16": dt.Rounding("bfloat16"),
    "int8": dt.Rounding("int8"),
    "TopK": dt.TopK(),
    "PowerSGD": dt.PowerSGD(),
}


def digits(client: Client, compression: Compression | None, seed: int) -> dict[str, float]:
    """Train a classifier; return bytes a row, and its accuracy on held-out rows."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(X))
    X, y = (X[order] / 16).astype(np.float32), y[order]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    adamw, meter = partial(torch.optim.AdamW, lr=1e-3), Meter()
    trainer = dt.Trainer(model, nn.CrossEntropyLoss(), adamw, compression=compression, observers=[meter])
    rows = dt.Arrays(da.from_array(X[HELD_OUT:], chunks=(400, 64)), da.from_array(y[HELD_OUT:], chunks=400))
    result = trainer.fit(rows, epochs=EPOCHS, batch_size=BATCH, shards=WORKERS, client=client, seed=seed)
    with torch.no_grad():
        found = result.model(torch.from_numpy(X[:HELD_OUT])).argmax(dim=1).numpy()
    return {
        "bytes a row": meter.bytes / sum(record["rows"] for record in result.history.rounds),
        "accuracy": float((found == y[:HELD_OUT]).mean()),
    }


def run(seeds: int) -> None:
    """Measure and write."""
    figures: dict[str, dict[str, Any]] = {}
    with (
        dask.config.set({"dasktrain.shared-memory": False}),
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        for name, compression in COMPRESSIONS.items():
            each = [digits(client, compression, seed) for seed in range(seeds)]
            figures[name] = {figure: round(mean(one[figure] for one in each), 4) for figure in each[0]}
            print(name, figures[name], flush=True)
    plain = figures["none"]
    for found in figures.values():
        found["times fewer bytes"] = round(plain["bytes a row"] / found["bytes a row"], 1)
        found["points less"] = round(100 * (plain["accuracy"] - found["accuracy"]), 2)
    goal = "TopK and PowerSGD: 20 times fewer bytes, at most 0.5 points of accuracy less"
    write("compression", {"seeds": seeds, **figures, "goal": goal})


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    run(parser.parse_args().seeds)
