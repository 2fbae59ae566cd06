"""How work and answers move between the driver and the leases. Any wire gives the same bits."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from dask.delayed import Delayed

from dasktrain.errors import DasktrainError, named
from dasktrain.events import Domain, Event
from dasktrain.messages import Answer, Failure, Kind, State, Stream, Task
from dasktrain.topology import Reduction


class Respond(Protocol):
    """What a worker holds for a run: its replica, seen from the wire."""

    def __call__(self, task: Task, state: State) -> Answer | Failure:
        """Answer a task."""

    @property
    def stream(self) -> Stream | None:
        """What gradients are like, if they are sent in buckets."""

    def recut(self, bucket: int) -> Stream | None:
        """Have buckets of so many numbers from now on, if there are any; return what gradients are like then."""

    def ahead(self, task: Task) -> None:
        """Get ready, while the driver steps, for what probably follows `task`."""

    def stage(self, task: Task) -> None:
        """Get ready for `task`."""

    def forget(self, task: Task) -> None:
        """Keep nothing of `task`, which was answered while its state changed."""

    def domain(self) -> Domain:
        """Compute a little and return what tells whether this worker's bits are those of others."""


class Wire(Protocol):
    """Where data lies and replicas run.

    Calls come in this order: `open`, then `persist`, `compute` and `place` in any number, then `choose` or not, then
    `attach`, then the others in any order, then `close`, which is also right after any error. From `attach` on all
    calls come from one thread; `close` may also come, to abort, from another.
    """

    def open(self) -> None:
        """Check that there are workers."""

    @property
    def run(self) -> str:
        """Name of the run, which its messages carry."""

    @property
    def workers(self) -> Sequence[str]:
        """Names of the workers that were there at `open`, sorted."""

    @property
    def threads(self) -> int:
        """Torch threads of a replica, the same for all."""

    def memory(self, size: int) -> Any:
        """Return so many bytes of writable memory, in which a state is sent with the least ado."""

    def persist(self, tasks: Sequence[Delayed]) -> list[Delayed]:
        """Start tasks and return what stands for their results, which are kept as long as it is."""

    def compute(self, tasks: Sequence[Delayed]) -> list[Any]:
        """Run tasks and return their (small) results."""

    def place(self, kind: Kind, tasks: Sequence[Delayed], owners: Sequence[str]) -> list[str]:
        """Run tasks, each on its owner if possible, keep the results as the partitions of a data set.

        Return the `fingerprint` each of them has.
        """

    def choose(self, reduction: Reduction, state: State, shards: int) -> None:
        """Have parameters and gradients of states like this one travel in some way, for so many shards."""

    @property
    def bucket(self) -> int:
        """Numbers of each bucket of a gradient; workers are told how many there are after `chosen`."""

    def attach(self, replica: bytes) -> None:
        """Tell from now on who joins; ``run_packed(replica, read)`` is the replica of whoever is leased."""

    def chosen(self) -> str:
        """Have all set for rounds; return what the user should be told of their way, if there was something to choose.

        To be called once, after some workers have attached.
        """

    def lease(self, worker: str, task: Task) -> None:
        """Have a worker build its replica and get ready for `task`; `events` tells when it is, or that it cannot."""

    def release(self, worker: str) -> None:
        """Let a worker go, if it was leased."""

    def round(self, state: State) -> AbstractContextManager[None]:
        """Start a round: `send` sends `state`, which may change afterwards. Answers are valid until the next round."""

    def send(self, worker: str, task: Task) -> None:
        """Ask a worker that is ready and has no task, by `events` at the latest; if it is gone, `events` says so."""

    def events(self, timeout: float) -> list[Event]:
        """Return what happened, as soon as something has; nothing after `timeout` seconds."""

    def close(self) -> None:
        """End the leases and let go of the partitions."""


def failed(failure: Failure, worker: str) -> DasktrainError:
    """Return the exception for what a worker raised, with its traceback there as a note."""
    kind = named(failure.error)
    where = f"worker {worker}"
    if failure.task is not None:
        task = failure.task
        where = f"shards {task.start} to {task.stop - 1} in epoch {task.epoch}, round {task.round} on {where}"
    error = kind(f"{failure.text} (from {where})")
    if failure.traceback:
        error.add_note(f"On the worker:\n{failure.traceback}")
    return error
