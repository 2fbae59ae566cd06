"""A driver's host: it trains, and says how many bytes its link carried: ``python together.py SCHEDULER WORKERS``."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import torch
from distributed import Client
from torch import nn

import dasktrain as dt

#: several buckets
INPUTS, WIDTH, CLASSES = 8, 200_000, 3
SHARDS, ROUNDS = 4, 6
#: seconds for workers to be there
PATIENCE = 60


class Meter(dt.Observer):
    """Reads the bytes that this host's link has received, at the end of each round."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def round(self, record: dict[str, Any]) -> None:
        lines = [line.split() for line in Path("/proc/net/dev").read_text().splitlines()]
        self.read.append(sum(int(line[1]) for line in lines if line[0] == "eth0:"))


def fit(client: object, meter: dt.Observer, **others: Any) -> str:
    """Train, and return the digest."""
    rng = np.random.default_rng(0)
    data = dt.Arrays(rng.normal(size=(64, INPUTS)).astype(np.float32), rng.integers(0, CLASSES, 64))
    trainer = dt.Trainer(model, nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=0.01), observers=[meter])
    settings: dict[str, Any] = {"batch_size": 32, "shards": SHARDS, "max_rounds": ROUNDS, "driver": "client"} | others
    return trainer.fit(data, client=client, **settings).digest  # type: ignore[arg-type]


def model(schema: object) -> nn.Module:
    """Return the model, the same at every call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))


def main(scheduler: str, workers: str) -> None:
    """Train with and without, and print digests, and the bytes received in each round of both."""
    digests, read = [fit(dt.LocalWire(), Meter())], []
    with Client(scheduler, timeout=PATIENCE, set_as_default=False) as client:
        client.wait_for_workers(int(workers), timeout=PATIENCE)
        for share in (True, False):
            meter = Meter()
            with dask.config.set({"dasktrain.shared-memory": share}):
                digests.append(fit(client, meter, reduction="flat"))
            read.append(np.diff(meter.read).tolist())
    print(json.dumps({"digests": digests, "read": read}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
