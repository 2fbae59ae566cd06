"""``kill -STOP`` of a worker: when its backup starts."""

import os
import signal
from contextlib import suppress
from time import monotonic
from typing import Any

import numpy as np

import dasktrain as dt
from benchmarks.chaos.cluster import Killer, mortal_cluster
from tests.problems import PROBLEMS, SETTINGS

STOPS = int(os.environ.get("STOPS", "10"))


class Stopper(Killer):
    """Stops a worker, lets it go on once its backup has answered, and waits until it is back."""

    def start(self, run: Any) -> None:
        """Begin with nothing measured."""
        super().start(run)
        self.waits: list[float] = []
        self._stopped: int | None = None

    def stage(self, text: str) -> None:
        """Hear of backups."""
        super().stage(text)
        if "backs up" in text:
            self.waits.append(monotonic() - self._at)

    def round(self, record: dict[str, Any]) -> bool:
        """Strike, or go on."""
        if self._stopped is not None:
            with suppress(ProcessLookupError):  # its nanny has ended it: its data was needed
                os.kill(self._stopped, signal.SIGCONT)
            self._stopped, self.due = None, self.run.cursor.done + self.every
        elif self.run.cursor.done >= self.due and len(self.members) == len(self.run.workers):
            self._stopped, self._at = self.strike(signal.SIGSTOP), monotonic()
        return len(self.waits) >= STOPS


def run(seed: int) -> dict[str, Any]:
    """Stop workers between rounds of milliseconds and compare the digest."""
    problem = PROBLEMS[2]
    with mortal_cluster(2) as (client, pids):
        stopper = Stopper(pids, 300, seed)
        settings = SETTINGS | {"epochs": None, "max_rounds": 10**6}
        result = problem.trainer([stopper]).fit(problem.data, client=client, **settings)  # type: ignore[arg-type]
    rounds = [record["seconds"] for record in result.history.rounds]
    same = result.digest == problem.fit(dt.LocalWire(), epochs=None, max_rounds=len(rounds)).digest
    usual = sorted(rounds)[: len(rounds) - STOPS]
    limit = max(3 * float(np.percentile(usual, 99)), 1.0)
    return {
        "goal": "a stopped worker's backup starts within max(3 x p99 round, 1 s)",
        "seen": f"latest of {len(stopper.waits)}: {max(stopper.waits):.3f} s; {'same' if same else 'ANOTHER'} digest",
        "holds": same and max(stopper.waits) <= limit + 0.1,  # the stop comes before its round begins
        "seconds to the backup": sorted(stopper.waits),
        "limit, s": limit,
    }
