"""Every error dasktrain raises on purpose.

::

    DasktrainError
    ├── BadInput (ValueError)        found before the first round; nothing was started, nothing is lost
    │   ├── UnknownKeyword (TypeError)   a keyword no parameter has
    │   ├── DataError                    a column, a row or a label cannot be used
    │   ├── PlanError                    shards, batch size or shuffling cannot be met
    │   └── ModelError                   module, loss, metric and data do not fit, or cannot be shipped
    └── RunError (RuntimeError)      found while leases were being made or rounds were running
        ├── AttachError                  a worker could not be used
        ├── WorkerLost                   no worker was left, or none answered in time
        ├── RestLost                     what a shard had kept to itself is gone; the run makes it anew
        ├── SchedulerLost                the scheduler went away, and the cluster with it
        ├── Diverged                     two workers gave different bits for the same shards
        ├── ReplicaError                 the module, loss or metric raised on a worker
        ├── WireError                    bytes on a connection were not a message
        ├── NonFinite                    a loss, gradient or weight was NaN or infinite
        └── ReductionError               partial sums were missing, doubled or of another round

Beside it there is one warning, of a cluster that others can reach and that does not use TLS: InsecureCluster.

Messages have one form: what must hold, "however" what was found, what to do.
"""

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class DasktrainError(Exception):
    """The root of the tree."""


class BadInput(DasktrainError, ValueError):
    """Found before the first round: the cluster is as it was."""


class UnknownKeyword(BadInput, TypeError):
    """A keyword that no parameter has; the nearest name is offered."""


class DataError(BadInput):
    """A column, a row or a label cannot be used."""


class PlanError(BadInput):
    """Shards, batch size or shuffling cannot be met by this data set."""


class ModelError(BadInput):
    """Module, loss, metric and data do not fit together, or cannot be shipped to the workers."""


class RunError(DasktrainError, RuntimeError):
    """Found while leases were being made or rounds were running."""


class AttachError(RunError):
    """A worker could not be used for this run."""


class WorkerLost(RunError):
    """No worker was left, or none answered in time."""


class RestLost(RunError):
    """What a shard had kept of earlier rounds went with its worker; the driver goes back to where it was nothing."""


class SchedulerLost(RunError):
    """The scheduler went away, and the cluster with it."""


class Diverged(RunError):
    """Two workers gave different bits for the same shards."""


class ReplicaError(RunError):
    """The module, the loss or a metric raised on a worker."""


class WireError(RunError):
    """Bytes on a connection were not a message of ours."""


class NonFinite(RunError):
    """A loss, a gradient or a sum of weights was NaN, infinite or zero where it must not be."""


class ReductionError(RunError):
    """Partial sums were missing, doubled or belonged to another round."""


class InsecureCluster(UserWarning):
    """Others can reach the cluster, and it does not use TLS."""


def named(name: str) -> type[DasktrainError]:
    """Return the class of this file called `name`, for errors that crossed the wire as text."""
    found = globals().get(name)
    if isinstance(found, type) and issubclass(found, DasktrainError):
        return found
    return ReplicaError


def nearest(name: str, names: list[str]) -> str:
    """Return ``"did you mean 'x'?"`` for the closest of `names`, else the sorted list of them."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(sorted(names))}"


def known_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse keywords `function` does not have, offering the nearest name instead of a bare TypeError."""
    names = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in names:
                where = function.__qualname__.removesuffix(".__init__")
                raise UnknownKeyword(
                    f"Every keyword of {where} must name a parameter, however {name!r} does not; {nearest(name, names)}"
                )
        return function(*args, **kwargs)

    return checked
