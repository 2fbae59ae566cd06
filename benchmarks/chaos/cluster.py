"""A LocalCluster whose workers may be killed, and problems whose rounds take as long as real ones."""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import dask
import numpy as np
import torch
from dask.distributed import Client, LocalCluster
from torch import nn

import dasktrain as dt
from benchmarks.problems import mlp

Pids = Callable[[], dict[str, int]]
ROWS, INPUTS, CLASSES, WIDTH = 32_768, 100, 10, 940


@contextmanager
def mortal_cluster(workers: int) -> Iterator[tuple[Client, Pids]]:
    """Start workers whose nannies start others in the place of those that are killed."""
    # or LocalCluster would give up a worker that is killed twice within 15 s, with its nanny
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}):
        cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0", silence_logs=50)
        with Client(cluster, set_as_default=False) as client:
            yield client, lambda: _pids(cluster)
        with suppress(KeyError):  # LocalCluster.close trips over a worker that it has not seen come back
            cluster.close()


def _pids(cluster: LocalCluster) -> dict[str, int]:
    """Return address -> process of the workers that are alive, without asking any of them."""
    nannies = [nanny for nanny in cluster.workers.values() if nanny.process is not None and nanny.is_alive()]
    return {str(nanny.worker_address): nanny.process.pid for nanny in nannies}


def trainer(*observers: dt.Observer) -> dt.Trainer:
    """Return one of a network of a million parameters."""
    return dt.Trainer(
        mlp(INPUTS, WIDTH, CLASSES), nn.CrossEntropyLoss(), partial(torch.optim.AdamW, lr=1e-3), observers=[*observers]
    )


def data() -> dt.Arrays:
    """Return rows for it."""
    rng = np.random.default_rng(0)
    return dt.Arrays(rng.normal(size=(ROWS, INPUTS)).astype(np.float32), rng.integers(0, CLASSES, ROWS))


class Killer(dt.Observer):
    """Kills (or stops) one of the workers that compute, now and then, but leaves so many of them."""

    def __init__(self, pids: Pids, every: int, seed: int, leaves: int = 1) -> None:
        self.pids, self.every, self.random, self.leaves = pids, every, random.Random(seed), leaves
        self.kills, self.members = 0, set[str]()

    def stage(self, text: str) -> None:
        """Keep track of who computes."""
        worker = text.split()[1] if text.startswith("worker ") else ""
        if text.endswith(" joined"):
            self.members.add(worker)
        if " went away: " in text:
            self.members.discard(worker)

    def start(self, run: Any) -> None:
        """Begin with all."""
        self.run, self.members = run, set(run.workers)
        self.due = self.every

    def round(self, record: dict[str, Any]) -> bool | None:
        """Strike if it is time and enough would be left."""
        if self.run.cursor.done >= self.due and len(self.members) > self.leaves:
            self.strike(signal.SIGKILL)
            self.due = self.run.cursor.done + self.every
        return None

    def strike(self, signal_: signal.Signals, delay: float = 0.0) -> int:
        """Send a signal to one of those that compute, now or in so many seconds; return its process."""
        pid = self.pids()[self.random.choice(sorted(self.members))]
        if delay:
            threading.Timer(delay, os.kill, (pid, signal_)).start()
        else:
            os.kill(pid, signal_)
        self.kills += 1
        return pid
