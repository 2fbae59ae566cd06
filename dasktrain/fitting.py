"""One fit, from data on a wire to a result: survey, encode, plan, place, attach, drive."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from dasktrain import preflight
from dasktrain.balancing import Balance
from dasktrain.compression import Compression
from dasktrain.coordinator import Coordinator
from dasktrain.data.source import Encoding, Schema, Source
from dasktrain.domain import pinned
from dasktrain.driver import Driver
from dasktrain.errors import BadInput, ModelError
from dasktrain.fleet import Fleet, default_shards
from dasktrain.folds import Fold
from dasktrain.following import Following, check_compression
from dasktrain.inner import Inner, Stepping
from dasktrain.job import Job
from dasktrain.keras_module import adapted
from dasktrain.metrics import Metric, metrics_of
from dasktrain.observe import History, Run
from dasktrain.plan import Partitioning, Shuffle
from dasktrain.prepared import Prepared, told_plainly
from dasktrain.replica import Replica
from dasktrain.result import Result
from dasktrain.resume import Saved, capture, identity
from dasktrain.shipping import check_ships, pack
from dasktrain.state import Cursor, TrainState, optimizer_bytes
from dasktrain.strategies import Sums
from dasktrain.topology import Reduction
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
    reduction: Reduction = "auto"


@dataclass(frozen=True)
class Needs:
    """What a run takes, in bytes: parameters (one vector), buffers, the optimizer's state, the converted data.

    And the state of the optimizer that shards step with, if they step by themselves; and how what is sent is small.
    """

    shards: int
    parameters: int
    buffers: int
    optimizer: int
    blocks: int
    inner: int | None = None
    compression: Compression | None = None

    def replica(self, workers: int) -> int:
        """Bytes of a replica: what it receives, its module, a gradient, and the sums of the tree under way.

        And what its shards keep, of a gradient that is made small what is sent, and what that stands for.
        """
        shards = max(1, self.shards // workers)
        own = 0 if self.inner is None else self.parameters + self.inner
        small = 0 if self.compression is None else 2 + (shards if self.compression.every > 1 else 0)
        return (3 + shards.bit_length() + small) * self.parameters + 2 * self.buffers + own

    def driver(self, workers: int) -> int:
        """Bytes on the driver: parameters, their gradient, the sums of the tree under way, the optimizer's state.

        And, where what is sent is made small, all workers' sums at once, what they have of the parameters, now and
        before, and a copy of that and of the state.
        """
        state = self.parameters + self.optimizer + self.buffers
        if self.compression is None:
            return state + (1 + workers.bit_length()) * self.parameters
        copied = state + self.parameters if self.compression.every > 1 else 0
        return state + (1 + workers + 2) * self.parameters + copied


@dataclass(frozen=True)
class Training:
    """A fit whose data is in place: what is left is to train."""

    wire: Wire
    job: Job
    driver: Driver
    encoding: Encoding
    stage: Callable[[str], None]
    settings: Settings

    def run(self) -> Result:
        """Train, and close the wire."""
        try:
            self.stage(f"building replicas on {len(self.wire.workers)} workers")
            cursor = self.driver.run.cursor
            if self.job.compression is None:
                self.wire.choose(self.settings.reduction, self.driver.state.whole(), self.driver.plan.shards)
            job = replace(self.job, bucket=self.wire.bucket)
            self.driver.coordinator.attach(pack(Replica, job), cursor.epoch, cursor.round)
            if chosen := self.wire.chosen():
                self.stage(chosen)
            self.driver.drive()
            return self.result()
        finally:
            self.wire.close()
            self.driver.coordinator.close()

    def result(self) -> Result:
        """Return what the run leaves."""
        return Result.of(self.driver.state, self.encoding, self.driver, self.settings.ship, self.settings.balance)


@dataclass(frozen=True)
class Fitting:
    """A trainer, its data, and what was asked for of it."""

    trainer: "Trainer"
    data: Source
    validation: Source | Fold | None
    settings: Settings

    @property
    def fold(self) -> Fold | None:
        """Which part of the data is set apart to validate on."""
        return self.validation if isinstance(self.validation, Fold) else None

    @property
    def inner(self) -> Inner | None:
        """How shards step by themselves."""
        trainer = self.trainer
        stepping = Stepping(trainer.optimizer, trainer.scheduler, trainer.schedule_every, trainer.groups)
        return trainer.strategy.inner(stepping)

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
        prepared.make_plans(settings, shards, self.fold)
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
        prepared.make_plans(self.settings, self.settings.shards or default_shards(len(wire.workers)), self.fold)
        state = self.state(prepared, plain_memory)
        parameters = state.parameters.vector
        rows = min(CANARY_ROWS, prepared.plan.num_rows)
        return Needs(
            prepared.plan.shards,
            parameters.nbytes,
            state.buffers.vector.nbytes,
            state.optimizer_bytes(),
            int(prepared.plan.strata.sum()) * next(prepared.samples(rows)).nbytes // rows,
            optimizer_bytes(state.module, self.inner.made(state.module)) if self.inner else None,
            self.trainer.compression,
        )

    def _stage(self, text: str) -> None:
        for observer in self.trainer.observers:
            observer.stage(text)

    def state(self, prepared: Prepared, memory: Memory) -> TrainState:
        """Make the module and its optimizer, once it is known to fit the data."""
        trainer = self.trainer
        module = self._module(prepared.encoding.schema)
        metrics = metrics_of(trainer.metrics, prepared.encoding)
        for batch in prepared.samples(prepared.plan.fewest_rows):
            preflight.check(module, trainer.players, metrics, trainer.strategy, prepared.plan, batch)
        groups = trainer.groups or (trainer.players.groups if trainer.players.several else None)
        if self.inner is None:
            state = TrainState(module, trainer.optimizer, trainer.scheduler, groups, memory)
        else:
            state = TrainState(module, self.inner.outer, memory=memory)
            self.inner.check(module, state.parameters.tables, trainer.players)
        if trainer.compression is not None:
            check_compression(state, trainer.players, self.settings.reduction)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
        if trainer.schedule_every == "round" and isinstance(state.scheduler, plateau):
            raise BadInput('ReduceLROnPlateau must step every epoch, however schedule_every is "round"')
        return state

    def _module(self, schema: Schema) -> nn.Module:
        trainer = self.trainer
        module: Any = adapted(trainer.model)
        if not isinstance(module, nn.Module):
            with pinned(torch.get_num_threads()):
                torch.manual_seed(self.settings.seed)
                module = adapted(trainer.model(schema))
        if not isinstance(module, nn.Module):
            raise ModelError(f"model(schema) must return a module, however it returned {type(module)}")
        named = {f"metric {name!r}": metric for name, metric in trainer.metrics.items()}
        losses = {f"the loss {name}".strip(): loss for name, loss in trainer.players.losses.items()}
        check_ships(module, **losses, **named)  # before copying, which fails without naming a part
        return copy.deepcopy(module) if isinstance(trainer.model, nn.Module) else module

    def training(
        self,
        prepared: Prepared,
        state: TrainState,
        saved: Saved | None,
        fleet: Fleet,
        coordinator: Coordinator,
        stop: Event,
    ) -> Training:
        """Put together what trains, once the data are in place."""
        trainer, wire = self.trainer, prepared.wire
        metrics = metrics_of(trainer.metrics, prepared.encoding)
        threads = saved.threads if saved else wire.threads
        observers = sorted(trainer.observers, key=lambda observer: observer.order)
        facts = self._facts(prepared, state, threads)
        same = facts["identity"]
        job = self._job(prepared, state, metrics, threads)
        stretches = job.stretches(state.parameters.gradient)
        following = None if stretches is None else Following(stretches, state, wire.memory)
        run = Run(
            id=wire.run,
            resumed=self.settings.resume,
            client=getattr(wire, "client", None),
            workers=wire.workers,
            shards=prepared.plan.shards,
            threads=threads,
            rows=prepared.plan.num_rows,
            parameters=state.parameters.layout.size,
            rounds_per_epoch=prepared.plan.rounds,
            epochs=self.settings.epochs,
            max_rounds=self.settings.max_rounds,
            settings={name: value for name, value in same.items() if isinstance(value, str | float | int)},
            state=state,
            cursor=Cursor(),
            history=History(),
            timings=coordinator.timings,
            members=lambda: fleet.members,
            capture=lambda: (
                facts | {"domain": fleet.domain},
                capture(run, state, trainer.strategy, following, observers),
            ),
        )
        driver = Driver(
            run,
            coordinator,
            prepared.plan,
            prepared.plans.get("evaluate"),
            trainer.players,
            trainer.strategy,
            Sums(metrics, len(state.parameters.parameters), state.buffers.layout.size, trainer.players.figures),
            observers,
            trainer.schedule_every,
            self.inner,
            following,
            saved,
            stop,
        )
        return Training(wire, job, driver, prepared.encoding, self._stage, self.settings)

    def _facts(self, prepared: Prepared, state: TrainState, threads: int) -> dict[str, Any]:
        """Return what checkpoints hold besides what changes."""
        return {
            "run": prepared.wire.run,
            "identity": self._identity(prepared, state),
            "fingerprints": prepared.fingerprints,
            "encoding": prepared.encoding.to_json(),
            "threads": threads,
        }

    def _identity(self, prepared: Prepared, state: TrainState) -> dict[str, Any]:
        trainer, balance, turns = self.trainer, self.settings.balance, self.trainer.players.turns
        every, compute = trainer.schedule_every, trainer.compute
        kind = type(trainer.strategy).__name__
        inner = "" if self.inner is None else f"{kind} of {self.inner.described(state.module)}"
        compression = "" if trainer.compression is None else str(trainer.compression)
        return identity(prepared.plan, state, every, compute, balance, turns, inner, compression)

    def _job(self, prepared: Prepared, state: TrainState, metrics: Mapping[str, Metric], threads: int) -> Job:
        trainer = self.trainer
        return Job(
            state.module,
            trainer.players,
            metrics,
            trainer.strategy,
            prepared.plans,
            prepared.plan.seed,
            threads,
            next(prepared.samples(CANARY_ROWS)),
            prepared.fingerprints,
            prepared.encoding.collate,
            trainer.compute,
            self.inner,
            prepared.balance.synthesis,
            trainer.compression,
        )
