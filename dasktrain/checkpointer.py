"""An observer that keeps a run's newest states where a later one can go on from them."""

import json
import re
import threading
import warnings
from time import monotonic

from dask.utils import parse_timedelta

from dasktrain.checkpoint import Store
from dasktrain.errors import BadInput
from dasktrain.observe import Observer, Record, Run
from dasktrain.resume import as_tensors
from dasktrain.state import Cursor

#: seconds that a failed run waits for its last checkpoint to be written
PATIENCE = 600.0


class Checkpoint(Observer):
    """Write everything that is needed to go on, now and then and at the end; ``fit(resume=url)`` reads it.

    Parameters, buffers, optimizer, scheduler, the strategy's and the observers' state, how far the run has come, its
    history, encoders, and fingerprints of plan and data; where payloads are compressed, what workers have of the
    parameters. A copy is taken between two rounds and written beside the round that follows, each checkpoint whole or
    not at all. That round's end waits for it, so that never more than an interval is lost; or an interval and a
    stretch, where payloads are compressed and checkpoints wait for its end.

    Parameters
    ----------
    url
        A directory, any fsspec URL. It must hold no other run's checkpoints, unless that run is resumed.
    every
        ``"500 rounds"``, ``"1 epoch"`` or a time such as ``"10 minutes"``.
    keep
        How many of the newest stay.

    Raises
    ------
    BadInput
        `every` cannot be read; or, before the first round, the URL cannot be written or is taken.
    """

    order = 1

    def __init__(self, url: str, every: str = "1 epoch", keep: int = 3) -> None:
        if keep < 1:
            raise BadInput(f"keep must be at least 1, however it is {keep}")
        self.url, self.every, self.keep = str(url), every, keep
        self._rounds, self._epochs, self._seconds = _interval(every)
        self._run: Run | None = None
        self._writer: threading.Thread | None = None

    def start(self, run: Run) -> None:
        """See that checkpoints can be written there, and that they mix with no others."""
        self._run, self._store = None, Store(self.url)
        self._store.check()
        numbers = self._store.numbers()
        if numbers and self.url.rstrip("/") != str(run.resumed).rstrip("/"):
            raise BadInput(
                f"{self.url} must hold no checkpoints of another run, however there is one after {numbers[-1]} rounds; "
                "pass resume= to go on from it, or choose another URL"
            )
        self._run, self._written, self._at = run, run.cursor.done, monotonic()
        self._history, self._lines = 0, bytearray()

    def step(self) -> None:
        """Wait for the write under way: once another round were done, more than an interval could be lost."""
        self._settle()

    def round(self, record: Record) -> None:
        """Write if it is time, unless the epoch ends as well: what it ends with belongs to it."""
        assert self._run is not None
        cursor = self._run.cursor
        if cursor.settled and cursor.round < self._run.rounds_per_epoch and self._due(cursor):
            self._write(self._run)

    def epoch(self, record: Record) -> None:
        """Write if it is time."""
        assert self._run is not None
        cursor = self._run.cursor
        if not cursor.round and (self._due(cursor) or (self._epochs and cursor.epoch % self._epochs == 0)):
            self._write(self._run)

    def _due(self, cursor: Cursor) -> bool:
        if self._rounds:
            return cursor.done // self._rounds > self._written // self._rounds
        return bool(self._seconds) and monotonic() - self._at >= self._seconds

    def end(self) -> None:
        """Write the last state, also of a run that failed unless in a stretch, and wait until it is there."""
        if self._run is not None and self._run.cursor.settled and self._run.cursor.done > self._written:
            self._write(self._run)
        self._settle()

    # -- writing ------------------------------------------------------------------------------------------

    def _write(self, run: Run) -> None:
        """Copy the state now, and have it written while rounds go on."""
        self._settle()
        facts, tree = run.capture()
        fresh = run.history.rounds[self._history :]
        self._history += len(fresh)
        self._lines += b"".join(json.dumps(record).encode() + b"\n" for record in fresh)
        self._written, self._at = run.cursor.done, monotonic()
        arguments = (self._written, facts, tree, bytes(self._lines))
        self._writer = threading.Thread(target=self._put, args=arguments, name="dasktrain-checkpoint", daemon=True)
        self._writer.start()

    def _put(self, done: int, facts: dict[str, object], tree: dict[str, object], rounds: bytes) -> None:
        try:
            plain, tensors = as_tensors(tree, rounds)
            self._store.write(done, tensors, {**facts, "tree": plain})
            self._store.prune(self.keep)
        except Exception as error:
            # A run of hours must not be lost to a full disk; the next checkpoint may get through.
            warnings.warn(
                f"A checkpoint must be written to {self.url}, however {type(error).__name__}: {error}; the run goes on",
                RuntimeWarning,
                stacklevel=2,
            )

    def _settle(self) -> None:
        """Wait for the write under way."""
        if self._writer is not None:
            self._writer.join(PATIENCE)
        self._writer = None


def _interval(every: str) -> tuple[int, int, float]:
    """Return the rounds, epochs and seconds between checkpoints; those not meant are 0."""
    counted = re.fullmatch(r"\s*(\d+)\s*(round|epoch)s?\s*", every)
    try:
        amount = int(counted[1]) if counted else float(parse_timedelta(every))
    except (ValueError, KeyError, TypeError, IndexError):
        amount = 0
    if amount <= 0:
        raise BadInput(f'every must be like "500 rounds", "1 epoch" or "10 minutes", however it is {every!r}')
    unit = counted[2] if counted else "time"
    return (int(amount) * (unit == "round"), int(amount) * (unit == "epoch"), amount * (unit == "time"))
