"""What faults and checkpoints cost: goodput with kills, and time with checkpoints, against the same run without."""

import os
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from dask.distributed import Client

import dasktrain as dt
from benchmarks.chaos.cluster import Killer, data, mortal_cluster, trainer
from benchmarks.measure import spread

PAIRS = int(os.environ.get("PAIRS", "5"))
KILL_EVERY, KILL_ROUNDS, KILL_BATCH, WORKERS = 50, 200, 4096, 4
CHECKPOINT_EVERY, CHECKPOINT_ROUNDS, BATCH = 100, 300, 1024


def _seconds(client: Client, observers: list[dt.Observer], rounds: int, batch: int) -> float:
    """Return how long rounds took, from the first to the last."""

    class Clock(dt.Observer):
        def start(self, run: Any) -> None:
            self.started = perf_counter()

        def end(self) -> None:
            self.seconds = perf_counter() - self.started

    clock = Clock()
    # Checkpoint's end, which waits for the last one, comes before the clock's: observers end in reverse order.
    trainer(clock, *observers).fit(data(), batch_size=batch, shards=8, max_rounds=rounds, client=client)
    return clock.seconds


def goodput(seed: int) -> dict[str, Any]:
    """Compare runs with a kill every 50 rounds and without, alternately, on one cluster."""
    ratios, kills = list[float](), 0
    with mortal_cluster(WORKERS) as (client, pids):
        for pair in range(PAIRS):
            client.wait_for_workers(WORKERS, timeout=60)
            calm = _seconds(client, [], KILL_ROUNDS, KILL_BATCH)
            killer = Killer(pids, KILL_EVERY, seed + pair)
            ratios.append(calm / _seconds(client, [killer], KILL_ROUNDS, KILL_BATCH))
            kills += killer.kills
    figures = spread(ratios)
    return {
        "goal": f"goodput with a kill every {KILL_EVERY} rounds >= 0.8 of fault-free",
        "seen": f"{_told(figures, 3)}; {PAIRS} pairs, {kills} kills, {WORKERS} workers",
        "holds": figures["p50"] >= 0.8,
        "ratio": figures,
    }


def checkpoints(seed: int) -> dict[str, Any]:
    """Compare runs with a checkpoint every 100 rounds and without, alternately, on one cluster."""
    costs = []
    with mortal_cluster(2) as (client, _), tempfile.TemporaryDirectory() as folder:
        for pair in range(PAIRS * 2):
            observer = dt.Checkpoint(str(Path(folder) / str(pair)), f"{CHECKPOINT_EVERY} rounds")
            runs = [(False, list[dt.Observer]()), (True, [observer])]
            seconds = {
                written: _seconds(client, observers, CHECKPOINT_ROUNDS, BATCH)
                for written, observers in (runs if pair % 2 else reversed(runs))
            }
            costs.append(seconds[True] / seconds[False] - 1)
    figures = spread(costs)
    return {
        "goal": f"a checkpoint every {CHECKPOINT_EVERY} rounds, 1M parameters: <= 2% of time",
        "seen": f"{_told(spread(costs, 100), 2)} %; {2 * PAIRS} pairs",
        "holds": figures["p50"] <= 0.02,
        "cost": figures,
    }


def _told(figures: dict[str, float], digits: int) -> str:
    return f"{figures['p50']:.{digits}f} ({figures['p25']:.{digits}f} to {figures['p75']:.{digits}f})"
