"""Many candidates trained in one pass over the data: hyper-parameters, models and seeds side by side."""

import copy
import itertools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from dasktrain.candidates import Candidates
from dasktrain.checkpointer import Checkpoint
from dasktrain.coordinator import Coordinator
from dasktrain.data.block import Batch, call
from dasktrain.data.source import Source
from dasktrain.ensemble import Ensemble
from dasktrain.errors import BadInput, ModelError, known_keywords, nearest
from dasktrain.fitting import Fitting, Settings, Training
from dasktrain.fleet import Fleet, default_shards
from dasktrain.folds import Fold
from dasktrain.instep import InStep
from dasktrain.messages import Kind
from dasktrain.observe import Record, sign_of
from dasktrain.observers.progress import Progress
from dasktrain.plan import Plan
from dasktrain.prepared import Prepared, told_plainly
from dasktrain.result import Result
from dasktrain.shipping import pack, shipped
from dasktrain.topology import AMONG
from dasktrain.trainer import Trainer, Where, check_sources, driven, settings_of, wire_of
from dasktrain.vector import plain_memory
from dasktrain.wire import Wire

Candidate = dict[str, Any]


@dataclass(frozen=True)
class Halving:
    """Successive halving: the worse candidates leave early (Jamieson and Talwalkar, 2016, arXiv 1502.07943).

    Parameters
    ----------
    factor
        After epoch `first`, ``first * factor``, ``first * factor ** 2`` and so on, one in `factor` candidates stays.
    first
        Epochs that all of them run.
    """

    factor: int = 2
    first: int = 1

    def __post_init__(self) -> None:
        if self.factor < 2 or self.first < 1:
            raise BadInput(
                f"factor must be at least 2 and first at least 1, however they are {self.factor} and {self.first}"
            )

    def is_rung(self, epoch: int) -> bool:
        """Return whether candidates leave after so many epochs."""
        while epoch > self.first and epoch % self.factor == 0:
            epoch //= self.factor
        return epoch == self.first


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes
    ----------
    candidates : list of dict
        As they were given.
    results : list of Result or None
        Of each; None if its numbers were not finite any more.
    frame : pandas.DataFrame
        One row a candidate, the best first: what it was given, the figures of its last epoch, ``epochs`` and ``rounds``
        done, ``digest``, ``ended`` ("halving" if it left early, "diverged" if it failed) and ``candidate``, its place
        in the other lists.
    monitor : str
        The figure by which they were compared.
    """

    candidates: list[Candidate]
    results: list[Result | None]
    frame: pd.DataFrame = field(repr=False)
    monitor: str

    @property
    def best(self) -> Result:
        """The best candidate's result."""
        (result,) = self._best(1)
        return result

    def ensemble(self, count: int) -> Ensemble:
        """Return the best so many, to predict together."""
        return Ensemble(self._best(count))

    def _best(self, count: int) -> list[Result]:
        found = [self.results[number] for number in self.frame["candidate"]]
        best = [result for result in found if result is not None][:count]
        if len(best) < count or count < 1:
            raise BadInput(f"There must be {count} candidates that ended well, however {len(best)} did")
        return best


def search(
    make: Callable[..., Trainer],
    candidates: Sequence[Candidate] | Mapping[str, Sequence[Any]],
    data: Source,
    validation: Source | Fold | None = None,
    monitor: str | None = None,
    halving: Halving | None = None,
    client: Where = None,
    **settings: Any,
) -> SearchResult:
    """Train many candidates in one pass over the data, each to the very bits it would have if it were trained alone.

    Data are read, converted and gathered once, and a round is one message for all.

    Parameters
    ----------
    make
        Called with each candidate's entries, returns its :class:`dasktrain.Trainer`. Progress is shown for all of them
        together; other observers see their own candidate's run.
    candidates
        A list of dicts, or a dict of lists, of which all combinations are tried. Two names are not for `make` but for
        the run: ``seed``, and ``fold``, a :class:`dasktrain.Fold` in place of `validation`.
    data, validation
        As ``fit`` takes them.
    monitor
        A figure of the history's epochs by which candidates are compared: less is better if its name ends in "loss".
        None: ``"valid_loss"``, or ``"loss"`` without validation data.
    halving
        When the worse candidates leave; None: all run to their end.
    client
        As ``fit`` takes it.
    settings
        Others of ``fit``: ``epochs``, ``batch_size``, ``shards``, ``seed``, ``max_rounds``, ``partition``, ``shuffle``,
        ``window``, ``determinism``, ``ship``, ``balance``.

    Raises
    ------
    BadInput
        Before the first round.
    RunError
        As ``fit`` raises it, but for numbers that are not finite: these end their candidate alone.

    Examples
    --------
    ``dt.search(make, {"lr": [1e-3, 1e-2], "width": [64, 256]}, data, validation, epochs=10).frame``
    """
    given = _listed(candidates)
    plain = known_keywords(settings_of)(**settings)
    if plain.resume is not None:
        raise BadInput("A search must start anew, however resume is given; resume a fit of the best candidate instead")
    if plain.reduction in AMONG:
        raise BadInput(
            f'Candidates must be reduced by the driver, however reduction is "{plain.reduction}"; leave it out'
        )
    fittings = [_fitting(make, candidate, data, validation, plain) for candidate in given]
    if len({fitting.fold is None for fitting in fittings}) > 1:
        raise BadInput("Every candidate must have a fold or none, however only some have; give the others one")
    figure = monitor or ("loss" if fittings[0].validation is None else "valid_loss")
    _check_monitor(figure, fittings)
    with shipped(plain.ship), wire_of(client) as wire:
        return driven(wire, lambda stop: _Search(given, fittings, figure, halving, wire, stop).run)


