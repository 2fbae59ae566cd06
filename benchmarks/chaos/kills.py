"""Real ``kill -9`` of workers, one every ten rounds, and what the round that loses one costs."""

import os
import signal
from typing import Any

import numpy as np

import dasktrain as dt
from benchmarks.chaos.cluster import Killer, data, mortal_cluster, trainer
from benchmarks.measure import spread
from tests.chaos import Counting
from tests.problems import PARTITIONS, PROBLEMS, SETTINGS

KILLS, EVERY, WORKERS = int(os.environ.get("KILLS", "100")), 10, 4
LOSSES, BATCH = 10, 1024


class Every(Killer):
    """Ends the run once there were enough kills, at the end of an epoch."""

    def epoch(self, record: dict[str, Any]) -> bool:
        """Ask to stop."""
        return self.kills >= KILLS


def run(seed: int) -> dict[str, Any]:
    """Kill and kill; compare the digest, and the rows of every epoch."""
    problem = PROBLEMS[2]  # batch normalisation and dropout
    with mortal_cluster(WORKERS) as (client, pids):
        killer, counting = Every(pids, EVERY, seed, leaves=0), Counting()
        trainer_ = problem.trainer([killer])
        trainer_.strategy = counting
        settings: dict[str, Any] = SETTINGS | {"epochs": None, "max_rounds": 10**6}
        result = trainer_.fit(problem.data, client=client, **settings)
    done, epochs = len(result.history.rounds), len(result.history)
    same = result.digest == problem.fit(dt.LocalWire(), epochs=None, max_rounds=done).digest
    per_epoch = np.reshape(counting.rows, (epochs, -1)).sum(axis=1)  # of the answers that were used
    whole = bool((per_epoch == sum(PARTITIONS)).all())
    rows = "every row once an epoch" if whole else "ROWS LOST OR DOUBLED"
    return {
        "goal": f"{KILLS} kills, one per ~10 rounds: same digest, every row once an epoch",
        "seen": f"{killer.kills} kills in {done} rounds: {'same' if same else 'ANOTHER'} digest, {rows}",
        "holds": same and whole and killer.kills >= KILLS,
        "kills": killer.kills,
        "rounds": done,
        "slowest round, s": max(record["seconds"] for record in result.history.rounds),
    }


class InTheMiddle(Killer):
    """Kills in the middle of a round, and waits for all to be back before the next."""

    def start(self, run: Any) -> None:
        """Begin with nothing measured."""
        super().start(run)
        self.seconds, self.lost = list[float](), list[float]()
        self._wounded = False

    @property
    def median(self) -> float:
        """Of the latest rounds that lost nobody."""
        return float(np.median(self.seconds[-100:]))

    def round(self, record: dict[str, Any]) -> bool:
        """Strike half a round from now, once the workers are all there again."""
        (self.lost if self._wounded else self.seconds).append(record["seconds"])
        self._wounded = self.run.cursor.done >= self.due and len(self.members) == len(self.run.workers)
        if self._wounded:
            self.strike(signal.SIGKILL, self.median / 2)
            self.due = self.run.cursor.done + self.every
        return len(self.lost) >= LOSSES


def losses(seed: int) -> dict[str, Any]:
    """Measure rounds that lose one of two workers half-way."""
    with mortal_cluster(2) as (client, pids):
        killer = InTheMiddle(pids, 20, seed)
        trainer(killer).fit(data(), batch_size=BATCH, shards=8, max_rounds=10_000, client=client)
    limit = 2 * killer.median + 1
    return {
        "goal": "a round that loses a worker: <= 2 median rounds + 1 s",
        "seen": f"slowest {max(killer.lost):.2f} of {len(killer.lost)}; median {killer.median:.3f}, limit {limit:.2f}",
        "holds": max(killer.lost) <= limit,
        "rounds that lost a worker, s": spread(killer.lost),
        "all others, s": spread(killer.seconds),
    }
