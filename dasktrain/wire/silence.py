"""Workers that are there and say nothing: stopped, swapped out, cut off.

Dask takes five minutes to give one up, and until then whatever only that worker holds cannot be had elsewhere.
"""

from typing import Any

#: seconds without a heartbeat after which a worker that holds something up is given up
PATIENCE = 5.0
#: seconds more for each worker: Dask spaces heartbeats so that they do not flood the scheduler
SPACING = 0.02


async def expel_silent(scheduler: Any) -> list[str]:
    """Have the scheduler take silent workers for dead, so that it computes what they held elsewhere.

    One that wakes up finds its connection closed and ends; its nanny, if it has one, starts another.

    Parameters
    ----------
    scheduler
        A client's or a worker's RPC to the scheduler.

    Returns
    -------
    list of str
        Addresses given up.
    """
    workers = (await scheduler.identity(n_workers=-1))["workers"]
    heard = {address: worker["last_seen"] for address, worker in workers.items()}
    newest = max(heard.values(), default=0.0)  # on the scheduler's clock, which need not be ours
    silent = [address for address, at in heard.items() if newest - at > PATIENCE + SPACING * len(heard)]
    for address in silent:
        await scheduler.unregister(address=address, stimulus_id=f"dasktrain-silent-{newest}", expected=True)
    return silent
