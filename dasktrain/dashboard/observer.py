"""What tells a scheduler's dashboard of a run."""

import asyncio
from concurrent.futures import Future, wait
from time import monotonic
from typing import Any
from uuid import uuid4

from distributed import Client

from dasktrain.config import seconds
from dasktrain.dashboard.board import PREFIX, Boards
from dasktrain.errors import BadInput
from dasktrain.observe import Observer, Record, Run
from dasktrain.relay import PAUSE, Message, Relay


class Dashboard(Observer):
    """Show a run, while it goes on, on the dashboard of the cluster's scheduler: "Dasktrain" in its menu.

    The page has loss and rows a second, what rounds are spent on, what each worker does, and what becomes of workers,
    of this run and of others that have this observer. A few messages a second go to the scheduler. The scheduler needs
    Bokeh and dasktrain: ``pip install 'dasktrain[dashboard]'`` there.

    Raises
    ------
    BadInput
        Before the first round: there is no Dask cluster, or its scheduler cannot show the page.
    """

    def __init__(self) -> None:
        self._relay: Relay | None = None
        self._told: list[str] = []  # before the start

    def stage(self, text: str) -> None:
        """Tell it."""
        if self._relay is None:
            self._told.append(text)
        else:
            self._relay.stage(text)

    def start(self, run: Run) -> None:
        """Put the page there, if it is not, and tell of the run."""
        client = run.client
        if client is None:
            raise BadInput(
                "A dashboard must be that of a Dask cluster, however there is no client; leave out dt.Dashboard()"
            )
        try:
            client.register_plugin(Boards())
        except Exception as error:
            raise BadInput(
                f"A scheduler must have Bokeh and dasktrain to show a run, however {type(error).__name__}: {error}; "
                "pip install 'dasktrain[dashboard]' where it runs, or leave out dt.Dashboard()"
            ) from error
        self._run, self._tell, self._at = run, _Telling(client, PREFIX + run.id), 0.0
        self._relay = Relay(uuid4().hex, self._tell)
        self._relay.start(run)
        for text in self._told:
            self._relay.stage(text)
        self._told = []

    def round(self, record: Record) -> None:
        """Tell of rounds, and of what workers did in them, a few times a second."""
        assert self._relay is not None
        self._relay.round(record)
        if monotonic() - self._at > PAUSE:
            self._tell_workers()

    def epoch(self, record: Record) -> None:
        """Tell it."""
        assert self._relay is not None
        self._relay.epoch(record)

    def end(self) -> None:
        """Tell what is left."""
        if self._relay is not None:
            self._tell_workers()
            self._relay.end()
            self._tell.wait()
        self._relay = None

    def _tell_workers(self) -> None:
        """Tell how long each worker took for its latest answer, and how long of that it waited for data."""
        latest: dict[str, Any] = {}
        for timing in list(self._run.timings)[-len(self._run.workers) * 2 :]:
            if timing.kind == "train":
                latest[timing.worker] = [timing.seconds - timing.waited, timing.waited]
        if latest:
            self._tell({"workers": latest})
        self._at = monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {"_relay": None, "_told": []}


class _Telling:
    """Logs events at a client's scheduler, and does not wait for it: rounds go on meanwhile."""

    def __init__(self, client: Client, topic: str) -> None:
        self._client, self._topic = client, topic
        self._under_way: set[Future[Any]] = set()

    def __call__(self, message: Message) -> None:
        """Log a message; a board puts those in order that overtake others."""
        logging = self._client.scheduler.log_event(topic=self._topic, msg=message)
        sent = asyncio.run_coroutine_threadsafe(logging, self._client.loop.asyncio_loop)
        self._under_way = {future for future in self._under_way if not future.done()} | {sent}

    def wait(self) -> None:
        """Wait until all is logged, or the scheduler has had its time."""
        wait(self._under_way, timeout=seconds("timeouts.close"))
