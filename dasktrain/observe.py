"""Watching a run: the history, and observers that read it and may ask to stop. All on the client."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import IO, Any, Literal

import pandas as pd
from rich.console import Console
from rich.live import Live
from rich.table import Table

from dasktrain.errors import BadInput, nearest
from dasktrain.state import Cursor, Snapshot, TrainState

Record = dict[str, Any]


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
    state: TrainState | None = field(repr=False)
    cursor: Cursor = field(repr=False)
    history: History = field(repr=False)
    #: returns a copy of all that is needed to go on from here: plain facts, and nested state with tensors
    capture: Callable[[], tuple[dict[str, Any], dict[str, Any]]] = field(repr=False)
    #: a :class:`dasktrain.coordinator.Timing` for each of the latest answers, where the driver is
    timings: Sequence[Any] = field(repr=False, default=())

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to the driver: observers that were in a run are copied and pickled without it."""
        return vars(self) | {"state": None, "capture": nothing, "timings": ()}


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
    """

    runs_on: Literal["driver", "client"] = "driver"

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
        """Do something after the last round, also of a run that failed; return a snapshot for it to end with."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint should keep of this observer: numbers, text, tensors and containers of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over, after `start`, what `state_dict` returned in the run that is resumed."""


def sign_of(monitor: str, mode: Literal["min", "max"] | None = None) -> int:
    """Return 1 if less of a figure is better, -1 if more is."""
    return 1 if (mode or ("min" if monitor.endswith("loss") else "max")) == "min" else -1


