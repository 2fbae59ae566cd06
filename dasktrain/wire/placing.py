"""What a run has Dask itself compute, and the partitions that stay where they are read."""

from collections.abc import Sequence
from operator import attrgetter
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

import dask
from dask.delayed import Delayed
from distributed import Client, Future

from dasktrain.config import seconds
from dasktrain.messages import Kind
from dasktrain.wire.pins import unpin
from dasktrain.wire.silence import expel_silent

#: seconds between looks at whether a worker that holds something up is still heard of
LOOK = 1.0


class Placing:
    """Tasks of a run, and futures of its partitions.

    Parameters
    ----------
    client
        Whose tasks they are.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._blocks: dict[Kind, list[Future]] = {}

    @property
    def keys(self) -> dict[Kind, list[Any]]:
        """Dask's keys of the partitions."""
        return {kind: [future.key for future in futures] for kind, futures in self._blocks.items()}

    def persist(self, tasks: Sequence[Delayed]) -> list[Delayed]:
        """Start tasks wherever Dask likes; what is returned holds their futures."""
        with quiet_graphs():
            persisted: list[Delayed] = self._client.persist(list(tasks))
        return persisted

    def compute(self, tasks: Sequence[Delayed]) -> list[Any]:
        """Run tasks wherever Dask likes and gather their results."""
        with quiet_graphs():
            futures = self._client.compute(list(tasks))
        try:
            self.wait(futures)
            results: list[Any] = self._client.gather(futures)
        finally:
            released(futures)
        return results

    def place(self, kind: Kind, tasks: Sequence[Delayed], owners: Sequence[str]) -> list[str]:
        """Run tasks on their owners and hold the results there; return their fingerprints."""
        futures: dict[int, Future] = {}
        for owner in sorted(set(owners)):
            mine = [number for number, name in enumerate(owners) if name == owner]
            with quiet_graphs():
                made = self._client.compute(
                    [tasks[number] for number in mine], workers=[owner], allow_other_workers=True
                )
            futures.update(zip(mine, made, strict=True))
        self._blocks[kind] = [futures[number] for number in range(len(tasks))]
        # Asked for now and first, each is read as its partition comes, and not when all of them may be on the disk.
        fingerprints = self._client.map(attrgetter("fingerprint"), self._blocks[kind], pure=False, priority=100)
        self.wait(self._blocks[kind])
        self._client.run_on_scheduler(unpin, [future.key for future in self._blocks[kind]], gone=False)
        try:
            for future in self._blocks[kind]:
                if future.status == "error":
                    future.result()
            self.wait(fingerprints)
            found: list[str] = self._client.gather(fingerprints)
        finally:
            released(fingerprints)
        return found

    def wait(self, futures: Sequence[Future], timeout: float | None = None) -> None:
        """Wait until tasks have ended, giving up workers that have fallen silent.

        Not distributed.wait: it needs a current client, and making one current is not safe among threads.
        """
        deadline = None if timeout is None else monotonic() + timeout
        ended: SimpleQueue[Future] = SimpleQueue()
        for future in futures:
            future.add_done_callback(ended.put)
        waiting = len(futures)
        while waiting:
            patience = LOOK if deadline is None else min(LOOK, deadline - monotonic())
            try:
                ended.get(timeout=max(0.0, patience))
                waiting -= 1
                continue
            except Empty:
                if deadline is not None and monotonic() >= deadline:
                    return
            silence = seconds("timeouts.silence")
            self._client.sync(expel_silent, self._client.scheduler, self._client.rpc, silence)
            self._client.run_on_scheduler(unpin, [future.key for future in futures], gone=True)

    def close(self) -> None:
        """Let go of the partitions."""
        for futures in self._blocks.values():
            released(futures)
        self._blocks = {}


def released(futures: Sequence[Future]) -> None:
    """Let go of results now, and not when the last traceback that mentions them is forgotten.

    Not cancel: another run of this client may hold the same partitions.
    """
    for future in futures:
        future.release()


def quiet_graphs() -> Any:
    """Let pandas and NumPy input travel in the graph, which is where Dask can recompute it from."""
    return dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"})
