"""Hosts with links of their own that are cut, deaf, slow or long: ``python -m benchmarks.chaos network``."""

import os
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import dasktrain as dt
from tests.network import faults
from tests.network.cluster import Cluster, running
from tests.network.driver import fit
from tests.network.hosts import missing

Fault = Callable[[Cluster], faults.Said]
REPEATS = int(os.environ.get("PARTITIONS", "3"))
NEAR = (
    faults.one_is_cut,
    faults.half_are_cut,
    faults.one_is_not_heard,
    faults.one_is_cut_and_comes_back,
    faults.links_are_slow,
)
FAR = (faults.one_is_cut, faults.links_are_slow)
#: seconds from a host to the switch: 20 ms from host to host
DELAY = 0.01


def run(seed: int) -> dict[str, Any]:
    """Have every fault happen so many times, in random order, on hosts that are near and that are far; compare."""
    wanted, chance = fit(dt.LocalWire(2)).digest, random.Random(seed)
    seen = {
        name: _broken(chance, kinds, delay, wanted) if missing(delay) is None else []
        for name, kinds, delay in (("near", NEAR, 0.0), ("20 ms apart", FAR, DELAY))
    }
    every = [each for there in seen.values() for each in there]
    others = [each["fault"] for each in every if not each["same"]]
    possible = [f"{len(there)} on hosts {name}" for name, there in seen.items()]
    return {
        "goal": "links between hosts cut (one, half), one-way, cut and healed, slow, long: same digest",
        "seen": f"{', '.join(possible)}: {f'ANOTHER digest after {others}' if others else 'same digest'}; "
        f"{sum(each['noticed'] for each in every)} times a worker was late or gone",
        "holds": all(seen.values())
        and not others
        and all(each["noticed"] for each in every if each["fault"] != faults.links_are_slow.__name__),
        "faults": seen,
        "hindrance": missing(DELAY),
    }


def _broken(chance: random.Random, kinds: Sequence[Fault], delay: float, wanted: str) -> list[dict[str, Any]]:
    """Return what became of each fault on a cluster whose hosts are so far from their switch."""
    found, order = [], list(kinds) * REPEATS
    chance.shuffle(order)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), delay) as cluster:
        for fault in order:
            started, said = monotonic(), fault(cluster)
            found.append(
                {
                    "fault": fault.__name__,
                    "same": said["digest"] == wanted,
                    "noticed": faults.noticed(said),
                    "seconds": round(monotonic() - started, 1),
                }
            )
    return found
