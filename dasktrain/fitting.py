"""One fit, from data on a wire to a result: survey, encode, plan, place, attach, drive."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

import torch
from dask.delayed import Delayed
from torch import nn

from dasktrain import preflight
from dasktrain.balance import Balance
from dasktrain.checkpointer import Checkpoint
from dasktrain.coordinator import Coordinator
from dasktrain.data.block import Batch
from dasktrain.data.groups import Dealt, Groupable, check_apart
from dasktrain.data.source import Encoding, Schema, Source, Survey, check_surveys, groups_of, strata
from dasktrain.data.target import Labels
from dasktrain.domain import pinned
from dasktrain.driver import Driver
from dasktrain.errors import BadInput, DataError, ModelError, PlanError
from dasktrain.fleet import Fleet, shares
from dasktrain.messages import Kind
from dasktrain.observe import History, Run
from dasktrain.plan import Partitioning, Plan, Shuffle
from dasktrain.replica import Job, Replica
from dasktrain.result import Result
from dasktrain.resume import Saved, capture, identity
from dasktrain.shipping import check_ships, explained, pack
from dasktrain.state import Cursor, TrainState
from dasktrain.strategies import Sums
from dasktrain.vector import Memory, plain_memory
from dasktrain.wire import Wire

if TYPE_CHECKING:
    from dasktrain.trainer import Trainer

Determinism = Literal["strict", "off"]
#: rows of the made-up batch by which workers are compared
CANARY_ROWS = 64


@dataclass(frozen=True)
class Settings:
    """What :meth:`dasktrain.Trainer.fit` was asked for."""

    epochs: int | None
    batch_size: int
    shards: int | None
    seed: int
    max_rounds: int | None
    partition: Partitioning
    shuffle: Shuffle
    window: int
    resume: str | None
    determinism: Determinism
    ship: tuple[str, ...] = ()
    balance: Balance | None = None


@dataclass(frozen=True)
class Needs:
    """What a run takes, in bytes: parameters (one vector), buffers, the optimizer's state, the converted data."""

    shards: int
    parameters: int
    buffers: int
    optimizer: int
    blocks: int

    def replica(self, workers: int) -> int:
        """Bytes of a replica: what it receives, its module, a gradient, and the sums of the tree under way."""
        levels = max(1, self.shards // workers).bit_length()
        return (3 + levels) * self.parameters + 2 * self.buffers

    def driver(self, workers: int) -> int:
        """Bytes on the driver: parameters, their gradient, the sums of the tree under way, the optimizer's state."""
        return (2 + workers.bit_length()) * self.parameters + self.optimizer + self.buffers


def default_shards(workers: int) -> int:
    """Return the larger of 8 and the next power of two."""
    return max(8, 1 << (workers - 1).bit_length())


@dataclass(frozen=True)
class Training:
    """A fit whose data is in place: what is left is to train."""

    wire: Wire
    job: Job
    driver: Driver
    encoding: Encoding
    stage: Callable[[str], None]
    ship: tuple[str, ...]
    balance: Balance | None

    def run(self) -> Result:
        """Train, and close the wire."""
        try:
            self.stage(f"building replicas on {len(self.wire.workers)} workers")
            cursor = self.driver.run.cursor
            self.driver.coordinator.attach(pack(Replica, self.job), cursor.epoch, cursor.round)
            self.driver.drive()
            return Result.of(self.driver.state, self.encoding, self.driver, self.ship, self.balance)
        finally:
            self.wire.close()
            self.driver.coordinator.close()


@dataclass(frozen=True)
class Fitting:
    """A trainer, its data, and what was asked for of it."""

    trainer: "Trainer"
    data: Source
    validation: Source | None
    settings: Settings

    def prepare(self, wire: Wire, stop: Event) -> Training:
        """Bring the data on the wire's workers into place.

        `stop`, set at any time, ends the training after the round under way.
        """
        settings = self.settings
        saved = Saved.read(settings.resume) if settings.resume is not None else None
        if settings.determinism == "off":
            self._stage("determinism is off: any worker computes, and no other run need give these bits")
        self._stage("looking for workers")
        wire.open()
        shards = settings.shards or (saved.shards if saved else default_shards(len(wire.workers)))
        with told_plainly():
            prepared = Prepared(self, wire)
        prepared.make_plans(settings, shards)
        state = self.state(prepared, wire.memory)
        with told_plainly():
            prepared.place()
        if saved is not None:
            saved.check(self._identity(prepared, state), prepared.fingerprints)
        strict = settings.determinism == "strict"
        fleet = Fleet(shards, saved.domain if saved and strict else None, strict)
        return self.training(prepared, state, saved, fleet, Coordinator(wire, fleet, self._stage, stop), stop)

    def needs(self, wire: Wire) -> "Needs":
        """Find out what a run would take, from statistics of the data and one step of a copy of the optimizer."""
        prepared = Prepared(self, wire)
        prepared.make_plans(self.settings, self.settings.shards or default_shards(len(wire.workers)))
        state = self.state(prepared, plain_memory)
        parameters = state.parameters.vector
        rows = min(CANARY_ROWS, prepared.plan.num_rows)
        return Needs(
            prepared.plan.shards,
            parameters.nbytes,
            state.buffers.vector.nbytes,
            state.optimizer_bytes(),
            int(prepared.plan.strata.sum()) * next(prepared.samples(rows)).nbytes // rows,
        )

    def _stage(self, text: str) -> None:
        for observer in self.trainer.observers:
            observer.stage(text)

    def state(self, prepared: "Prepared", memory: Memory) -> TrainState:
        """Make the module and its optimizer, once it is known to fit the data."""
        trainer = self.trainer
        module = self._module(prepared.encoding.schema)
        for batch in prepared.samples(prepared.plan.fewest_rows):
            preflight.check(module, trainer.loss, trainer.metrics, trainer.strategy, prepared.plan, batch)
        state = TrainState(module, trainer.optimizer, trainer.scheduler, trainer.groups, memory)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
        if trainer.schedule_every == "round" and isinstance(state.scheduler, plateau):
            raise BadInput('ReduceLROnPlateau must step every epoch, however schedule_every is "round"')
        return state

    def _module(self, schema: Schema) -> nn.Module:
        trainer = self.trainer
        module: Any = trainer.model
        if not isinstance(module, nn.Module):
            with pinned(torch.get_num_threads()):
                torch.manual_seed(self.settings.seed)
                module = trainer.model(schema)
        if not isinstance(module, nn.Module):
            raise ModelError(f"model(schema) must return a module, however it returned {type(module)}")
        named = {f"metric {name!r}": metric for name, metric in trainer.metrics.items()}
        check_ships(module, **{"the loss": trainer.loss}, **named)  # before copying, which fails without naming a part
        return copy.deepcopy(module) if module is trainer.model else module

    def training(
        self,
        prepared: "Prepared",
        state: TrainState,
        saved: Saved | None,
        fleet: Fleet,
        coordinator: Coordinator,
        stop: Event,
    ) -> Training:
        """Put together what trains, once the data are in place."""
        trainer, wire = self.trainer, prepared.wire
        threads = saved.threads if saved else wire.threads
        # Checkpoints are taken once all others have seen a round.
        observers = sorted(trainer.observers, key=lambda observer: isinstance(observer, Checkpoint))
        facts = {
            "run": wire.run,
            "identity": self._identity(prepared, state),
            "fingerprints": prepared.fingerprints,
            "encoding": prepared.encoding.to_json(),
            "threads": threads,
        }
        run = Run(
            id=wire.run,
            workers=wire.workers,
            shards=prepared.plan.shards,
            threads=threads,
            rows=prepared.plan.num_rows,
            parameters=state.parameters.layout.size,
            rounds_per_epoch=prepared.plan.rounds,
            epochs=self.settings.epochs,
            max_rounds=self.settings.max_rounds,
            state=state,
            cursor=Cursor(),
            history=History(),
            capture=lambda: (facts | {"domain": fleet.domain}, capture(run, state, trainer.strategy, observers)),
        )
        driver = Driver(
            run,
            coordinator,
            prepared.plan,
            prepared.plans.get("evaluate"),
            trainer.strategy,
            Sums(list(trainer.metrics), len(state.parameters.parameters), state.buffers.layout.size),
            observers,
            trainer.schedule_every,
            saved,
            stop,
        )
        return Training(
            wire,
            self._job(prepared, state, threads),
            driver,
            prepared.encoding,
            self._stage,
            self.settings.ship,
            self.settings.balance,
        )

    def _identity(self, prepared: "Prepared", state: TrainState) -> dict[str, Any]:
        return identity(prepared.plan, state, self.trainer.schedule_every, self.trainer.compute, self.settings.balance)

    def _job(self, prepared: "Prepared", state: TrainState, threads: int) -> Job:
        trainer = self.trainer
        return Job(
            state.module,
            trainer.loss,
            trainer.metrics,
            trainer.strategy,
            prepared.plans,
            prepared.plan.seed,
            threads,
            next(prepared.samples(CANARY_ROWS)),
            prepared.fingerprints,
            prepared.encoding.collate,
            trainer.compute,
            prepared.balance.synthesis,
        )


@contextmanager
def told_plainly() -> Iterator[None]:
    """Have what tasks raise on workers be bad input of a kind, with what to do about it."""
    try:
        yield
    except UnicodeDecodeError as error:  # of what the user reads
        found = UnicodeDecodeError(*error.args)  # one that came from a worker has nothing but these
        raise DataError(
            f"Texts must be in the encoding they are read with, however {found}; give db.read_text the right "
            'encoding=, or errors="replace"'
        ) from error
    except ModuleNotFoundError as error:
        raise ModelError(f"Tasks must find all they need on workers, however {explained(error)}") from error


class Prepared:
    """Data that was surveyed, and where it goes."""

    def __init__(self, fitting: Fitting, wire: Wire) -> None:
        self.wire, self.data, self.validation = wire, fitting.data, fitting.validation
        self.balance = fitting.settings.balance or Balance()
        self._stage: Callable[[str], None] = fitting._stage
        self._stage("reading the data once for statistics")
        self.data = self.data.staged(wire.persist)
        self._surveys = self._surveyed(self.data, "training")
        check_surveys(self._surveys, "training")
        self.encoding: Encoding = self.data.fit(self._surveys)
        self.balance.check(self.encoding.schema)
        if self.validation is not None:
            self.validation = self.validation.staged(wire.persist)
            self._valid_surveys = self._surveyed(self.validation, "validation")
            self.validation.sample(self.encoding, self._valid_surveys, 1)  # refuses what does not fit
            check_surveys(self._valid_surveys, "validation", self.encoding.target)
            check_apart(groups_of(self._surveys), groups_of(self._valid_surveys))

    def _surveyed(self, source: Source, name: str) -> list[Survey]:
        """Survey a data set, and tell what will be left out of it."""
        surveys: list[Survey] = self.wire.compute(source.survey())
        cut, rows = (sum(getattr(survey, count) for survey in surveys) for count in ("cut", "rows"))
        if cut:
            self._stage(f"{cut:,} texts of {rows:,} rows of {name} are longer than they may be, and are cut")
        return surveys

    def samples(self, rows: int) -> Iterator[Batch]:
        """Make up batches like those of training and of validation, for a first try."""
        yield self.data.sample(self.encoding, self._surveys, rows)
        if self.validation is not None:
            yield self.validation.sample(self.encoding, self._valid_surveys, rows)

    def make_plans(self, settings: Settings, shards: int) -> None:
        """Settle which rows each shard sees in each round, and how validation rows are read."""
        grouped = None
        if isinstance(self.data, Groupable) and self.data.group is not None:
            grouped = Dealt.to(shards, groups_of(self._surveys))
            self.data = self.data.by_shard(grouped)
        self._by_class = settings.partition == "stratified" or self.balance.draws
        if self._by_class:
            self._check_by_class(settings.partition, grouped is not None)
        rows = strata(self._surveys, self.encoding.target if self._by_class else None)
        by_length = self.encoding.collate.by_length and not self._by_class  # sorted by length, classes are not mixed
        self.plan = Plan(
            rows if grouped is None else grouped.strata,
            shards,
            settings.batch_size,
            settings.seed,
            "stratified" if self._by_class else settings.partition,
            settings.shuffle,
            settings.window,
            by_length,
            self.balance.drawn(rows.sum(axis=0)),
            grouped is not None,
        )
        self.plans: dict[Kind, Plan] = {"train": self.plan}
        if self.validation is not None:
            rows = strata(self._valid_surveys, None)
            self.plans["evaluate"] = Plan(rows, shards, settings.batch_size, shuffle=False, by_length=by_length)

    def _check_by_class(self, partition: Partitioning, grouped: bool) -> None:
        """Refuse to deal rows by their class what has none, or is dealt otherwise."""
        asked = 'partition="stratified"' if partition == "stratified" else f"balance={self.balance}"
        target = self.encoding.target
        if target is None or (partition != "stratified" and not isinstance(target, Labels)):
            raise PlanError(f"{asked} must have class labels to balance, however these data have none; leave it out")
        if grouped:
            raise PlanError(
                f"{asked} must have rows that can be dealt one by one, however group= keeps them together; leave out "
                "one of them, or use dt.balance.ClassWeights"
            )
        if partition == "random":
            raise PlanError(f'{asked} must deal every class evenly, however partition is "random"; leave that out')

    def place(self) -> None:
        """Convert every partition on the worker that will read most of it."""
        self._stage("converting partitions on their workers")
        self.fingerprints: dict[Kind, list[str]] = {}
        blocks = self.data.convert(self.encoding, self._surveys, self._by_class)
        tasks: dict[Kind, list[Delayed]] = {"train": self.balance.weighed(blocks, self.encoding.target, self._surveys)}
        if self.validation is not None:
            tasks["evaluate"] = self.validation.convert(self.encoding, self._valid_surveys, self._by_class)
        for kind, plan in self.plans.items():
            self.fingerprints[kind] = self.wire.place(kind, tasks[kind], self._owners(plan))

    def _owners(self, plan: Plan) -> list[str]:
        """Return for each partition the worker whose shards have most of its rows."""
        rows: list[dict[str, int]] = [{} for _ in plan.strata]
        for worker, start, stop in shares(self.wire.workers, plan.shards):
            for shard in range(start, stop):
                for partition, count in plan.partitions(0, shard).items():
                    rows[partition][worker] = rows[partition].get(worker, 0) + count
        return [max(held, key=lambda worker: held[worker]) if held else self.wire.workers[0] for held in rows]
