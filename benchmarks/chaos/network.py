"""Hosts with links of their own that are cut, deaf, slow or long: ``python -m benchmarks.chaos network``."""

import os
import random
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

import dasktrain as dt
from tests.network import faults
from tests.network.cluster import running
from tests.network.driver import fit
from tests.network.hosts import missing

REPEATS = int(os.environ.get("PARTITIONS", "3"))
FAULTS = {
    faults.one_is_cut: None,
    faults.half_are_cut: None,
    faults.one_is_not_heard: None,
    faults.one_is_cut_and_comes_back: None,
    faults.links_are_slow: missing(*faults.SLOW),
    faults.links_are_long: missing(*faults.FAR),
}


def run(seed: int) -> dict[str, Any]:
    """Have every fault happen so many times, in random order, on one cluster; compare digests."""
    possible = [fault for fault, hindrance in FAULTS.items() if hindrance is None] * REPEATS
    random.Random(seed).shuffle(possible)
    wanted, others, noticed = fit(dt.LocalWire(2)).digest, list[str](), 0
    seconds: dict[str, list[float]] = {fault.__name__: [] for fault in possible}
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as cluster:
        for fault in possible:
            started = monotonic()
            said = fault(cluster)
            if said["digest"] != wanted:
                others.append(fault.__name__)
            noticed += faults.noticed(said)
            seconds[fault.__name__].append(round(monotonic() - started, 1))
    left_out = {fault.__name__: hindrance for fault, hindrance in FAULTS.items() if hindrance is not None}
    return {
        "goal": "links between hosts cut (one, half), one-way, cut and healed, slow, long: same digest",
        "seen": f"{len(possible)} faults, {'same digest' if not others else f'ANOTHER after {others}'}; "
        f"{noticed} times a worker was late or gone; not possible here: {', '.join(left_out) or 'none'}",
        "holds": bool(possible) and not others,
        "seconds": seconds,
        "left out": left_out,
    }
