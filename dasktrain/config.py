"""Our settings, each overridden by ``dask.config`` under "dasktrain", e.g. DASK_DASKTRAIN__TIMEOUTS__ATTACH=2m."""

import math
from collections.abc import Callable
from typing import Any

import dask
from dask.utils import parse_bytes, parse_timedelta

from dasktrain.errors import BadInput

DEFAULTS = {
    "timeouts.workers": "60s",  # for a worker to appear when there is none, at the start and later
    "timeouts.attach": "60s",  # for a worker to start its lease and build its replica
    "timeouts.round": "1h",  # for the slowest answer of a round
    "timeouts.silence": "10s",  # for a heartbeat of a worker that holds something up, before it is given up
    "timeouts.close": "10s",  # for leases to end
    "threads": None,  # torch threads of a replica; None: the fewest any worker has
    "shared-memory": True,  # whether workers on the driver's host read and write in its memory
    "cache": None,  # partitions that a lease holds on to; None: an eighth of its worker's memory limit
}


def setting(name: str) -> Any:
    """Return one of DEFAULTS as dask.config has it: seconds, threads or None, bytes.

    Raises
    ------
    BadInput
        It is set to something else.
    """
    value = dask.config.get(f"dasktrain.{name}", DEFAULTS[name])
    parse, example = _KINDS[name.partition(".")[0]]
    try:
        return parse(value)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise BadInput(
            f"dasktrain.{name} of dask.config must be like {example}, however it is {value!r:.80}; set it anew"
        ) from error


def seconds(name: str) -> float:
    """Return a time-out of DEFAULTS in seconds."""
    found: float = setting(name)
    return found


def _seconds(value: Any) -> float:
    found = float(parse_timedelta(value, default="seconds"))
    if not (math.isfinite(found) and found >= 0):
        raise ValueError(f"{found} seconds cannot be waited for")
    return found


def _threads(value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"{value!r} is no number of threads")
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _bytes(value: Any) -> int | None:
    if value is None:
        return None
    found = int(parse_bytes(value))
    if found < 0:
        raise ValueError(f"{found} bytes cannot be kept")
    return found


_KINDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "timeouts": (_seconds, "'10s'"),
    "threads": (_threads, "1, or None"),
    "shared-memory": (_flag, "true or false"),
    "cache": (_bytes, "'512MiB', or None"),
}
