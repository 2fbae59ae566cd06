"""The round loop: compute shards' gradients, reduce, step, broadcast."""

import copy
import threading
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch

from dasktrain.compression import Sent
from dasktrain.coordinator import Coordinator, Parts
from dasktrain.domain import pinned
from dasktrain.errors import RestLost, WorkerLost
from dasktrain.following import Following
from dasktrain.inner import Inner, Schedule
from dasktrain.messages import Kind, Partial, State, Vector
from dasktrain.observe import Observer, Record, Run
from dasktrain.plan import Plan
from dasktrain.players import Players
from dasktrain.resume import Saved
from dasktrain.state import Cursor, Snapshot, TrainState
from dasktrain.strategies import Strategy, Sums, check_weight


class Ask(NamedTuple):
    """A round that a run needs the total of, to go on, a turn of it, or some rounds that shards do by themselves."""

    kind: Kind
    epoch: int
    round: int
    turn: int = 0
    rounds: int = 1


class _Turn(NamedTuple):
    """What came of a turn: its sums (scalars,), its seconds by part, and figures of the step."""

    sums: Vector
    parts: Parts
    figures: dict[str, float]


@dataclass(frozen=True)
class _Start:
    """Where a stretch began."""

    state: Snapshot
    strategy: dict[str, Any]
    following: dict[str, Any]
    cursor: Cursor
    rounds: int

    @classmethod
    def of(cls, run: Run, state: TrainState, strategy: Strategy, following: Following) -> "_Start":
        """Copy what is there now."""
        kept = copy.deepcopy(strategy.state_dict())
        return cls(state.snapshot(), kept, following.state_dict(), copy.copy(run.cursor), len(run.history.rounds))

    def restore(self, state: TrainState, strategy: Strategy, following: Following) -> None:
        """Go back, with what a run computes with."""
        state.restore(self.state)
        strategy.load_state_dict(copy.deepcopy(self.strategy))
        following.load_state_dict(self.following)

    def rewind(self, run: Run) -> None:
        """Go back, with what a run tells."""
        vars(run.cursor).update(vars(self.cursor))
        del run.history.rounds[self.rounds :]


class Leave(Exception):
    """Thrown into a run that asks for a round, to end it instead; says why."""


#: what a run asks for, one after another, and is sent
Asks = Generator[Ask, Partial, None]


