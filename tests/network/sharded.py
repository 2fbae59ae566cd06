"""A driver's host: it trains, and says how many bytes its link carried: ``python sharded.py SCHEDULER WORKERS``."""

import json
import sys
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client

import dasktrain as dt
from dasktrain import topology
from tests.network.together import PATIENCE, fit


class Meter(dt.Observer):
    """Reads the bytes that this host's link has received, and sent, at the end of each round."""

    def __init__(self) -> None:
        self.read: list[tuple[int, int]] = []

    def round(self, record: dict[str, Any]) -> None:
        lines = [line.split() for line in Path("/proc/net/dev").read_text().splitlines()]
        self.read += [(int(line[1]), int(line[9])) for line in lines if line[0] == "eth0:"]


def main(scheduler: str, workers: str) -> None:
    """Train each way, and print digests, and the bytes received and sent in each round: owners step in the second."""
    digests, carried = [fit(dt.LocalWire(), Meter())], []
    with Client(scheduler, timeout=PATIENCE, set_as_default=False) as client:
        client.wait_for_workers(int(workers), timeout=PATIENCE)
        for reduction, checked in (("sharded", 1.0), ("sharded", inf), ("flat", inf)):
            meter, topology.CHECKED, topology.STEPPED = Meter(), checked, inf
            digests.append(fit(client, meter, reduction=reduction))
            carried.append(np.diff(meter.read, axis=0).tolist())
    print(json.dumps({"digests": digests, "carried": carried}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
