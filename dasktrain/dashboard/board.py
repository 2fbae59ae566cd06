"""What a scheduler remembers of runs, to show it."""

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from distributed import SchedulerPlugin

from dasktrain.errors import WireError
from dasktrain.observe import Observer, Record, Run
from dasktrain.relay import Replay

if TYPE_CHECKING:
    from distributed import Scheduler

#: topics of runs that are to be shown
PREFIX = "dasktrain-dashboard-"
#: rounds of a run, lines that were told, and runs, that are remembered
ROUNDS, LINES, RUNS = 2_000, 200, 20


class Board(Observer):
    """One run as far as it was told.

    Attributes
    ----------
    run : Run or None
        What is known of it.
    rounds : list of dict
        Their records, in order; of many, every so many, the latest all.
    epochs : list of dict
    told : deque of (float, str)
        Seconds since the board was made, and what happened.
    workers : dict
        Address -> seconds that its latest answer took to compute, and that it waited for data.
    """

    def __init__(self) -> None:
        self._begun = monotonic()
        self.run: Run | None = None
        self.rounds: list[Record] = []
        self.epochs: list[Record] = []
        self.told: deque[tuple[float, str]] = deque(maxlen=LINES)
        self.workers: dict[str, list[float]] = {}
        self.over = False

    def stage(self, text: str) -> None:
        """Remember a line."""
        self.told.append((monotonic() - self._begun, text))

    def start(self, run: Run) -> None:
        """Begin, or begin again after a resume, with what was before."""
        self.run, self.over = run, False
        self.epochs, self.rounds = list(run.history), list(run.history.rounds)

    def round(self, record: Record) -> None:
        """Remember a round; of the older half every second is let go if there are too many."""
        self.rounds.append(record)
        if len(self.rounds) > ROUNDS:
            half = ROUNDS // 2
            self.rounds = self.rounds[:half:2] + self.rounds[half:]

    def epoch(self, record: Record) -> None:
        """Remember an epoch."""
        self.epochs.append(record)

    def end(self) -> None:
        """Remember that it is over."""
        self.over = True

    def answered(self, workers: Mapping[str, Any]) -> None:
        """Remember how long workers took."""
        self.workers |= {str(worker): [float(each) for each in parts] for worker, parts in workers.items()}


class Boards(SchedulerPlugin):  # type: ignore[misc]
    """Takes in what is told of runs, and has a page for it; registering it twice is once.

    Attributes
    ----------
    boards : dict
        Run -> its board, the latest last.
    """

    name = "dasktrain-dashboard"
    idempotent = True

    def __init__(self) -> None:
        self.boards: dict[str, Board] = {}
        self._replays: dict[str, Replay] = {}

    async def start(self, scheduler: "Scheduler") -> None:
        """Add the page."""
        from dasktrain.dashboard.page import add  # needs Bokeh, which only the scheduler has to have

        add(scheduler, self)

    def log_event(self, topic: str, msg: Any) -> None:
        """Take in an event, if it is of a run; one that is nonsense is passed over."""
        if not topic.startswith(PREFIX):
            return
        run = topic.removeprefix(PREFIX)
        if run not in self.boards:
            self.boards[run] = Board()
            self._replays[run] = Replay([self.boards[run]])
            for old in list(self.boards)[:-RUNS]:
                del self.boards[old], self._replays[old]
        with suppress(WireError, TypeError, ValueError, AttributeError):
            if "workers" in msg and "attempt" not in msg:
                self.boards[run].answered(msg["workers"])
            else:
                self._play(self._replays[run], msg)

    @staticmethod
    def _play(replay: Replay, message: Any) -> None:
        """Pass a message on; do not wait for ever for one that was lost, and remember no more than is shown."""
        replay.play(message)
        if len(replay) > LINES:
            replay.skip()
        del replay.history.rounds[:-ROUNDS]
