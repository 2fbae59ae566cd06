"""Workers that are there and say nothing: stopped, swapped out, cut off.

Dask restarts one after five minutes, and until then whatever only that worker holds cannot be had elsewhere.
"""

import asyncio
from contextlib import suppress
from typing import Any

#: seconds more for each worker: Dask spaces heartbeats so that they do not flood the scheduler
SPACING = 0.02
#: seconds a nanny asks its worker to end before it kills it; one that woke up meanwhile would end its nanny as well
MERCY = 0.05
#: kills under way, which nobody waits for
_kills: set[asyncio.Task[None]] = set()


async def expel_silent(scheduler: Any, rpc: Any, patience: float) -> list[str]:
    """Have the scheduler take silent workers for dead, so that it computes what they held elsewhere.

    Their nannies, if they have any, start others in their place.

    Parameters
    ----------
    scheduler
        A client's or a worker's RPC to the scheduler.
    rpc
        Its pool of connections.
    patience
        Seconds without a heartbeat.

    Returns
    -------
    list of str
        Addresses given up.
    """
    workers = (await scheduler.identity(n_workers=-1))["workers"]
    heard = {address: worker["last_seen"] for address, worker in workers.items()}
    newest = max(heard.values(), default=0.0)  # on the scheduler's clock, which need not be ours
    silent = [address for address, at in heard.items() if newest - at > patience + SPACING * len(heard)]
    for address in silent:
        await scheduler.unregister(address=address, stimulus_id=f"dasktrain-silent-{newest}", expected=True)
        if workers[address]["nanny"]:
            kill = asyncio.create_task(_kill(rpc, workers[address]["nanny"]))
            _kills.add(kill)
            kill.add_done_callback(_kills.discard)
    return silent


async def _kill(rpc: Any, nanny: str) -> None:
    with suppress(OSError):  # it went with its worker
        await rpc(nanny).kill(timeout=MERCY, reason="dasktrain-silent")