def _listed(candidates: Sequence[Candidate] | Mapping[str, Sequence[Any]]) -> list[Candidate]:
    """Return every candidate: of a dict of lists all combinations, the last name's values side by side."""
    if isinstance(candidates, Mapping):
        candidates = [dict(zip(candidates, each, strict=True)) for each in itertools.product(*candidates.values())]
    if not candidates:
        raise BadInput("There must be candidates to search, however there is none")
    return [dict(candidate) for candidate in candidates]


def _fitting(
    make: Callable[..., Trainer],
    candidate: Candidate,
    data: Source,
    validation: Source | Fold | None,
    settings: Settings,
) -> Fitting:
    """Return what trains a candidate alone."""
    rest = {name: value for name, value in candidate.items() if name not in ("seed", "fold")}
    trainer = make(**rest)
    if not isinstance(trainer, Trainer):
        raise BadInput(f"make must return a dt.Trainer, however for {rest} it returned {type(trainer)}")
    trainer = copy.copy(trainer)
    trainer.observers = [each for each in trainer.observers if not isinstance(each, Progress)]
    if any(isinstance(each, Checkpoint) for each in trainer.observers):
        raise BadInput("Candidates must not write checkpoints, however one has a dt.Checkpoint; leave it out")
    if trainer.compression is not None:
        raise BadInput(f"Candidates must send what they have, however one has compression={trainer.compression}")
    validation = candidate.get("fold", validation)
    check_sources(data, validation)
    return Fitting(trainer, data, validation, replace(settings, seed=candidate.get("seed", settings.seed)))


def _check_monitor(monitor: str, fittings: Sequence[Fitting]) -> None:
    """Raise BadInput if a candidate's history will not have a figure."""
    for fitting in fittings:
        names = list(dict.fromkeys(["loss", *fitting.trainer.players.figures, *fitting.trainer.metrics]))
        names += [f"valid_{name}" for name in names if fitting.validation is not None]
        several = tuple(f"{kind}{name}_" for name in fitting.trainer.metrics for kind in ("", "valid_"))
        if monitor not in names and not monitor.startswith(several):
            raise _no_figure(monitor, names)


def _no_figure(monitor: str, names: Sequence[str]) -> BadInput:
    advice = nearest(monitor, list(names))
    return BadInput(f"monitor must be a figure of every candidate's epochs, however {monitor!r} is none; {advice}")