class EarlyStopping(Observer):
    """Stop when a figure no longer improves.

    Parameters
    ----------
    monitor
        A key of the epoch records, such as ``"valid_loss"`` or ``"valid_accuracy"``.
    patience
        Epochs without improvement to wait.
    min_delta
        Least change that counts as one.
    mode
        Whether less or more is better; None: less for names that end in "loss", else more.
    restore_best
        Whether the run ends with the parameters and optimizer state of its best epoch.
    """

    def __init__(
        self,
        monitor: str = "valid_loss",
        patience: int = 5,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] | None = None,
        restore_best: bool = True,
    ) -> None:
        if patience < 1 or min_delta < 0:
            raise BadInput(f"patience must be >= 1 and min_delta >= 0, however they are {patience} and {min_delta}")
        if mode not in (None, "min", "max"):
            raise BadInput(f'mode must be "min", "max" or None, however it is {mode!r}')
        self.monitor, self.patience, self.min_delta, self.restore_best = (
            monitor,
            patience,
            min_delta,
            restore_best,
        )
        self._sign = sign_of(monitor, mode)
        self.best: float | None = None
        self.best_epoch: int | None = None

    def start(self, run: Run) -> None:
        """Forget an earlier run."""
        self._run, self._least, self.best, self.best_epoch = run, math.inf, None, None
        self._snapshot: Snapshot | None = None

    def epoch(self, record: Record) -> bool | None:
        """Compare with the best whole epoch so far."""
        if record["rounds"] < self._run.rounds_per_epoch:
            return None
        if self.monitor not in record:
            raise BadInput(
                f"EarlyStopping must monitor a figure of the history, however {self.monitor!r} is none; "
                f"{nearest(self.monitor, list(record))}"
            )
        value = self._sign * record[self.monitor]
        value = math.inf if math.isnan(value) else value
        if value < self._least - self.min_delta or self.best_epoch is None:
            self._least, self.best, self.best_epoch = value, record[self.monitor], record["epoch"]
            assert self._run.state is not None
            self._snapshot = self._run.state.snapshot() if self.restore_best else None
        return bool(record["epoch"] - self.best_epoch >= self.patience)

    def end(self) -> Snapshot | None:
        """Go back to the best epoch."""
        snapshot, self._snapshot = self._snapshot, None
        return snapshot

    def state_dict(self) -> dict[str, Any]:
        """Return the best epoch and its snapshot."""
        best = {"least": self._least, "best": self.best, "best_epoch": self.best_epoch}
        return best | {"snapshot": None if self._snapshot is None else vars(self._snapshot).copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the best epoch."""
        self._least, self.best, self.best_epoch = state["least"], state["best"], state["best_epoch"]
        self._snapshot = None if state["snapshot"] is None else Snapshot(**state["snapshot"])


class Log(Observer):
    """Write records to a file as they come.

    Parameters
    ----------
    path
        ``*.csv`` or ``*.jsonl``; replaced if it exists. A resumed run writes what was before it as well.
    every
        Whether to write epochs or rounds.
    """

    runs_on = "client"

    def __init__(self, path: str | Path, every: Literal["epoch", "round"] = "epoch") -> None:
        self.path, self.every = Path(path), every
        if self.path.suffix not in (".csv", ".jsonl") or every not in ("epoch", "round"):
            raise BadInput(f"A Log must be .csv or .jsonl, every epoch or round, however it is {path}, every {every}")
        self._file: IO[str] | None = None
        self._writer: Any = None

    def start(self, run: Run) -> None:
        """Open the file and write what was before a resume."""
        self._file, self._writer = self.path.open("w", newline=""), None
        for record in run.history if self.every == "epoch" else run.history.rounds:
            self._write(record)

    def round(self, record: Record) -> None:
        """Write a round."""
        if self.every == "round":
            self._write(record)

    def epoch(self, record: Record) -> None:
        """Write an epoch."""
        if self.every == "epoch":
            self._write(record)

    def _write(self, record: Record) -> None:
        assert self._file is not None
        if self.path.suffix == ".jsonl":
            self._file.write(json.dumps(record) + "\n")
        else:
            if self._writer is None:
                self._writer = csv.DictWriter(self._file, list(record), extrasaction="ignore")
                self._writer.writeheader()
            self._writer.writerow(record)
        self._file.flush()

    def end(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._file = None


class Progress(Observer):
    """A table that grows by a line an epoch: live on a terminal, plain lines elsewhere.

    Parameters
    ----------
    console
        Where to; None: standard output.
    """

    #: seconds between updates of the running epoch, on a terminal and elsewhere
    _TERMINAL, _PLAIN = 0.2, 10.0
    runs_on = "client"

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._live: Live | None = None

    def stage(self, text: str) -> None:
        """Print the stage."""
        self._console.print(f"dasktrain: {text}", soft_wrap=True)

    def start(self, run: Run) -> None:
        """Print what is about to run."""
        self._run, self._shown, self._done = run, 0.0, 0
        self._lines: list[dict[str, str]] = []
        self.stage(
            f"run {run.id}: {run.rows:,} rows, {run.rounds_per_epoch} rounds an epoch, {run.parameters:,} parameters, "
            f"{run.shards} shards on {len(run.workers)} workers x {run.threads} threads"
        )
        if run.cursor.done:
            self.stage(f"going on from round {run.cursor.round} of epoch {run.cursor.epoch}")
        surplus = len(run.workers) - run.shards
        if surplus > 0:
            self.stage(f"{surplus} workers beyond {run.shards} shards are spares for deaths and backups; raise shards=")
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()

    def round(self, record: Record) -> None:
        """Show the running epoch, now and then."""
        pause = self._TERMINAL if self._live else self._PLAIN
        if monotonic() - self._shown > pause and self._shown:
            self._show(record, record["round"] + 1)
        self._shown = self._shown or monotonic()

    def epoch(self, record: Record) -> None:
        """Add a line to the table."""
        self._show(record, record["rounds"])
        self._done += 1

    def _show(self, record: Record, rounds: int) -> None:
        self._shown = monotonic()
        line = _line(record, rounds, self._run.rounds_per_epoch)
        self._lines[self._done :] = [line]
        if self._live:
            self._live.update(_table(self._lines), refresh=True)
        else:
            self._console.print("  ".join(f"{name} {value}" for name, value in line.items()), soft_wrap=True)

    def end(self) -> None:
        """Leave the table as it is."""
        if self._live:
            self._live.stop()
        self._live = None


#: what the seconds of a round are spent on, in order
PARTS = ("wait_data", "compute", "wire", "reduce", "step")
_NOT_SHOWN = ("epoch", "round", "rounds", "rows", "seconds", "rows_per_second", "learning_rate", *PARTS)


def _line(record: Record, rounds: int, of: int) -> dict[str, str]:
    figures = {name: f"{value:.4f}" for name, value in record.items() if name not in _NOT_SHOWN}
    first = {"epoch": str(record["epoch"] + 1), "round": f"{rounds}/{of}"}
    return {**first, **figures, "rows/s": f"{record['rows_per_second']:,.0f}"}


def _table(lines: list[dict[str, str]]) -> Table:
    names = list(dict.fromkeys(name for line in lines for name in line if name != "rows/s"))
    table = Table(*(*names, "rows/s"))
    for line in lines:
        table.add_row(*(line.get(name, "") for name in (*names, "rows/s")))
    return table
