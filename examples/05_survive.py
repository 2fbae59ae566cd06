"""Kill workers and the run itself while it trains; end with the bits of a run on which all went well."""

import os
import random
import signal
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import torch
from dask.distributed import Client, LocalCluster
from torch import nn

import dasktrain as dt

ROUNDS = 200


class Saboteur(dt.Observer):
    """Kills a worker every 50 rounds."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def start(self, run: Any) -> None:
        """Remember the run."""
        self.run = run

    def round(self, record: dict[str, Any]) -> None:
        """Kill one if it is time."""
        if self.run.cursor.done % 50 == 25:
            pid = random.choice(list(self.client.run(os.getpid, on_error="ignore").values()))
            print(f"kill -9 {pid} after epoch {record['epoch']}, round {record['round']}")
            os.kill(pid, signal.SIGKILL)


def data() -> dt.Arrays:
    """Return points of two classes, one inside the other."""
    points = np.random.default_rng(0).normal(size=(20_000, 2)).astype(np.float32)
    return dt.Arrays(points, (np.hypot(*points.T) > 1).astype(np.int64))


def trainer(*observers: dt.Observer) -> dt.Trainer:
    """Return a small network's trainer."""
    model = nn.Sequential(nn.Linear(2, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 2))
    return dt.Trainer(
        model, nn.CrossEntropyLoss(), partial(torch.optim.AdamW, lr=1e-3), {"accuracy": dt.accuracy}, [*observers]
    )


def main() -> None:
    """Train three times: with kills, stopping half-way; going on from there; and undisturbed."""
    torch.manual_seed(0)
    model = trainer().model
    with (
        tempfile.TemporaryDirectory() as folder,
        # LocalCluster gives up a worker that dies twice within 15 s; here they die often
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}),
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        url = str(Path(folder) / "checkpoints")

        def fit(rounds: int, *observers: dt.Observer, **settings: Any) -> dt.Result:
            made = trainer(*observers)
            made.model = model
            return made.fit(data(), batch_size=512, shards=8, max_rounds=rounds, **settings)

        first = fit(ROUNDS // 2, dt.Progress(), Saboteur(client), dt.Checkpoint(url, "25 rounds"), client=client)
        print(f"stopped after {len(first.history.rounds)} rounds, going on from the newest checkpoint")
        second = fit(
            ROUNDS, dt.Progress(), Saboteur(client), dt.Checkpoint(url, "25 rounds"), client=client, resume=url
        )
        calm = fit(ROUNDS, client=dt.LocalWire())
    print(f"digest with kills and a resume  {second.digest}")
    print(f"digest on one calm worker       {calm.digest}")
    if second.digest != calm.digest:
        raise SystemExit("the bits differ")
    print("equal, bit for bit")


if __name__ == "__main__":
    main()
