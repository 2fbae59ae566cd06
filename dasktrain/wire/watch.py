"""Who comes and goes on a cluster, as the scheduler tells it, without asking."""

from collections.abc import Callable
from typing import Any

from distributed import Client

from dasktrain.events import Event, Joined, Left

ACTIONS: dict[str, Callable[[str], Event]] = {
    "add-worker": Joined,
    "remove-worker": lambda worker: Left(worker, "the scheduler removed it"),
}


class Watch:
    """Tells of workers that join or leave, until it is closed.

    It has a client of its own: a client has one handler a topic, and the user's may be taken.

    Parameters
    ----------
    client
        Of the cluster.
    tell
        Called with every event, in the thread of the client's event loop.
    """

    def __init__(self, client: Client, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        # A worker's own client goes by its worker's certificate, and there may be no other: Dask tells by this name.
        name = "worker" if client.id.startswith("Client-worker-") else None
        self._client = Client(client.scheduler.address, security=client.security, set_as_default=False, name=name)
        self._client.subscribe_topic("all", self._heard)

    def _heard(self, event: tuple[float, Any]) -> None:
        _, message = event
        if not isinstance(message, dict):
            return  # anybody may log here
        action, worker = message.get("action"), message.get("worker")
        if isinstance(action, str) and isinstance(worker, str) and action in ACTIONS:
            self._tell(ACTIONS[action](worker))

    @property
    def lost(self) -> bool:
        """Whether the scheduler is gone."""
        return bool(self._client.status != "running")

    def close(self) -> None:
        """Stop watching."""
        if not self.lost:
            self._client.unsubscribe_topic("all")  # or the scheduler would tell us of our own leaving
        self._client.close()
