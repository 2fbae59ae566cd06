"""A run whose driver is a task on the cluster: it outlives its client, and its own worker."""

import copy
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

import dask
from distributed import Client, Future, get_client, get_worker, secede

from dasktrain.checkpointer import Checkpoint
from dasktrain.errors import BadInput, DasktrainError, RunError, SchedulerLost
from dasktrain.fitting import Fitting
from dasktrain.observe import History, Observer
from dasktrain.observers.progress import Progress
from dasktrain.relay import Relay, Replay
from dasktrain.result import Result
from dasktrain.resume import Saved
from dasktrain.shipping import by_value, pack, run_packed
from dasktrain.wire.dask import DaskWire
from dasktrain.wire.placing import quiet_graphs

#: seconds between looks at whether a run has ended
LOOK = 0.5
#: times that Dask starts a driver anew that could not reach the cluster
RETRIES = 10


def launch(fitting: Fitting, client: Client) -> "RemoteRun":
    """Start a driver on the cluster; observers that belong beside the client stay here."""
    run = uuid.uuid4().hex[:12]
    here = [observer for observer in fitting.trainer.observers if observer.runs_on == "client"]
    there = [observer for observer in fitting.trainer.observers if observer.runs_on == "driver"]
    sent = pack(_drive, run, _observed_by(fitting, there), dask.config.get("dasktrain", {}))
    with quiet_graphs():
        future = client.submit(run_packed, sent, key=driver_name(run), pure=False, retries=RETRIES)
    client.publish_dataset(future, name=driver_name(run))
    for observer in here:
        observer.stage(f"run {run} has its driver on the cluster; dt.attach({run!r}) finds it again")
    return RemoteRun(run, client, future, here)


def attach(run: str, client: Client | None = None, observers: Sequence[Observer] | None = None) -> "RemoteRun":
    """Find a run again whose driver is on the cluster.

    Parameters
    ----------
    run
        Its id, which ``fit(driver="cluster")`` showed.
    client
        A Dask Client; None: the current one.
    observers
        Who watches here, such as :class:`dasktrain.Log`; None: a Progress.

    Raises
    ------
    BadInput
        The cluster knows no such run.
    """
    client = client or Client.current()
    try:
        future = client.get_dataset(driver_name(run))
    except KeyError:
        known = [
            name.removeprefix(driver_name(""))
            for name in map(str, client.list_datasets())
            if name.startswith(driver_name(""))
        ]
        raise BadInput(
            f"A run must be on the cluster until its result was fetched, however {run!r} is none of {known}"
        ) from None
    return RemoteRun(run, client, future, [Progress()] if observers is None else list(observers))


class RemoteRun:
    """A handle on a run whose driver is on the cluster; made by `attach`.

    Attributes
    ----------
    id : str
        What `attach` takes.
    """

    def __init__(self, run: str, client: Client, future: Future, observers: Sequence[Observer]) -> None:
        self.id = run
        self._client, self._future, self._observers = client, future, observers

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return bool(self._future.done())

    def progress(self) -> History:
        """Return the history so far, of as many rounds as the cluster remembers."""
        replay = Replay([])
        self._remembered(replay)
        return replay.history

    def _remembered(self, replay: Replay) -> None:
        """Play what the cluster remembers, and go on without what it does not."""
        for _, message in self._client.get_events(progress_topic(self.id)):
            replay.play(message)
        replay.skip()

    def stop(self) -> None:
        """Ask it to end after the round under way; its result is that so far."""
        self._client.log_event(control_topic(self.id), "stop")

    def result(self, timeout: float | None = None) -> Result:
        """Show progress until the run has ended, and return its result, which the cluster then forgets.

        A first KeyboardInterrupt stops the run, a second leaves it going.

        Parameters
        ----------
        timeout
            Seconds to wait; None: as long as it takes.

        Raises
        ------
        TimeoutError
            It has not ended in time; it goes on.
        DasktrainError
            As :meth:`dasktrain.Trainer.fit` does.
        """
        deadline = None if timeout is None else monotonic() + timeout
        replay, stopped = Replay(self._observers), False
        with self._messages() as messages:
            while True:
                try:
                    ended = self.done
                    self._play(replay, messages, 0.0 if ended else LOOK)
                    if replay.gap or ended:
                        self._remembered(replay)
                    if ended:
                        break
                    if deadline is not None and monotonic() > deadline:
                        raise TimeoutError(f"Run {self.id} must end within {timeout} s, however it goes on")
                except KeyboardInterrupt:
                    if stopped:
                        raise
                    self.stop()
                    stopped = True
        replay.end()
        return self._fetched()

    @contextmanager
    def _messages(self) -> Iterator["SimpleQueue[Any]"]:
        """Hear what the driver tells, from its beginning as far as the cluster remembers it."""
        messages: SimpleQueue[Any] = SimpleQueue()
        self._client.subscribe_topic(progress_topic(self.id), lambda event: messages.put(event[1]))
        try:
            for _, message in self._client.get_events(progress_topic(self.id)):
                messages.put(message)  # some come twice, in between, or not at all; each has a number
            yield messages
        finally:
            if self._client.status == "running":
                self._client.unsubscribe_topic(progress_topic(self.id))

    @staticmethod
    def _play(replay: Replay, messages: "SimpleQueue[Any]", timeout: float) -> None:
        with suppress(Empty):
            while True:
                replay.play(messages.get(timeout=timeout) if timeout else messages.get_nowait())
                timeout = 0.0

    def _fetched(self) -> Result:
        if self._future.status in ("cancelled", "lost"):
            raise SchedulerLost(
                f"The scheduler must live as long as the run, however it forgot {self.id}; start the cluster again and "
                "resume from a checkpoint"
            )
        try:
            payload = self._future.result()
        finally:
            self._client.unpublish_dataset(driver_name(self.id))
            self._future.release()
        result: Result = run_packed(payload)
        return result