@dataclass
class Driver:
    """One run, from ready workers to the last round.

    Attributes
    ----------
    inner : Inner or None
        How shards step by themselves.
    following : Following or None
        What workers have of the parameters, if what crosses the network is made small.
    saved : Saved or None
        The checkpoint to go on from.
    stop : threading.Event
        Set from any thread to end after the round under way.
    """

    run: Run
    coordinator: Coordinator
    plan: Plan
    evaluation: Plan | None
    players: Players
    strategy: Strategy
    sums: Sums
    observers: Sequence[Observer]
    schedule_every: Literal["round", "epoch"] = "epoch"
    inner: Inner | None = None
    following: Following | None = None
    saved: Saved | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def ended(self) -> str:
        """Why the run ended: "epochs", "max_rounds", "observer", "interrupt", or what a `Leave` said."""
        return self.run.cursor.ended

    @property
    def state(self) -> TrainState:
        """The state of record."""
        assert self.run.state is not None
        return self.run.state

    def __post_init__(self) -> None:
        self._epoch_started = perf_counter()
        self._attempts = 0  # at going on from where a stretch began: answers to one are none to the next
        self._start: _Start | None = None
        self._schedule: Schedule | None = None
        if self.inner is not None:
            self._schedule = Schedule(self.inner, copy.deepcopy(self.state.module), self.plan.rounds)
        if self.saved is not None:
            self.saved.restore(self.run, self.state, self.strategy, self.following)
            self.run.cursor.ended = ""

    def drive(self) -> None:
        """Run rounds until epochs, rounds, an observer or an interrupt end them."""
        asks, dense = self.asks(), self.state.parameters.gradient.size
        try:
            ask = next(asks)
            while True:
                try:
                    whose = f"+{self._attempts}" if self._attempts else ""
                    total = self.coordinator.ask(*ask, self._message(ask), dense, whose, self._sent(ask))
                except Exception as error:
                    ask = asks.throw(error)
                else:
                    ask = asks.send(total)
        except StopIteration:
            return

    def asks(self) -> Asks:
        """Run, and yield each round whose total is needed, from the state as it is then."""
        with ExitStack() as ends:  # each end is called, the last observer's first, whatever the others raise
            for place, observer in enumerate(self.observers):
                ends.callback(self._end_observer, observer)
                observer.start(self.run)
                if self.saved is not None:
                    self.saved.hand_back(place, observer)
            if self.following is not None and self.saved is None:
                self.following.begin()  # observers may have changed parameters
            yield from self._rounds()

    def _end_observer(self, observer: Observer) -> None:
        snapshot = observer.end()
        if snapshot is not None:
            self.state.restore(snapshot)

    def _rounds(self) -> Asks:
        cursor = self.run.cursor
        try:
            if cursor.round == self.plan.rounds:  # the run that is resumed was interrupted before it could
                yield from self._epoch()
            while not (reason := self._end() if cursor.settled else ""):
                yield from self._round()
                if cursor.round == self.plan.rounds and not self.stop.is_set():
                    yield from self._epoch()
        except WorkerLost:  # Ctrl-C reaches a LocalCluster's workers as well
            if not self.stop.is_set():
                raise
            reason = "interrupt"
        except Leave as leave:
            reason = str(leave)
        if cursor.round:  # in the middle of an epoch
            try:
                record = yield from self._epoch_record(evaluated=reason != "interrupt")
            except WorkerLost:
                if not self.stop.is_set():
                    raise
                reason = "interrupt"
                record = yield from self._epoch_record(evaluated=False)
            if reason != "interrupt":
                self._tell("epoch", record)
        cursor.ended = reason

    def _end(self) -> str:
        """Return why the run ends here, if it does."""
        run, cursor = self.run, self.run.cursor
        if self.stop.is_set():
            return "interrupt"
        if run.max_rounds is not None and cursor.done >= run.max_rounds:
            return "max_rounds"
        if cursor.wished:
            return "observer"
        return "epochs" if run.epochs is not None and cursor.epoch >= run.epochs else ""

    def _round(self) -> Asks:
        state, cursor = self.state, self.run.cursor
        started, rounds = perf_counter(), self._rounds_at_once
        if self.following is not None and self.following.stretches.begins_to_keep(cursor.round):
            self._start = None  # or there would be two for a moment
            self._start = _Start.of(self.run, state, self.strategy, self.following)
        sums, parts, figures = yield from self._turn(0)
        for turn in range(1, len(self.players.turns)):
            found = yield from self._turn(turn)
            sums = sums + found.sums
            parts = {part: seconds + found.parts[part] for part, seconds in parts.items()}
            figures |= found.figures
        record = self._round_record(sums, started, parts, figures, rounds)
        self._schedule_round()
        cursor.sums = sums + (0.0 if cursor.sums is None else cursor.sums)
        cursor.settled = self.following is None or self.following.stretches.is_last(cursor.round)
        cursor.round += rounds
        cursor.done += rounds
        self._tell("round", record)

    def _turn(self, turn: int) -> Generator[Ask, Partial, "_Turn"]:
        """Have one player step."""
        cursor = self.run.cursor
        total = yield from self._total("train", cursor.epoch, cursor.round, turn, self._rounds_at_once)
        assert total.sums is not None
        for observer in self.observers:
            observer.step()
        cursor.settled = False
        figures = self._apply(total)
        if self.players.several:
            figures = {f"{self.players.turns[turn]}_{name}": value for name, value in figures.items()}
        return _Turn(total.sums.copy(), self.coordinator.parts, figures)

    def _apply(self, total: Partial) -> dict[str, float]:
        """Step the state of record."""
        with pinned(self.state.threads(self.run.threads)):
            figures = self.strategy.apply(self.state, total, self.sums)
        if self.following is not None:
            self.following.stepped()
        return figures

    def _schedule_round(self) -> None:
        """Step a schedule that goes by rounds."""
        if self.state.scheduler and self.schedule_every == "round":
            self.state.scheduler.step()

    def _epoch(self) -> Asks:
        """Evaluate, step an epoch-wise schedule, and begin the next epoch."""
        state, cursor = self.state, self.run.cursor
        record = yield from self._epoch_record()
        if state.scheduler and self.schedule_every == "epoch":
            if isinstance(state.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                state.scheduler.step(float(record["valid_loss" if self.evaluation else "loss"]))
            else:
                state.scheduler.step()
        cursor.epoch, cursor.round, cursor.sums = cursor.epoch + 1, 0, None
        self._epoch_started = perf_counter()
        self._tell("epoch", record)

    @property
    def _rounds_at_once(self) -> int:
        """How many rounds shards do before the next sum, which is never of two epochs."""
        return 1 if self.inner is None else min(self.inner.steps, self.plan.rounds - self.run.cursor.round)

    def _total(
        self, kind: Kind, epoch: int, round: int, turn: int = 0, rounds: int = 1
    ) -> Generator[Ask, Partial, Partial]:
        """Have every shard computed and reduced."""
        while True:
            try:
                total = yield Ask(kind, epoch, round, turn, rounds)
                break
            except RestLost:
                yield from self._again(epoch, round)
        check_weight(total, self.sums, f"{kind} round {round} of epoch {epoch}")
        self.state.parameters.check(total)
        return total

    # -- what crosses the network -------------------------------------------------------------------------

    def _message(self, ask: Ask) -> State:
        """Return what a round starts from."""
        following = self.following if ask.kind == "train" else None
        return self.state.message() if following is None else following.message()

    def _sent(self, ask: Ask) -> Sent | None:
        """Return what vectors of a round are like, if they are packed."""
        following = self.following if ask.kind == "train" else None
        return None if following is None else following.stretches.sent(ask.round)

    def _again(self, epoch: int, until: int) -> Asks:
        """Go back to where the stretch began, and come to a round of it again.

        Then shards have kept what they had. Its records are what they were, so nobody is told of them twice.
        """
        assert self.following is not None
        assert self._start is not None
        stretches = self.following.stretches
        first, steps = stretches.first(until), stretches.steps
        told = f"rounds {first} to {until} of epoch {epoch} are done again, for what was lost with a worker"
        for observer in self.observers:
            observer.stage(told)
        while True:
            self._attempts += 1
            self._start.restore(self.state, self.strategy, self.following)
            try:
                for round in range(first, until, steps):
                    total = yield Ask("train", epoch, round, 0, steps)
                    self._apply(total)
                    self._schedule_round()
                return
            except RestLost:
                continue
            except WorkerLost:
                self._start.restore(self.state, self.strategy, self.following)
                self._start.rewind(self.run)
                raise

    # -- records ------------------------------------------------------------------------------------------

    def _round_record(
        self, sums: Vector, started: float, parts: Parts, figures: dict[str, float], rounds: int
    ) -> Record:
        cursor, seconds = self.run.cursor, perf_counter() - started
        rows = sum(self.plan.rows_of_round(cursor.round + done) for done in range(rounds))
        record: Record = {"epoch": cursor.epoch, "round": cursor.round, "rows": rows}
        record |= {} if self.inner is None else {"rounds": rounds}
        record |= self.sums.figures(sums, every_round=True) | figures
        record |= {
            "learning_rate": self._learning_rate(cursor.round),
            "seconds": seconds,
            "rows_per_second": rows / seconds,
            **parts,
            "step": seconds - sum(parts.values()),
        }
        self.run.history.rounds.append(record)
        return record

    def _epoch_record(self, evaluated: bool = True) -> Generator[Ask, Partial, Record]:
        """Record the epoch so far."""
        cursor, seconds = self.run.cursor, perf_counter() - self._epoch_started
        assert cursor.sums is not None
        figures = self.sums.figures(cursor.sums)
        rows = sum(self.plan.rows_of_round(done) for done in range(cursor.round))
        record: Record = {"epoch": cursor.epoch, "rounds": cursor.round, "rows": rows, **figures}
        if self.evaluation is not None and evaluated:
            total = yield from self._total("evaluate", cursor.epoch, cursor.round - 1)
            assert total.sums is not None
            record |= {f"valid_{name}": value for name, value in self.sums.figures(total.sums).items()}
        record |= {
            "learning_rate": self._learning_rate(cursor.round - 1),
            "seconds": seconds,
            "rows_per_second": rows / seconds,
        }
        self.run.history.append(record)
        return record

    def _learning_rate(self, round: int) -> float:
        """Return that of the first parameter group, in a round of this epoch."""
        if self._schedule is None:
            return self.state.learning_rate
        return float(self._schedule.at(self.run.cursor.epoch, round)[0]["lr"])

    def _tell(self, hook: Literal["round", "epoch"], record: Record) -> None:
        for observer in self.observers:  # those that write checkpoints come last and see what the others wished
            self.run.cursor.wished |= getattr(observer, hook)(record) is True
