"""Copying figures to a tool that draws and compares them: what all such tools have in common."""

import importlib
import warnings
from collections.abc import Iterator
from typing import Any, Literal

from dasktrain.errors import BadInput
from dasktrain.observe import Observer, Record, Run

#: what of a record is where it belongs, and no figure
PLACES = ("epoch", "round", "rounds", "rows")
#: whether figures are of a round or of an epoch
Of = Literal["round", "epoch"]
#: of either, the step up to which figures were written
Written = dict[Of, int]


class Tracker(Observer):
    """Copy every epoch's figures, and every so many rounds', to a tool; stay beside the client.

    Figures are named ``round/loss``, ``epoch/valid_loss`` and so on. Their step is the number of rounds that are done.
    A run that is resumed goes on where it was in the tool, and no figure is written for a step twice. What the tool
    does not take is told in a warning; the run goes on.

    Parameters
    ----------
    every
        Rounds from one that is written to the next.

    Raises
    ------
    BadInput
        `every` is no whole number above 0.
    """

    runs_on = "client"
    order = -1

    def __init__(self, every: int) -> None:
        if not isinstance(every, int) or every < 1:
            raise BadInput(f"every must be a whole number of rounds and at least 1, however it is {every!r}")
        self.every = every
        self._name = ""
        self._place: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a run."""
        return {name: value for name, value in vars(self).items() if name[0] != "_"} | {"_name": "", "_place": None}

    # -- what a tool does ------------------------------------------------------------------------------------------

    def open(self, run: Run, place: str | None) -> tuple[str, Written]:
        """Begin, or go on at a place where an earlier run was.

        Parameters
        ----------
        place
            What `open` returned in the run that is resumed; None: there was none.

        Returns
        -------
        str
            The place.
        dict
            Up to which steps it has figures that are to stay; :func:`so_far` are those of the run that is resumed.
        """
        raise NotImplementedError

    def put(self, figures: dict[str, float], step: int) -> None:
        """Write figures; steps rise, and one may come again with others."""
        raise NotImplementedError

    def close(self, ended: str, digest: str | None) -> None:
        """Write why the run ended, "failed" if it did, and its digest where that is known; close what is open."""
        raise NotImplementedError

    # -- what a run tells ------------------------------------------------------------------------------------------

    def start(self, run: Run) -> None:
        """Begin, unless the run goes on from another, which had a place."""
        name, _, attempt = run.id.partition("-")  # another attempt of one run, if its driver is started anew elsewhere
        place = self._place if attempt and name == self._name else None
        self._run, self._name, self._place, self._warned = run, name, None, False
        if place is not None or not run.cursor.done:
            self._open(place)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the place that the resumed run had."""
        self._open(state["place"])

    def state_dict(self) -> dict[str, Any]:
        """Return the place."""
        return {"place": self._place}

    def round(self, record: Record) -> None:
        """Write a round, if it is its turn."""
        self._write("round", record)

    def epoch(self, record: Record) -> None:
        """Write an epoch."""
        self._write("epoch", record)

    def end(self) -> None:
        """Write what the run ended with."""
        if self._place is None:
            return
        state, ended = self._run.state, self._run.cursor.ended
        try:
            self.close(ended or "failed", state.digest if state is not None and ended else None)
        except Exception as error:
            self._warn(error)

    def _open(self, place: str | None) -> None:
        """Open the tool and write what it lacks of the past."""
        self._place, self._written = self.open(self._run, place)
        for of, record in in_order(self._run):
            self._write(of, record)

    def _write(self, of: Of, record: Record) -> None:
        if self._place is None:  # nothing was kept of it in the run that is resumed
            self._open(None)
        step, before = step_of(record, self._run.rounds_per_epoch), self._written[of]
        if step <= before or (of == "round" and step // self.every == before // self.every):
            return
        self._written[of] = step
        try:
            self.put({f"{of}/{name}": value for name, value in record.items() if name not in PLACES}, step)
        except Exception as error:  # a run of hours must not be lost to a full disk
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(self).__name__} must take a run's figures, however {type(error).__name__}: {error}; the run "
                "goes on, and says this once",
                RuntimeWarning,
                stacklevel=2,
            )


def step_of(record: Record, rounds_per_epoch: int) -> int:
    """Return how many rounds were done after a round, or with an epoch."""
    return int(record["epoch"] * rounds_per_epoch + record.get("round", 0) + record.get("rounds", 1))


def in_order(run: Run) -> Iterator[tuple[Of, Record]]:
    """Yield the rounds and epochs of a run's history as they happened."""
    told: list[tuple[Of, Record]] = [("round", record) for record in run.history.rounds]
    told += [("epoch", record) for record in run.history]
    yield from sorted(told, key=lambda each: step_of(each[1], run.rounds_per_epoch))  # which is stable


def so_far(run: Run) -> Written:
    """Return up to which steps observers were told of a run that is resumed, before its checkpoint was taken."""
    return {"round": run.cursor.done, "epoch": run.cursor.epoch * run.rounds_per_epoch}


def facts_of(run: Run) -> dict[str, Any]:
    """Return what a tool may show of a run: plain values."""
    names = ("shards", "threads", "rows", "parameters", "rounds_per_epoch", "epochs", "max_rounds")
    return {"run": run.id, "workers": len(run.workers)} | {n: getattr(run, n) for n in names} | dict(run.settings)


def needs(package: str, extra: str) -> None:
    """Import what an observer works with.

    Raises
    ------
    BadInput
        It is not installed.
    """
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise BadInput(
            f"{package} must be installed to copy figures to it, however {error}; pip install 'dasktrain[{extra}]'"
        ) from error