class _Search:
    """One search on a wire, whose data are in place once it is made."""

    def __init__(
        self,
        given: list[Candidate],
        fittings: list[Fitting],
        monitor: str,
        halving: Halving | None,
        wire: Wire,
        stop: threading.Event,
    ) -> None:
        self._given, self._monitor, self._halving, self._wire = given, monitor, halving, wire
        self._tell = Progress().stage
        self._tell(f"a search of {len(given)} candidates: looking for workers")
        wire.open()
        trainings = _trainings(fittings, wire, stop, self._tell)
        self._trainings = trainings
        self._drivers = [training.driver for training in trainings]
        self._told = 0  # epochs

    def run(self) -> SearchResult:
        """Train all."""
        coordinator = self._drivers[0].coordinator
        try:
            running = InStep(self._drivers, self._wire.memory, self._after)
            self._tell(f"building replicas on {len(self._wire.workers)} workers")
            coordinator.attach(pack(Candidates, [training.job for training in self._trainings]), 0, 0)
            running.drive()
            return self._found(running.failed)
        finally:
            self._wire.close()
            coordinator.close()

    def _after(self, going: list[int]) -> dict[int, str]:
        """Tell of an epoch that all who go on have ended; return who leaves."""
        epoch = min((self._drivers[number].run.cursor.epoch for number in going), default=0)
        if epoch <= self._told:
            return {}
        self._told = epoch
        ranked = sorted(going, key=self._value)
        record = self._drivers[ranked[0]].run.history[-1]
        if self._monitor not in record:
            raise _no_figure(self._monitor, list(record))
        figure = record[self._monitor]
        best = f"the best {self._monitor} is {figure:.4g}: {self._given[ranked[0]]}"
        self._tell(f"epoch {epoch - 1}: {len(going)} candidates, {best}")
        if self._halving is None or not self._halving.is_rung(epoch):
            return {}
        return dict.fromkeys(ranked[math.ceil(len(ranked) / self._halving.factor) :], "halving")

    def _value(self, number: int) -> float:
        """Return what is least for the best candidate."""
        history = self._drivers[number].run.history
        record = history[-1] if history else {}
        value = sign_of(self._monitor) * record.get(self._monitor, math.nan)
        return math.inf if math.isnan(value) else value

    def _found(self, failed: Mapping[int, Exception]) -> SearchResult:
        """Take over what was trained."""
        results: list[Result | None] = []
        rows: list[Record] = []
        for number, training in enumerate(self._trainings):
            driver, lost = training.driver, number in failed
            results.append(None if lost else training.result())
            result = results[-1]
            rows.append(
                self._given[number]
                | (driver.run.history[-1] if driver.run.history else {})
                | {"epochs": driver.run.cursor.epoch, "rounds": driver.run.cursor.done}
                | {"ended": "diverged" if result is None else result.ended}
                | {"digest": None if result is None else result.digest, "candidate": number}
            )
        # Those that had to leave are behind those that went on, whatever their figures.
        left = [row["rounds"] if row["ended"] == "halving" else math.inf for row in rows]
        order = sorted(range(len(rows)), key=lambda n: (n in failed, -left[n], self._value(n)))
        frame = pd.DataFrame([rows[number] for number in order]).drop(columns="epoch", errors="ignore")
        return SearchResult(self._given, results, frame, self._monitor)


def _trainings(
    fittings: Sequence[Fitting], wire: Wire, stop: threading.Event, tell: Callable[[str], None]
) -> list[Training]:
    """Bring the data of fits that differ in trainer and seed alone into place, once; return what trains each."""
    settings = fittings[0].settings
    shards = settings.shards or default_shards(len(wire.workers))
    with told_plainly():
        prepared = Prepared(fittings[0], wire)
    fleet = Fleet(shards, None, settings.determinism == "strict")
    coordinator = Coordinator(wire, fleet, tell, stop)
    plans: dict[tuple[int, Fold | None], dict[Kind, Plan]] = {}
    trainings: list[Training] = []
    for fitting in fittings:
        which = fitting.settings.seed, fitting.fold
        if which not in plans:
            prepared.make_plans(fitting.settings, shards, fitting.fold)
            plans[which] = prepared.plans
        prepared.plans, prepared.plan = plans[which], plans[which]["train"]
        if not trainings:
            with told_plainly():
                prepared.place()
        state = fitting.state(prepared, plain_memory)
        trainings.append(fitting.training(prepared, state, None, fleet, coordinator, stop))
        _check_side_by_side(trainings, prepared)
    return trainings


def _check_side_by_side(trainings: Sequence[Training], prepared: "Prepared") -> None:
    first, state = trainings[0].driver.state, trainings[-1].driver.state
    if state.parameters.tables:
        raise ModelError(
            f"Candidates must have dense gradients, however {', '.join(state.parameters.tables)} is sparse"
        )
    dtypes = first.parameters.vector.dtype, state.parameters.vector.dtype
    if dtypes[0] != dtypes[1]:
        raise ModelError(f"Candidates must have parameters of one dtype, however they have {dtypes}; search twice")
    batch = next(prepared.samples(2))
    before = _versions(batch)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        call(copy.deepcopy(state.module), batch.inputs)
    if _versions(batch) != before:
        raise ModelError("Candidates must not write to their inputs, which they share, however one does; copy them")


def _versions(batch: Batch) -> list[int]:
    """Return how often each of a batch's inputs was written to."""
    inputs = batch.inputs.values() if isinstance(batch.inputs, dict) else batch.inputs
    return [part._version for part in inputs if isinstance(part, Tensor)]
