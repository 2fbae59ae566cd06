"""What happens to workers, and what is to be done about it: the words between wire, fleet and driver."""

from collections.abc import Mapping
from dataclasses import dataclass

from dasktrain.messages import Answer, Bucket, Failure, Task

#: what makes bits differ between workers: kernel path, torch build, threads, a digest of a trial computation
Domain = Mapping[str, str | int]

# -- events -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker is on the cluster; nothing of ours is on it yet."""

    worker: str


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker's lease is attached, its replica built and its data at hand."""

    worker: str
    domain: Domain


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker is there and cannot be used."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Left:
    """A worker, or the connection to it, is gone; `reason` is what the wire saw."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A worker's answer to what it was asked, perhaps long ago."""

    worker: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class Received:
    """A part of what a worker will answer; its numbers stay as they are until the next look at events."""

    worker: str
    bucket: Bucket


@dataclass(frozen=True, slots=True)
class Waits:
    """A worker that has not answered yet is well, and waits for others."""

    worker: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker raised instead of answering."""

    worker: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class Slow:
    """A worker has had its task for longer than can be expected."""

    worker: str


Event = Joined | Ready | Refused | Left | Received | Answered | Waits | Failed | Slow

# -- instructions -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lease:
    """Hold worker for the run and have it get ready for shards [start, stop)."""

    worker: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Assign:
    """Ask worker for its share of the round."""

    worker: str
    task: Task


@dataclass(frozen=True, slots=True)
class ReAsk:
    """Ask worker for what another lost."""

    worker: str
    task: Task


@dataclass(frozen=True, slots=True)
class BackUp:
    """Ask worker for what another has not answered in time; the first answer counts."""

    worker: str
    task: Task


@dataclass(frozen=True, slots=True)
class Release:
    """Let go of worker; it gets no more work from this run."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Tell the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nobody is left: wait for a worker to join."""

    reason: str


@dataclass(frozen=True, slots=True)
class Abort:
    """The run cannot go on, for what a worker raised or since no worker can be used."""

    reason: str
    worker: str = ""
    failure: Failure | None = None


Instruction = Lease | Assign | ReAsk | BackUp | Release | Notice | Wait | Abort
