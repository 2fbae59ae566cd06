"""Watching a run: the history, and what an observer is, which reads it and may ask to stop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from dasktrain.state import Cursor, Snapshot, TrainState

Record = dict[str, Any]
#: what the seconds of a round are spent on, in order
PARTS = ("wait_data", "compute", "wire", "reduce", "step")


class History(list[Record]):
    """One dict per epoch, in order; ``rounds`` holds one per round.

    Epochs have ``epoch``, ``rounds``, ``rows``, ``loss`` and each metric (over the epoch's training rows, as
    they were seen), ``valid_loss`` and ``valid_<metric>`` if there is validation data, ``learning_rate``,
    ``seconds`` and ``rows_per_second``. Rounds have the same for one round, and ``round``; and what its seconds were
    spent on, which adds up to them:

    =============  ===================================================================================================
    ``wait_data``  gathering rows that were not at hand when they were asked for, by the worker that answered last
    ``compute``    forward, backward and sums there
    ``wire``       the rest of the time until its answer was here: both ways, and waiting for its turn
    ``reduce``     the tree over all answers
    ``step``       the optimizer, and all else the driver does
    =============  ===================================================================================================
    """

    def __init__(self, epochs: Sequence[Record] = (), rounds: Sequence[Record] = ()) -> None:
        super().__init__(epochs)
        self.rounds: list[Record] = list(rounds)

    def to_frame(self, of: Literal["epochs", "rounds"] = "epochs") -> pd.DataFrame:
        """Return epochs or rounds as a pandas DataFrame."""
        return pd.DataFrame(list(self) if of == "epochs" else self.rounds)


@dataclass(frozen=True)
class Run:
    """What observers may know of a run, and the state of record; None beside a client whose driver is elsewhere."""

    id: str
    workers: Sequence[str]
    shards: int
    threads: int
    rows: int
    parameters: int
    rounds_per_epoch: int
    epochs: int | None
    max_rounds: int | None
    #: what its bits depend on, as plain values
    settings: Mapping[str, Any] = field(repr=False)
    state: TrainState | None = field(repr=False)
    cursor: Cursor = field(repr=False)
    history: History = field(repr=False)
    #: returns the names of the workers that compute now
    members: Callable[[], Sequence[str]] = field(repr=False)
    #: returns a copy of all that is needed to go on from here: plain facts, and nested state with tensors
    capture: Callable[[], tuple[dict[str, Any], dict[str, Any]]] = field(repr=False)
    #: a :class:`dasktrain.coordinator.Timing` for each of the latest answers, where the driver is
    timings: Sequence[Any] = field(repr=False, default=())
    #: URL of the checkpoints that it goes on from
    resumed: str | None = None
    #: the Dask client of its cluster, where the driver is; None if there is none
    client: Any = field(repr=False, default=None)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to the driver: observers that were in a run are copied and pickled without it."""
        return vars(self) | {"state": None, "members": nobody, "capture": nothing, "timings": (), "client": None}


def nobody() -> Sequence[str]:
    """Know of no worker, away from the driver."""
    return ()


def nothing() -> tuple[dict[str, Any], dict[str, Any]]:
    """Capture nothing, away from the driver."""
    return {}, {}


class Observer:
    """Reads what happens; override any of the hooks. They run in the driver's thread.

    Attributes
    ----------
    runs_on : str
        "driver", or "client" for one that should stay beside the client if the driver is on the cluster; it then has
        no `run.state`, and what it wishes is not asked for.
    order : int
        Those of a lower one come first, but to their end last: -2 if they add figures to records, -1 if they copy
        records and what the run ends with to somewhere else, 1 if they keep what all others have seen and wished.
    """

    runs_on: Literal["driver", "client"] = "driver"
    order: int = 0

    def stage(self, text: str) -> None:
        """Do something when the run passes to another stage, or a worker joins, leaves or is refused."""

    def start(self, run: Run) -> None:
        """Do something before the first round, or the first after a resume: `run.history` has what was before."""

    def step(self) -> None:
        """Do something once a round's sums are there; the optimizer steps when all observers have returned."""

    def round(self, record: Record) -> bool | None:
        """Read a round's record; return True to ask for a stop."""

    def epoch(self, record: Record) -> bool | None:
        """Read an epoch's record; return True to ask for a stop."""

    def end(self) -> Snapshot | None:
        """Do something after the last round, also of a run that failed; return a snapshot for it to end with.

        `run.cursor.ended` says why it ended; a run that failed has "" there.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint should keep of this observer: numbers, text, tensors and containers of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over, after `start`, what `state_dict` returned in the run that is resumed."""


def sign_of(monitor: str, mode: Literal["min", "max"] | None = None) -> int:
    """Return 1 if less of a figure is better, -1 if more is."""
    return 1 if (mode or ("min" if monitor.endswith("loss") else "max")) == "min" else -1
