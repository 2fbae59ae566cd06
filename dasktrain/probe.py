"""What workers are like, found out the way a run would: by a lease, its connection, and rounds that do nothing."""

import os
import platform
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from time import monotonic, perf_counter
from typing import Any

import numpy as np
from dask.system import CPU_COUNT

from dasktrain.compute import Device
from dasktrain.domain import canary, digest_of_bits
from dasktrain.errors import WorkerLost
from dasktrain.events import Answered, Domain, Failed, Joined, Left, Ready, Refused
from dasktrain.messages import Answer, Bucket, Partial, State, Task
from dasktrain.shipping import pack
from dasktrain.vector import Memory
from dasktrain.wire import Wire

#: empty rounds whose median is a worker's latency
ROUNDS = 20
#: float32 that go to a worker and back to measure bandwidth, and how often
FLOATS, TIMES = 2_000_000, 3
#: seconds between looks at the time
LOOK = 0.5
#: seconds for a round
PATIENCE = 10.0


@dataclass(frozen=True)
class Sample:
    """What was found out of a worker.

    Attributes
    ----------
    fault : str or None
        Why it could not be leased, with what to do.
    domain : dict
        What changes bits: torch, kernel path, threads, the digest of a trial computation.
    host : str
        Name of its machine or container.
    cores : int
        That it may use.
    shared_memory : int
        Bytes of /dev/shm; 0: there is none.
    latency : float or None
        Seconds of an empty round, median.
    bandwidth : float or None
        Bytes a second, both ways together.
    """

    fault: str | None = None
    domain: Domain | None = None
    host: str = ""
    cores: int = 0
    shared_memory: int = 0
    latency: float | None = None
    bandwidth: float | None = None


class Echo:
    """A replica that trains nothing: it tells where it is, and sends back what it was sent."""

    def __init__(
        self, threads: int, read: Callable[[str, int], Any], memory: Memory, send: Callable[[Bucket], None] | None
    ) -> None:
        self._threads = threads

    @property
    def stream(self) -> None:
        """Nothing: it has no gradients."""

    def domain(self) -> Domain:
        """Tell of the bits that this worker gives, and of its machine."""
        device = Device("auto")
        with device.pinned(self._threads):
            bits = {**device.facts(), "canary": digest_of_bits(canary(device.place))}
        return {**bits, "host": platform.node(), "cores": CPU_COUNT, "shared memory": _shared_memory()}

    def __call__(self, task: Task, state: State) -> Answer:
        """Send back the parameters."""
        return Answer(task, (Partial(task.start, task.stop, state.parameters, None),), 0.0)

    def stage(self, task: Task) -> None:
        """Nothing to get ready."""

    def forget(self, task: Task) -> None:
        """Nothing is kept."""

    def recut(self, bucket: int) -> None:
        """Nothing to cut."""

    def ahead(self, task: Task) -> None:
        """Nothing to get ready."""


def _shared_memory() -> int:
    with suppress(OSError):
        return shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0
    return 0


def probe(wire: Wire, patience: float) -> dict[str, Sample]:
    """Lease every worker of an open wire, measure one after another, and let them go.

    Parameters
    ----------
    patience
        Seconds for the leases of all.
    """
    wire.attach(pack(Echo, wire.threads))
    found = _leased(wire, patience)
    for worker, sample in found.items():
        if sample.fault is None:
            found[worker] = _measured(wire, worker, sample)
    return found


def _leased(wire: Wire, patience: float) -> dict[str, Sample]:
    found: dict[str, Sample] = {}
    deadline = monotonic() + patience
    while len(found) < len(wire.workers) and monotonic() < deadline:
        for event in wire.events(LOOK):
            match event:
                case Joined(worker) if worker in wire.workers:
                    wire.lease(worker, _task(wire))
                case Ready(worker, domain):
                    found[worker] = _sample(dict(domain))
                case Refused(worker, reason) | Left(worker, reason):
                    found[worker] = Sample(reason)
    missing = Sample(f"It must be leased within {patience:g} s, however it was not; see what keeps it busy")
    return {worker: found.get(worker, missing) for worker in wire.workers}


def _task(wire: Wire) -> Task:
    return Task(wire.run, "train", 0, 0, 0, 1)


def _sample(told: dict[str, Any]) -> Sample:
    host, cores, shared_memory = (told.pop(name) for name in ("host", "cores", "shared memory"))
    return Sample(None, told, host, cores, shared_memory)


def _measured(wire: Wire, worker: str, sample: Sample) -> Sample:
    try:
        latency = median(_round(wire, worker, 1) for _ in range(ROUNDS))
        seconds = min(_round(wire, worker, FLOATS) for _ in range(TIMES))
    except WorkerLost as error:
        return Sample(str(error), sample.domain, sample.host, sample.cores, sample.shared_memory)
    bandwidth = 2 * 4 * FLOATS / seconds
    return Sample(None, sample.domain, sample.host, sample.cores, sample.shared_memory, latency, bandwidth)


def _round(wire: Wire, worker: str, floats: int) -> float:
    """Return the seconds that so many float32 take to a worker and back."""
    state = State(np.zeros(floats, dtype=np.float32), np.empty(0, dtype=np.uint8))
    began = perf_counter()
    with wire.round(state):
        wire.send(worker, _task(wire))
        while perf_counter() - began < PATIENCE:
            for event in wire.events(LOOK):
                match event:
                    case Answered(who, _) if who == worker:
                        return perf_counter() - began
                    case Failed(who, failure) if who == worker:
                        raise WorkerLost(f"It must answer an empty round, however {failure.text}")
                    case Left(who, reason) if who == worker:
                        raise WorkerLost(f"It must stay for an empty round, however {reason}")
    raise WorkerLost(f"It must answer an empty round within {PATIENCE:g} s, however it did not; see what keeps it busy")
