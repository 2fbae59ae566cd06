"""The round loop: compute shards' gradients, reduce, step, broadcast."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch

from dasktrain.domain import pinned
from dasktrain.errors import WorkerLost
from dasktrain.fleet import Abort, Fleet
from dasktrain.messages import Kind, Partial, Task
from dasktrain.observe import History, Observer, Record, Run
from dasktrain.plan import Plan
from dasktrain.reduce import reduce
from dasktrain.strategies import Strategy, Sums, check_weight
from dasktrain.wire import Wire

#: seconds in which an interrupt that killed workers is told to this process as well
INTERRUPT = 0.5


@dataclass
class Driver:
    """One run, from an attached wire to the last round.

    Attributes
    ----------
    stop : threading.Event
        Set from any thread to end after the round under way.
    ended : str
        Why the run ended: "epochs", "max_rounds", "observer" or "interrupt".
    """

    run: Run
    wire: Wire
    plan: Plan
    evaluation: Plan | None
    strategy: Strategy
    sums: Sums
    observers: Sequence[Observer]
    schedule_every: Literal["round", "epoch"] = "epoch"
    history: History = field(default_factory=History)
    stop: threading.Event = field(default_factory=threading.Event)
    ended: str = "epochs"

    def __post_init__(self) -> None:
        self._fleet = Fleet(self.run.shards)
        self._epoch_sums: Any = 0.0
        self._epoch_started = perf_counter()

    def drive(self) -> None:
        """Run rounds until epochs, rounds, an observer or an interrupt end them."""
        with pinned(self.run.threads), ExitStack() as ends:  # each end is called, whatever the others raise
            for observer in self.observers:
                ends.callback(observer.end)
                observer.start(self.run)
            self._rounds()

    def _rounds(self) -> None:
        state = self.run.state
        for done, (epoch, round) in enumerate(self._cursors(), start=1):
            started = perf_counter()
            try:
                total = self._ask("train", epoch, round)
            except WorkerLost as error:
                self._end_if_interrupted(error)
                if round:
                    self._finish_epoch(epoch, round - 1)
                return
            figures = self.strategy.apply(state, total, self.sums)
            record = self._round_record(epoch, round, total, started, figures)
            if state.scheduler and self.schedule_every == "round":
                state.scheduler.step()
            self._ended_by(done)
            wishes = self._tell("round", record)
            if round + 1 == self.plan.rounds or wishes or self.ended != "epochs":
                record = self._finish_epoch(epoch, round)
                wishes |= self.ended != "interrupt" and self._tell("epoch", record)
            if wishes and self.ended == "epochs":
                self.ended = "observer"
            if self.ended != "epochs":
                return

    def _end_if_interrupted(self, error: WorkerLost) -> None:
        """End as after an interrupt if there was one, else raise: Ctrl-C reaches a LocalCluster's workers, too."""
        if not self.stop.wait(INTERRUPT):
            raise error
        self.ended = "interrupt"

    def _cursors(self) -> Iterator[tuple[int, int]]:
        epoch = 0
        while self.run.epochs is None or epoch < self.run.epochs:
            yield from ((epoch, round) for round in range(self.plan.rounds))
            epoch += 1

    def _ended_by(self, done: int) -> None:
        if self.stop.is_set():
            self.ended = "interrupt"
        elif self.run.max_rounds is not None and done >= self.run.max_rounds:
            self.ended = "max_rounds"

    def _ask(self, kind: Kind, epoch: int, round: int) -> Partial:
        """Have every shard computed and reduced."""
        self._settle(f"before {kind} round {round} of epoch {epoch}")
        tasks = {
            seat.worker: Task(self.run.id, kind, epoch, round, seat.start, seat.stop)
            for seat in self._fleet.assignment()
        }
        answers = self.wire.ask(tasks, self.run.state.message())
        self._settle(f"in {kind} round {round} of epoch {epoch}")
        total = reduce((partial for answer in answers for partial in answer.partials), self.run.shards)
        check_weight(total, self.sums, f"{kind} round {round} of epoch {epoch}")
        return total

    def _settle(self, when: str) -> None:
        """Let joins and leaves take effect."""
        for instruction in self._fleet.settle(self.wire.changes()):
            if isinstance(instruction, Abort):
                raise WorkerLost(f"Every worker must stay to the end, however {when} {instruction.reason}; fit again")

    # -- records ------------------------------------------------------------------------------------------

    def _round_record(
        self, epoch: int, round: int, total: Partial, started: float, figures: dict[str, float]
    ) -> Record:
        assert total.sums is not None
        self._epoch_sums = self._epoch_sums + total.sums
        rows, seconds = self.plan.rows_of_round(round), perf_counter() - started
        record = {"epoch": epoch, "round": round, "rows": rows, **self.sums.means(total), **figures}
        record |= {
            "learning_rate": self.run.state.learning_rate,
            "seconds": seconds,
            "rows_per_second": rows / seconds,
        }
        self.history.rounds.append(record)
        return record

    def _finish_epoch(self, epoch: int, round: int) -> Record:
        """Evaluate, step an epoch-wise schedule, and record the epoch."""
        state = self.run.state
        means = self.sums.means(Partial(0, self.run.shards, None, np.asarray(self._epoch_sums)))
        seconds = perf_counter() - self._epoch_started
        rows = sum(self.plan.rows_of_round(done) for done in range(round + 1))
        record: Record = {"epoch": epoch, "rounds": round + 1, "rows": rows, **means}
        if self.evaluation is not None and self.ended != "interrupt":
            try:
                valid = self.sums.means(self._ask("evaluate", epoch, round))
                record |= {f"valid_{name}": value for name, value in valid.items()}
            except WorkerLost as error:
                self._end_if_interrupted(error)
        record |= {
            "learning_rate": state.learning_rate,
            "seconds": seconds,
            "rows_per_second": rows / seconds,
        }
        if state.scheduler and self.schedule_every == "epoch" and self.ended != "interrupt":
            if isinstance(state.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                state.scheduler.step(float(record["valid_loss" if self.evaluation else "loss"]))
            else:
                state.scheduler.step()
        self.history.append(record)
        self._epoch_sums, self._epoch_started = 0.0, perf_counter()
        return record

    def _tell(self, hook: Literal["round", "epoch"], record: Record) -> bool:
        wishes = [getattr(observer, hook)(record) for observer in self.observers]
        return any(wish is True for wish in wishes)
