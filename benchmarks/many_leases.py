"""What a round costs the driver for each of a thousand leases: seconds of its thread, without the replicas'.

One replica answers for all leases of a wire in this process, which is what makes a thousand of them possible here; each
of them has one shard. The digest must be that of a single lease that has all shards.
"""

import sys
from functools import partial
from time import thread_time
from typing import Any

import numpy as np
import torch
from torch import nn

import dasktrain as dt
from benchmarks.measure import spread, write
from dasktrain.events import Ready
from dasktrain.messages import State, Task
from dasktrain.wire import Respond

LEASES, ROUNDS, WARM = 1024, 12, 2


class Measured:
    """A replica, and the seconds that it computes."""

    def __init__(self, replica: Respond) -> None:
        self._replica, self.seconds = replica, 0.0

    def __call__(self, task: Task, state: State) -> Any:
        """Answer."""
        began = thread_time()
        try:
            return self._replica(task, state)
        finally:
            self.seconds += thread_time() - began

    def __getattr__(self, name: str) -> Any:
        return getattr(self._replica, name)


class Simulated(dt.LocalWire):
    """Leases that share one replica."""

    replica: Measured | None = None

    def lease(self, worker: str, task: Task) -> None:
        """Build the replica for the first, and have all others share it."""
        if self.replica is None:
            super().lease(worker, task)
            self._events.pop()
            self.replica = Measured(self._replicas[worker])
            self._domain = self.replica.domain()
        self._replicas[worker] = self.replica
        self._events.append(Ready(worker, self._domain))

    def _copied(self, worker: str, state: State) -> State:
        return state


class Clock(dt.Observer):
    """Notes the driver's seconds, and those of replicas among them, at the end of each round."""

    def __init__(self, wire: Simulated) -> None:
        self._wire = wire
        self.ends: list[tuple[float, float]] = []

    def round(self, record: dict[str, Any]) -> None:
        """Note them."""
        assert self._wire.replica is not None
        self.ends.append((thread_time(), self._wire.replica.seconds))


def trained(wire: Any, observers: list[dt.Observer], leases: int) -> str:
    """Train on as many shards as there are leases; return the digest."""
    rng = np.random.default_rng(0)
    data = dt.Arrays(rng.normal(size=(2 * leases, 4)).astype(np.float32), rng.integers(0, 2, 2 * leases))
    torch.manual_seed(0)
    trainer = dt.Trainer(nn.Linear(4, 2), nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=0.1), observers=observers)
    settings: dict[str, Any] = {"batch_size": 2 * leases, "shards": leases, "max_rounds": ROUNDS + WARM}
    return trainer.fit(data, client=wire, **settings).digest


def run(leases: int = LEASES) -> None:
    """Measure and write."""
    wire = Simulated(leases)
    clock = Clock(wire)
    digest = trained(wire, [clock], leases)
    whole, computed = np.diff(np.array(clock.ends[WARM - 1 :]), axis=0).T
    assert digest == trained(dt.LocalWire(1), [], leases)
    figures = spread(list((whole - computed) / leases), 1e6)
    goal = "driver CPU per lease-message <= 100 us, digest equal to 1 lease"
    write("many_leases", {"leases": leases, "rounds": ROUNDS, "us a lease": figures, "digest": digest, "goal": goal})


if __name__ == "__main__":
    run(*map(int, sys.argv[1:]))
