"""Our settings, each overridden by ``dask.config`` under "dasktrain", e.g. DASK_DASKTRAIN__TIMEOUTS__ATTACH=2min."""

from typing import Any

import dask
from dask.utils import parse_timedelta

DEFAULTS = {
    "timeouts.workers": "60s",  # for a worker to appear when there is none, at the start and later
    "timeouts.attach": "60s",  # for a worker to start its lease and build its replica
    "timeouts.round": "1h",  # for the slowest answer of a round
    "timeouts.silence": "10s",  # for a heartbeat of a worker that holds something up, before it is given up
    "timeouts.close": "10s",  # for leases to end
    "threads": None,  # torch threads of a replica; None: the fewest any worker has
    "cache": "512MiB",  # other workers' partitions kept by a lease
}


def setting(name: str) -> Any:
    """Return one of DEFAULTS as dask.config has it."""
    return dask.config.get(f"dasktrain.{name}", DEFAULTS[name])


def seconds(name: str) -> float:
    """Return a time-out of DEFAULTS in seconds."""
    return float(parse_timedelta(setting(name), default="seconds"))
