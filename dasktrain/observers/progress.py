"""What a run does, while it does it: in a terminal, a log or a notebook."""

import sys
from time import monotonic
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dasktrain.observe import PARTS, Observer, Record, Run

#: a line of the table: column -> text
Line = dict[str, str]
_NOT_SHOWN = ("epoch", "round", "rounds", "rows", "seconds", "rows_per_second", "learning_rate", *PARTS)


class Progress(Observer):
    """A table that grows by a line an epoch.

    A terminal shows it live; a notebook too, in the output of the cell, with all that happens; a log, or a terminal
    that cannot move its cursor, has plain lines, one every ten seconds and one an epoch.

    Parameters
    ----------
    console
        Where to; None: standard output, or the notebook this runs in.
    """

    runs_on = "client"

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or _standard_output()
        self._screen: _Screen | None = None

    def stage(self, text: str) -> None:
        """Show the stage."""
        if self._screen is None:
            self._screen = _screen(self._console)
        self._screen.say(f"dasktrain: {text}")

    def start(self, run: Run) -> None:
        """Show what is about to run."""
        self._run, self._shown, self._done = run, 0.0, 0
        self._lines: list[Line] = []
        self.stage(
            f"run {run.id}: {run.rows:,} rows, {run.rounds_per_epoch} rounds an epoch, {run.parameters:,} parameters, "
            f"{run.shards} shards on {len(run.workers)} workers x {run.threads} threads"
        )
        if run.cursor.done:
            self.stage(f"going on from round {run.cursor.round} of epoch {run.cursor.epoch}")
        surplus = len(run.workers) - run.shards
        if surplus > 0:
            self.stage(f"{surplus} workers beyond {run.shards} shards are spares for deaths and backups; raise shards=")

    def round(self, record: Record) -> None:
        """Show the running epoch, now and then."""
        assert self._screen is not None
        if monotonic() - self._shown > self._screen.pause and self._shown:
            self._show(record, record["round"] + record.get("rounds", 1))
        self._shown = self._shown or monotonic()

    def epoch(self, record: Record) -> None:
        """Add a line to the table."""
        self._show(record, record["rounds"])
        self._done += 1

    def _show(self, record: Record, rounds: int) -> None:
        assert self._screen is not None
        self._shown = monotonic()
        self._lines[self._done :] = [_line(record, rounds, self._run.rounds_per_epoch)]
        self._screen.show(self._lines)

    def end(self) -> None:
        """Leave all of it as it is."""
        if self._screen is not None:
            self._screen.leave()
        self._screen = None


class _Screen(Protocol):
    """Where progress is shown; the last of the lines may change until another follows it."""

    #: seconds between updates of the running epoch
    pause: float

    def say(self, text: str) -> None: ...

    def show(self, lines: list[Line]) -> None: ...

    def leave(self) -> None: ...


class _Log:
    """Plain lines."""

    pause = 10.0

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def show(self, lines: list[Line]) -> None:
        self.say("  ".join(f"{name} {value}" for name, value in lines[-1].items()))

    def leave(self) -> None:
        pass


class _Terminal:
    """A table below what was said, of as many of its last lines as there is room for until it is left."""

    pause = 0.25
    #: lines of a terminal that a table takes besides its own
    _FRAME = 5

    def __init__(self, console: Console) -> None:
        self._console, self._live = console, Live(console=console, auto_refresh=False)
        self._lines: list[Line] = []

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def show(self, lines: list[Line]) -> None:
        self._lines = lines
        self._live.start()  # if it is not
        self._live.update(_table(lines[-max(1, self._console.height - self._FRAME) :]), refresh=True)

    def leave(self) -> None:
        if self._live.is_started:
            self._live.update(_table(self._lines))
            self._live.stop()


class _Notebook:
    """One output of the cell that runs, with the last of what was said above the table."""

    pause = 0.5
    #: what was said that is still shown
    _SAID = 12

    def __init__(self) -> None:
        self._cell: int | None = None

    def say(self, text: str) -> None:
        from IPython import get_ipython
        from IPython.display import display

        cell = get_ipython().execution_count
        if cell != self._cell:  # what is shown is of a run that failed before its first round
            self._cell, self._said, self._lines = cell, list[str](), list[Line]()
            self._output = display(self._whole(), display_id=True)  # type: ignore[no-untyped-call]
        self._said = [*self._said, text][-self._SAID :]
        self._output.update(self._whole())

    def show(self, lines: list[Line]) -> None:
        self._lines = lines
        self._output.update(self._whole())

    def _whole(self) -> Table:
        whole = Table.grid()  # which, unlike a Group, tells a notebook how it is shown
        for text in self._said:
            whole.add_row(Text(text))
        if self._lines:
            whole.add_row(_table(self._lines))
        return whole

    def leave(self) -> None:
        pass


def _standard_output() -> Console:
    """Return a console that moves the cursor of terminals alone, whatever asks for colours."""
    return Console(highlight=False, force_interactive=None if sys.stdout.isatty() else False)


def _screen(console: Console) -> _Screen:
    if console.is_jupyter:
        return _Notebook()
    return _Terminal(console) if console.is_interactive else _Log(console)


def _line(record: Record, rounds: int, of: int) -> Line:
    figures = {name: f"{value:.4f}" for name, value in record.items() if name not in _NOT_SHOWN}
    first = {"epoch": str(record["epoch"] + 1), "round": f"{rounds}/{of}"}
    return {**first, **figures, "rows/s": f"{record['rows_per_second']:,.0f}"}


def _table(lines: list[Line]) -> Table:
    names = list(dict.fromkeys(name for line in lines for name in line if name != "rows/s"))
    table = Table(*(*names, "rows/s"))
    for line in lines:
        table.add_row(*(line.get(name, "") for name in (*names, "rows/s")))
    return table
