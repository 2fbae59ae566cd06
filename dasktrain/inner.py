"""The optimizer steps that a shard takes by itself between two sums."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dasktrain.accumulate import Accumulator, Gradients, Sum, parts
from dasktrain.errors import BadInput, ModelError
from dasktrain.messages import Task
from dasktrain.norms import clip
from dasktrain.optimizers import MakeOptimizer, MakeScheduler, check_optimizer, settle, take_step
from dasktrain.players import Players
from dasktrain.state import optimizer_bytes
from dasktrain.vector import FlatParameters, Layout, trainable

#: what each parameter group steps with, but for its parameters
Rates = list[dict[str, Any]]


@dataclass(frozen=True)
class Stepping:
    """How parameters are stepped, as a Trainer was told."""

    optimizer: MakeOptimizer
    scheduler: MakeScheduler | None = None
    schedule_every: Literal["round", "epoch"] = "epoch"
    groups: Callable[[nn.Module], Iterable[Any]] | None = None


@dataclass(frozen=True)
class Inner:
    """How a shard steps by itself, and how the driver steps with what has come of it.

    Attributes
    ----------
    stepping : Stepping
        Of a shard's own parameters.
    steps : int
        How many rounds a shard does before it is heard of; fewer at the end of an epoch.
    outer
        Makes the optimizer of the driver, whose gradient is how far shards have come, the other way round.
    clip_norm : float or None
        Largest norm of a shard's own gradient.
    warmup : float
        Rounds, at the beginning of each stretch, over which a shard's learning rates rise to those of the schedule.
    """

    stepping: Stepping
    steps: int
    outer: MakeOptimizer
    clip_norm: float | None = None
    warmup: float = 0.0

    def warmed(self, rates: Rates, taken: int) -> Rates:
        """Return what a round steps with, so many of its stretch being over."""
        if taken + 1 >= self.warmup:
            return rates
        share = (taken + 1) / self.warmup
        return [group | {"lr": group["lr"] * share} for group in rates]

    def made(self, module: nn.Module) -> Optimizer:
        """Return an optimizer that knows nothing yet.

        Raises
        ------
        ModelError
            It is none that can step a shard.
        """
        parameters, groups = trainable(module), self.stepping.groups
        optimizer = self.stepping.optimizer(list(groups(module)) if groups else list(parameters.values()))
        check_optimizer(optimizer, parameters.values())
        settle(optimizer)
        return optimizer

    def check(self, module: nn.Module, tables: Iterable[str], players: Players) -> None:
        """Raise an error if shards cannot step this module so."""
        if players.several:
            raise BadInput(
                f"One player must step the whole model where shards step by themselves, however there are "
                f"{list(players.losses)}; use strategy=dt.GradientAveraging()"
            )
        if named := ", ".join(tables):
            raise ModelError(
                f"Parameters must be dense where shards step by themselves, however {named} is sparse; "
                "use sparse=False, or strategy=dt.GradientAveraging()"
            )
        make, optimizer = self.stepping.scheduler, self.made(module)
        try:
            optimizer_bytes(module, optimizer)
        except Exception as error:
            raise ModelError(
                f"An optimizer must be able to step a shard, however {type(error).__name__}: {error}; have it made "
                "anew, since what continued() returns is for a strategy's outer optimizer"
            ) from error
        if make and isinstance(make(optimizer), torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise BadInput(
                "A schedule must follow from the round alone where shards step by themselves, however it is "
                "ReduceLROnPlateau; use another"
            )

    def described(self, module: nn.Module) -> str:
        """Return what of it changes bits, as far as it can be told: what a resumed run must have as well."""
        make, optimizer = self.stepping.scheduler, self.made(module)
        groups = [
            {name: float(value) for name, value in group.items() if isinstance(value, float | int | Tensor)}
            for group in optimizer.param_groups
        ]
        schedule = f", {type(make(optimizer)).__name__}" if make else ""
        clipped = "" if self.clip_norm is None else f", clipped to {self.clip_norm}"
        warmed = f", warmed up over {self.warmup:g}" if self.warmup > 1 else ""
        return f"{self.steps} steps of {type(optimizer).__name__}{schedule}{clipped}{warmed}, {groups}"


class Schedule:
    """What an inner optimizer steps with in each round, whoever asks and in whatever order.

    Parameters
    ----------
    inner
        What makes optimizer and scheduler.
    module
        Without gradients. It is not stepped.
    rounds
        Of an epoch.
    """

    def __init__(self, inner: Inner, module: nn.Module, rounds: int) -> None:
        self._inner, self._module, self._rounds = inner, module, rounds
        self._begin()

    def _begin(self) -> None:
        self._optimizer, self._taken = self._inner.made(self._module), 0
        make = self._inner.stepping.scheduler
        self._scheduler = make(self._optimizer) if make else None
        self._optimizer.step()  # without gradients, which does nothing: schedulers warn if none has been taken

    def at(self, epoch: int, round: int) -> Rates:
        """Return what a round steps with."""
        if self._scheduler is not None:
            wanted = epoch if self._inner.stepping.schedule_every == "epoch" else epoch * self._rounds + round
            if wanted < self._taken:
                self._begin()
            for _ in range(self._taken, wanted):
                self._scheduler.step()
            self._taken = wanted
        groups = self._optimizer.param_groups
        # Copies: schedulers write to a learning rate that is a tensor.
        return [{name: copy.deepcopy(value) for name, value in group.items() if name != "params"} for group in groups]


class Walk:
    """A shard's own way, from the parameters that all have in common.

    Its optimizer starts anew each time: what a shard contributes is then a function of those parameters and of its
    rows, wherever it is computed, and nothing is lost with a worker.

    Parameters
    ----------
    inner
        How it steps.
    module
        Whose parameters are `parameters`.
    rounds
        Of an epoch.
    sums
        Of a shard's scalars.
    accumulator
        Whose memory gradients may lie in.
    """

    def __init__(
        self,
        inner: Inner,
        module: nn.Module,
        parameters: FlatParameters,
        rounds: int,
        sums: Layout,
        accumulator: Accumulator,
    ) -> None:
        self._inner, self._module, self._parameters = inner, module, parameters
        self._sums, self._accumulator = sums, accumulator
        self._schedule, self._stretch = Schedule(inner, module, rounds), (-1, -1, 0)
        self._rates: list[Rates] = []
        self._own = torch.empty_like(parameters.vector)  # where it goes; what all have may be memory that is read only

    def over(self, task: Task, gradient: Callable[[Task], Sum | None]) -> Sum | None:
        """Return how far a shard comes in some rounds, each of which has a gradient if the shard has rows in it.

        That is a vector from where it comes to where all are, times the weight of its rows.
        """
        scalars: np.ndarray | None = None
        self._begin()
        try:
            for round, rates in enumerate(self._rates_of(task), start=task.round):
                found = gradient(replace(task, round=round, rounds=1))
                if found is not None:
                    self._step(found, self._sums.views(found.scalars), rates)
                    self._accumulator.free(found)
                    scalars = found.scalars if scalars is None else scalars + found.scalars
        finally:
            come = self._end()
        return None if scalars is None else Sum(come, scalars)

    def _rates_of(self, task: Task) -> list[Rates]:
        """Return what each round steps with; shards ask for the same ones, one after another."""
        if self._stretch != (stretch := (task.epoch, task.round, task.rounds)):
            self._stretch = stretch
            found = [self._schedule.at(task.epoch, task.round + taken) for taken in range(task.rounds)]
            self._rates = [self._inner.warmed(rates, taken) for taken, rates in enumerate(found)]
        return self._rates

    def _begin(self) -> None:
        """Start where all are."""
        self._start = self._parameters.vector
        self._own.copy_(self._start)
        self._parameters.adopt(self._own)
        self._optimizer, self._weight = self._inner.made(self._module), 0.0

    def _step(self, found: Sum, sums: Mapping[str, np.ndarray], rates: Rates) -> None:
        """Step by the gradient of a sum of losses over rows, whose sums are in `found` and by name."""
        assert found.gradients is not None
        weight = float(sums["weight"].sum())
        if not weight:
            return
        self._weight += weight
        for group, now in zip(self._optimizer.param_groups, rates, strict=True):
            group.update(now)
        used = sums["used"].tolist()
        named = zip(self._parameters.parameters.values(), parts(found.gradients), used, strict=True)
        for parameter, gradient, takes_part in named:
            whole = gradient is not None and takes_part
            parameter.grad = (gradient / weight).to(parameter.dtype) if whole and gradient is not None else None
        if self._inner.clip_norm is not None:
            own = [each.grad for each in self._parameters.parameters.values() if each.grad is not None]
            clip(self._inner.clip_norm, *own)
        take_step(self._optimizer)
        self._parameters.store()

    def _end(self) -> Gradients:
        """Go back to where all are; return how far each parameter came, as `over` does."""
        come = (self._start - self._own).mul_(self._weight)
        for parameter in self._parameters.parameters.values():
            parameter.grad = None
        self._parameters.adopt(self._start)
        return list(self._parameters.layout.views(come).values())
