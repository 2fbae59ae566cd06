"""What a driver on the cluster tells its client's observers, as plain messages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from time import monotonic
from typing import Any

from dasktrain.errors import WireError
from dasktrain.observe import History, Observer, Record, Run, nobody, nothing
from dasktrain.state import Cursor

Message = dict[str, Any]
#: seconds of rounds that are told at once
PAUSE = 0.5
#: what parts of a message are
_KINDS: dict[str, Any] = {
    "stage": str,
    "start": Mapping,
    "cursor": Mapping,
    "rounds": Sequence,
    "past_rounds": Sequence,
    "epoch": Mapping,
    "past_epoch": Mapping,
    "end": str,
}
#: what only the driver has
NOT_TOLD = ("state", "cursor", "history", "members", "capture", "timings", "client")


class Relay(Observer):
    """Tell everything that happens in a run.

    Parameters
    ----------
    attempt
        Names the driver's life; one that is started anew has another.
    tell
        Called with each message: values that msgpack can carry.
    """

    def __init__(self, attempt: str, tell: Callable[[Message], None]) -> None:
        self._attempt, self._tell = attempt, tell
        self._count, self._at = 0, 0.0
        self._rounds: list[Record] = []

    def _say(self, **what: Any) -> None:
        self._tell({"attempt": self._attempt, "number": self._count, **what})
        self._count += 1

    def stage(self, text: str) -> None:
        """Tell the stage."""
        self._flush()
        self._say(stage=text)

    def start(self, run: Run) -> None:
        """Tell what is known of the run, and what was before a resume."""
        self._run = run
        told = {field.name: getattr(run, field.name) for field in fields(run) if field.name not in NOT_TOLD}
        cursor = {"epoch": run.cursor.epoch, "round": run.cursor.round, "done": run.cursor.done}
        self._say(start=told | {"workers": list(run.workers)}, cursor=cursor)
        self._rounds = list(run.history.rounds)
        self._flush(replayed=True)
        for record in run.history:
            self._say(past_epoch=record)

    def round(self, record: Record) -> None:
        """Tell rounds, a few at a time."""
        self._rounds.append(record)
        if monotonic() - self._at > PAUSE:
            self._flush()

    def epoch(self, record: Record) -> None:
        """Tell an epoch."""
        self._flush()
        self._say(epoch=record)

    def end(self) -> None:
        """Tell what is left."""
        self._flush()
        self._say(end=self._run.cursor.ended)

    def _flush(self, replayed: bool = False) -> None:
        if self._rounds:
            self._say(**{"past_rounds" if replayed else "rounds": self._rounds})
        self._rounds, self._at = [], monotonic()


class Replay:
    """Have observers see a run that a `Relay` tells of, in its order, whatever order its messages come in.

    Attributes
    ----------
    history : History
        As far as it was told.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers
        self._attempt: str | None = None
        self._over: set[str] = set()  # earlier attempts
        self._next = 0  # number of the message to come
        self._waiting: dict[int, Message] = {}  # those that came before it
        self._started: Run | None = None
        self._pending: Message | None = None  # a start whose past has not been told yet
        self.history = History()

    def play(self, message: Message) -> None:
        """Take a message in; one that was taken before is passed over.

        Raises
        ------
        WireError
            No `Relay` made it.
        """
        _check(message)
        if message["attempt"] in self._over:
            return
        if message["attempt"] != self._attempt:
            self._over |= {self._attempt} if self._attempt is not None else set()
            self._attempt, self._next, self._waiting = message["attempt"], 0, {}
        if message["number"] >= self._next:
            self._waiting[message["number"]] = message
        self._proceed()

    @property
    def gap(self) -> bool:
        """Whether messages are missing before some that came."""
        return bool(self._waiting)

    def __len__(self) -> int:
        """Messages that came and wait for one before them."""
        return len(self._waiting)

    def skip(self) -> None:
        """Go on without messages that nobody remembers."""
        if self._waiting:
            self._next = min(self._waiting)
            self._proceed()

    def _proceed(self) -> None:
        while self._next in self._waiting:
            self._take(self._waiting.pop(self._next))
            self._next += 1

    def _take(self, message: Message) -> None:
        if "start" in message:
            self.end()
            self.history, self._pending = History(), message
        elif "past_rounds" in message:
            self.history.rounds += message["past_rounds"]
        elif "past_epoch" in message:
            self.history.append(message["past_epoch"])
        else:
            self._begin()
            self._play(message)

    def _begin(self) -> None:
        """Start observers once all that was before the run's start is known."""
        message, self._pending = self._pending, None
        if message is None:
            return
        past = History(list(self.history), self.history.rounds)
        run = _run(message, past)
        for observer in self._observers:
            observer.start(run)
        self._started = run

    def _play(self, message: Message) -> None:
        for record in message.get("rounds", ()):
            self.history.rounds.append(record)
            self._each("round", record)
        if "epoch" in message:
            self.history.append(message["epoch"])
            self._each("epoch", message["epoch"])
        if "stage" in message:
            self._each("stage", message["stage"])
        if "end" in message and self._started is not None:
            self._started.cursor.ended = message["end"]
            self.end()

    def _each(self, hook: str, value: Any) -> None:
        if self._started is not None or hook == "stage":
            for observer in self._observers:
                getattr(observer, hook)(value)

    def end(self) -> None:
        """End observers that were started."""
        if self._started is not None:
            for observer in self._observers:
                observer.end()
        self._started = None


def _check(message: Any) -> None:
    """Refuse what is no message: anybody on the cluster may log to a topic."""
    try:
        whole = type(message["attempt"]) is str and type(message["number"]) is int
        kinds = {name: kind for name, kind in _KINDS.items() if name in message}
        if not whole or not all(isinstance(message[name], kind) for name, kind in kinds.items()):
            raise TypeError("a part is of another kind")
        for record in [*message.get("rounds", ()), *message.get("past_rounds", ())]:
            if not isinstance(record, Mapping):
                raise TypeError("a round is no record")
        if "start" in message:
            _run(message, History())
    except (KeyError, TypeError, AttributeError) as error:
        raise WireError(
            f"What is told of a run must be messages of its driver, however one is {message!r:.80} "
            f"({type(error).__name__}: {error}); see who else logs to the run's topic"
        ) from error


def _run(message: Message, past: History) -> Run:
    told, cursor = message["start"], Cursor(**message["cursor"])
    return Run(**told, state=None, cursor=cursor, history=past, members=nobody, capture=nothing)
