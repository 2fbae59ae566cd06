"""What a run could leave behind on a cluster."""

import gc
from threading import Event
from time import monotonic

from distributed import Client


def assert_left(client: Client, before: dict[str, object], patience: float = 10.0) -> None:
    """Assert that a cluster comes to hold what it held before."""
    deadline, tick = monotonic() + patience, Event()
    while (left := left_on(client)) != before and monotonic() < deadline:
        tick.wait(0.05)
    assert left == before, f"{left} is left, not {before}"


def left_on(client: Client) -> dict[str, object]:
    """Return what a run could leave behind on a cluster."""
    gc.collect()  # a handle on a run that is in a cycle keeps its task
    client.run(gc.collect)

    def of_worker(dask_worker: object) -> object:
        import threading

        handlers = [name for name in dask_worker.handlers if "dasktrain" in name]  # type: ignore[attr-defined]
        threads = [thread.name for thread in threading.enumerate() if "dasktrain" in thread.name]
        return handlers, threads, len(dask_worker.data)  # type: ignore[attr-defined]

    def of_scheduler(dask_scheduler: object) -> object:
        return sorted(map(str, dask_scheduler.tasks))  # type: ignore[attr-defined]

    return {"workers": client.run(of_worker), "scheduler": client.run_on_scheduler(of_scheduler)}
