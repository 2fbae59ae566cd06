"""How work and answers move between the driver and the leases. Any wire gives the same bits."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dask.delayed import Delayed

from dasktrain.errors import DasktrainError, named
from dasktrain.fleet import Event
from dasktrain.messages import Answer, Failure, Kind, State, Task


class Respond(Protocol):
    """What a worker holds for a run: its replica, seen from the wire."""

    def __call__(self, task: Task, state: State) -> Answer | Failure:
        """Answer a task."""

    def ahead(self, task: Task) -> None:
        """Get ready, while the driver steps, for what probably follows `task`."""


class Wire(Protocol):
    """Where data lies and replicas run.

    Calls come in this order: `open`, then `compute` and `place` in any number, then `attach`, then `ask` in
    any number, then `close`, which is also right after any error. `attach` and `ask` are called from one thread;
    `close` from that or, to abort, from another.
    """

    def open(self) -> None:
        """Check that there are workers and that they can run replicas."""

    @property
    def run(self) -> str:
        """Name of the run, which its messages carry."""

    @property
    def workers(self) -> Sequence[str]:
        """Names of the workers that will get a lease, sorted."""

    @property
    def threads(self) -> int:
        """Torch threads of a replica, the same for all."""

    def compute(self, tasks: Sequence[Delayed]) -> list[Any]:
        """Run tasks and return their (small) results."""

    def place(self, kind: Kind, tasks: Sequence[Delayed], owners: Sequence[str]) -> None:
        """Run tasks, each on its owner if possible, and keep the results as the partitions of a data set."""

    def attach(self, replica: bytes) -> None:
        """Make a lease on every worker; ``run_packed(replica, read)`` there is its replica."""

    def ask(self, tasks: Mapping[str, Task], state: State) -> list[Answer]:
        """Send each worker its task and return the answers that came; what did not is in `changes`."""

    def changes(self) -> list[Event]:
        """Return what happened to workers since the last call."""

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