@contextmanager
def obeying(run: str, client: Client, stop: threading.Event) -> Iterator[None]:
    """Set `stop` when someone has asked, or asks, the run to end."""
    client.subscribe_topic(control_topic(run), lambda event: stop.set())
    try:
        if client.get_events(control_topic(run)):
            stop.set()
        yield
    finally:
        if client.status == "running":
            client.unsubscribe_topic(control_topic(run))


def driver_name(run: str) -> str:
    """Name the task that drives a run, and the data set it is published as."""
    return f"dasktrain-driver-{run}"


def progress_topic(run: str) -> str:
    """Name where a driver on the cluster tells what its observers would have seen."""
    return f"dasktrain-progress-{run}"


def control_topic(run: str) -> str:
    """Name where a driver is asked to end its run."""
    return f"dasktrain-control-{run}"


def _observed_by(fitting: Fitting, observers: list[Observer]) -> Fitting:
    trainer = copy.copy(fitting.trainer)
    trainer.observers = observers
    return replace(fitting, trainer=trainer)


# -- on the cluster -----------------------------------------------------------------------------------------------


def _drive(run: str, fitting: Fitting, config: dict[str, Any]) -> bytes:
    """Be the driver: the task that `launch` submits. Dask starts it anew elsewhere if this worker dies."""
    worker, client = get_worker(), get_client()
    secede()
    client.run_on_scheduler(_forgive, driver_name(run))
    stop = threading.Event()
    with obeying(run, client, stop), client.as_current(), dask.config.set({"dasktrain": config}):
        return _fit(run, fitting, client, stop, lambda message: worker.log_event(progress_topic(run), message))


def _fit(run: str, fitting: Fitting, client: Client, stop: threading.Event, tell: Callable[[Any], None]) -> bytes:
    """Return what, called, returns the result or raises what the run raised."""
    attempt = f"{run}-{uuid.uuid4().hex[:4]}"
    watched = _observed_by(fitting, [*fitting.trainer.observers, Relay(attempt, tell)])
    resume = _newest(run, fitting) or fitting.settings.resume
    watched = replace(watched, settings=replace(watched.settings, resume=resume))
    wire = DaskWire(client, attempt)
    try:
        return pack(_returned, watched.prepare(wire, stop).run())
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, DasktrainError):
            raise  # the cluster could not be reached: Dask tries again
        error.add_note(f"On the driver:\n{traceback.format_exc()}")
        return _packed(error)
    finally:
        wire.close()


def _newest(run: str, fitting: Fitting) -> str | None:
    """Return where an earlier attempt of this run left a checkpoint, if it did."""
    for observer in fitting.trainer.observers:
        if isinstance(observer, Checkpoint):
            with suppress(BadInput):
                if str(Saved.read(observer.url).facts["run"]).startswith(run):
                    return observer.url
    return None


def _packed(error: Exception) -> bytes:
    try:
        return pack(_raised, error)
    except Exception:  # what user code raises need not pickle
        return pack(_raised, RunError(f"{type(error).__name__}: {error}"))


def _returned(result: Result) -> Result:
    return result


def _raised(error: Exception) -> None:
    raise error


@by_value
def _forgive(key: str, dask_scheduler: Any = None) -> None:
    """Run on the scheduler: a driver may lose any number of workers, if not so many at once."""
    task = dask_scheduler.tasks.get(key)
    if task is not None:
        task.suspicious = 0
