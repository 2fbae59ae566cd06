"""Tasks are pinned to the workers that should hold their results, but not for longer than those live.

Dask never runs a task again whose workers are all gone, not even one that may run elsewhere, if there was no worker at
the time (its state is "no-worker"; distributed 2026.8, `bulk_schedule_unrunnable_after_adding_worker`).
"""

from collections.abc import Sequence
from typing import Any

from dasktrain.shipping import by_value


@by_value
def unpin(keys: Sequence[Any], gone: bool, dask_scheduler: Any = None) -> None:
    """Run on the scheduler: let tasks and what they are computed from run anywhere.

    Parameters
    ----------
    keys
        Of the tasks.
    gone
        Only those whose workers are all gone.
    """
    stack = [dask_scheduler.tasks[key] for key in keys if key in dask_scheduler.tasks]
    seen, stuck = set(), {}
    while stack:
        task = stack.pop()
        if task in seen:
            continue
        seen.add(task)
        stack.extend(task.dependencies)
        pinned = task.worker_restrictions
        if pinned and not (gone and any(worker in dask_scheduler.workers for worker in pinned)):
            task.worker_restrictions = None
            if task in dask_scheduler.unrunnable and dask_scheduler.workers:
                stuck[task.key] = "processing"
    if stuck:
        dask_scheduler.transitions(stuck, stimulus_id="dasktrain-unpin")
