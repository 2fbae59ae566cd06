"""Data for a fit: surveyed, encoded, dealt to shards, and brought into place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from dask.delayed import Delayed

from dasktrain.balancing import Balance
from dasktrain.data.block import Batch
from dasktrain.data.groups import Dealt, Groupable, check_apart
from dasktrain.data.source import Encoding, Source, Survey, check_surveys, groups_of, strata
from dasktrain.data.target import Labels
from dasktrain.errors import DataError, ModelError, PlanError
from dasktrain.fleet import shares
from dasktrain.folds import Fold, Side
from dasktrain.messages import Kind
from dasktrain.plan import Partitioning, Plan
from dasktrain.shipping import explained
from dasktrain.wire import Wire

if TYPE_CHECKING:
    from dasktrain.fitting import Fitting, Settings


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

    def __init__(self, fitting: "Fitting", wire: Wire) -> None:
        self.wire, self.data = wire, fitting.data
        self.validation = None if isinstance(fitting.validation, Fold) else fitting.validation
        self.balance = fitting.settings.balance or Balance()
        self._stage: Callable[[str], None] = fitting._stage
        self._stage("reading the data once for statistics")
        self.data = self.data.staged(wire.persist)
        self._surveys = self._surveyed(self.data, "training")
        check_surveys(self._surveys, "training")
        self.encoding: Encoding = self.data.fit(self._surveys)
        self.balance.check(self.encoding)
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

    def make_plans(self, settings: "Settings", shards: int, fold: Fold | None) -> None:
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
        partition: Partitioning = "stratified" if self._by_class else settings.partition
        if fold is not None and grouped is not None:
            raise PlanError(f"{fold} must have rows that can be dealt one by one, however group= keeps them together")
        side = None if fold is None else Side(rows, fold, held=False)
        rows = rows if side is None else side.strata
        self.plan = Plan(
            rows if grouped is None else grouped.strata,
            shards,
            settings.batch_size,
            settings.seed,
            partition,
            settings.shuffle,
            settings.window,
            by_length,
            self.balance.drawn(rows.sum(axis=0)),
            grouped is not None,
            side,
        )
        self.plans: dict[Kind, Plan] = {"train": self.plan}
        if self.validation is not None:
            rows = strata(self._valid_surveys, None)
            self.plans["evaluate"] = Plan(rows, shards, settings.batch_size, shuffle=False, by_length=by_length)
        elif side is not None:
            held = replace(side, held=True)
            self.plans["evaluate"] = Plan(
                held.strata,
                shards,
                settings.batch_size,
                partition=partition,
                shuffle=False,
                by_length=by_length,
                side=held,
            )

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
        else:
            tasks["evaluate"] = blocks  # of which a fold is set apart
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
