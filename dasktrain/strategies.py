"""What a shard contributes to a round, and what the driver makes of the sum."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dasktrain.errors import BadInput, NonFinite
from dasktrain.inner import Inner, Stepping
from dasktrain.messages import Partial
from dasktrain.metrics import Metric, figures_of
from dasktrain.norms import clip
from dasktrain.optimizers import MakeOptimizer
from dasktrain.sparse import as_gradient
from dasktrain.state import TrainState
from dasktrain.steps import Mean
from dasktrain.vector import Layout, as_tensor


class Strategy(Protocol):
    """Turn the loss of a shard into gradients (on a replica) and the sum of them into a step (on the driver)."""

    @property
    def is_gradient(self) -> bool:
        """Whether what is contributed is the gradient as backward computes it, so that sending it may begin then."""

    def contribute(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        """Return one tensor a parameter, sparse ones for tables, or None where it took no part."""

    def inner(self, stepping: Stepping) -> Inner | None:
        """Return the steps that a shard takes by itself; None if what it contributes is summed as it is."""

    def apply(self, state: TrainState, total: Partial, sums: "Sums") -> dict[str, float]:
        """Step the state of record; return figures for the history."""

    def state_dict(self) -> dict[str, Any]:
        """Return what it remembers between rounds: numbers, text, tensors and containers of them."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what an earlier run did."""


class Sums:
    """Names for the float64 vector of scalars that travels with a partial.

    ``loss`` and ``weight`` of each of `losses`, ``rows``, for each metric its sums, for each trainable parameter the
    shards it took part in, for each buffer its change times the shard's rows.
    """

    def __init__(
        self, metrics: Mapping[str, Metric], parameters: int, buffers: int, losses: Sequence[str] = ("loss",)
    ) -> None:
        self.metrics, self.losses = dict(metrics), list(losses)
        self.layout = Layout(
            {
                "loss": (len(self.losses),),
                "weight": (len(self.losses),),
                "rows": (),
                "metrics": (sum(metric.size for metric in self.metrics.values()),),
                "used": (parameters,),
                "buffers": (buffers,),
            }
        )

    def figures(self, sums: np.ndarray, every_round: bool = False) -> dict[str, float]:
        """Return mean losses and the metrics of (scalars,) sums, of a round or of more; NaN of nothing.

        ``"loss"`` is the sum of the losses, if there are several.
        """
        view = self.layout.views(sums)
        pairs = zip(self.losses, view["loss"].tolist(), view["weight"].tolist(), strict=True)
        losses = {name: _ratio(loss, weight) for name, loss, weight in pairs}
        return {"loss": sum(losses.values())} | losses | figures_of(self.metrics, view["metrics"], every_round)

    def named(self, sums: np.ndarray) -> Iterator[tuple[str, float]]:
        """Yield what each sum of (scalars,) is called in a sentence, and what it is."""
        view = self.layout.views(sums)
        for name, value in zip(self.losses, view["loss"].tolist(), strict=True):
            yield "The loss" if name == "loss" else f"The loss {name!r}", value
        values = iter(view["metrics"].tolist())
        for name, metric in self.metrics.items():
            yield from ((f"Metric {name!r}", next(values)) for _ in range(metric.size))


@dataclass(frozen=True)
class GradientAveraging:
    """Step once a round with the gradient of the global batch's weighted mean loss.

    Parameters
    ----------
    clip_norm
        Largest Euclidean norm of the whole gradient; a longer one is scaled down to it. None: as it is.
    """

    clip_norm: float | None = None

    def __post_init__(self) -> None:
        _check_clip_norm(self.clip_norm)

    @property
    def is_gradient(self) -> bool:
        """It is."""
        return True

    def contribute(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        """Return the gradient of the sum of losses for each parameter."""
        return gradient_of(loss, parameters)

    def inner(self, stepping: Stepping) -> None:
        """Return nothing: the driver alone steps."""

    def apply(self, state: TrainState, total: Partial, sums: Sums) -> dict[str, float]:
        """Divide once by the exact sum of weights, clip, step, and add the buffers' mean change over rows."""
        return step_by_mean(state, total, sums, self.clip_norm)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a round does not depend on those before it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember nothing."""


@dataclass(frozen=True)
class LocalSGD:
    """Have each shard step by itself for some rounds, and then average parameters by weights of rows.

    A sum crosses the network once in `steps` rounds. The Trainer's optimizer, scheduler and groups are those of a
    shard: it begins every stretch of `steps` rounds (a shorter one ends an epoch) from the parameters that all have in
    common, with an optimizer that knows nothing yet, and steps by the mean gradient of its own rows of each round. What
    a worker holds is so never needed by another, and the bits are the same for any number of workers. One record of
    the history is of one stretch; a run that `max_rounds` ends, ends with the stretch that round is in.

    With one step and plain SGD this is :class:`GradientAveraging`, but for rounding. (Stich, 2019, "Local SGD Converges
    Fast and Communicates Little", arXiv 1805.09767; McMahan et al., 2017, arXiv 1602.05629.)

    Parameters
    ----------
    steps
        Rounds that a shard does by itself.
    clip_norm
        Largest Euclidean norm of a shard's own gradient; None: as it is.
    warmup
        Share of a stretch in which a shard's learning rates rise, round by round, to those of the schedule. An Adam
        that knows nothing yet moves every number by the whole learning rate, whichever way a few rows point; plain SGD
        needs none.
    """

    steps: int
    clip_norm: float | None = None
    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check_clip_norm(self.clip_norm)
        if not isinstance(self.steps, int) or self.steps < 1:
            raise BadInput(f"steps must be a whole number and at least 1, however it is {self.steps}")
        if not 0 <= self.warmup <= 1:
            raise BadInput(f"warmup must be a share of a stretch, from 0 to 1, however it is {self.warmup}")

    @property
    def is_gradient(self) -> bool:
        """It is not: it is how far a shard has come."""
        return False

    def contribute(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        """Return the gradient of the sum of losses for each parameter, which a shard steps by itself."""
        return gradient_of(loss, parameters)

    def inner(self, stepping: Stepping) -> Inner:
        """Return how a shard steps; to the driver's one step of size 1, from where all were, averages."""
        return self._inner(stepping, partial(torch.optim.SGD, lr=1.0))

    def _inner(self, stepping: Stepping, outer: MakeOptimizer) -> Inner:
        return Inner(stepping, self.steps, outer, self.clip_norm, self.warmup * self.steps)

    def apply(self, state: TrainState, total: Partial, sums: Sums) -> dict[str, float]:
        """Divide how far shards have come by the exact sum of weights, and step."""
        return step_by_mean(state, total, sums)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the driver's optimizer is in the state of record, those of shards start anew."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember nothing."""


@dataclass(frozen=True)
class DiLoCo(LocalSGD):
    """Have each shard step by itself for some rounds, and then step by the mean of how far they have come.

    As :class:`LocalSGD`, with an outer optimizer that is given the mean as a gradient. What a shard does is best left
    to AdamW. (Douillard et al., 2023, "DiLoCo: Distributed Low-Communication Training of Language Models", arXiv
    2311.08105. There a worker's AdamW keeps its moments; here they start anew in every stretch, so that neither a
    worker's death nor another number of them changes a bit, and no more than the parameters crosses the network. A
    warm-up makes up for it.)

    Parameters
    ----------
    warmup
        As of :class:`LocalSGD`; a tenth.
    outer
        Makes the driver's optimizer, which is part of digest and checkpoints. None: SGD with Nesterov momentum,
        ``partial(torch.optim.SGD, lr=1.0, momentum=0.5, nesterov=True)``, which suits runs of some dozens of stretches.
        The paper's, of hundreds, have ``lr=0.7, momentum=0.9``. Both go further than shards came (Khaled et al., 2025,
        "Understanding Outer Optimizers in Local SGD", arXiv 2509.10439): the mean is less noisy than a shard's own way.
    """

    warmup: float = 0.1
    outer: MakeOptimizer | None = None

    def inner(self, stepping: Stepping) -> Inner:
        """Return how a shard steps, and the driver."""
        return self._inner(stepping, self.outer or partial(torch.optim.SGD, lr=1.0, momentum=0.5, nesterov=True))


def gradient_of(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """Return the gradient for each parameter, None where it takes no part."""
    return list(torch.autograd.grad(loss, parameters, allow_unused=True))


def step_by_mean(state: TrainState, total: Partial, sums: Sums, clip_norm: float | None = None) -> dict[str, float]:
    """Divide once by the exact sum of weights, clip, step, and add the buffers' mean change over rows."""
    assert total.vector is not None
    assert total.sums is not None
    view = sums.layout.views(total.sums)
    gradient = torch.from_numpy(total.vector if total.vector.flags.writeable else total.vector.copy())
    values = [torch.tensor(each.values) for each in total.touched]
    divisor, factor = float(view["weight"].sum()), 1.0
    figures: dict[str, float] = {}
    for part in (gradient, *values):
        part.div_(divisor)
    if clip_norm is not None:
        figures["gradient_norm"], factor = clip(clip_norm, gradient, *values)
    parameters = state.parameters
    rows = zip(total.touched, values, parameters.tables.values(), strict=True)
    sparse = [as_gradient(each.rows, part, table.shape) for each, part, table in rows]
    gradients = [*parameters.views_of(gradient), *sparse]
    for parameter, part, used in zip(parameters.parameters.values(), gradients, view["used"].tolist(), strict=True):
        parameter.grad = part.to(parameter.dtype) if used else None
    state.step(total.touched, Mean(divisor, factor, tuple(np.flatnonzero(view["used"]).tolist())))
    if state.buffers.layout.size:
        state.buffers.add(as_tensor(view["buffers"]) / float(view["rows"]))
    return figures


def _check_clip_norm(clip_norm: float | None) -> None:
    if clip_norm is not None and not clip_norm > 0:
        raise BadInput(f"clip_norm must be positive, however it is {clip_norm}; use None not to clip")


def contributed(
    strategy: Strategy, loss: Tensor, parameters: Sequence[nn.Parameter], mine: Sequence[int]
) -> list[Tensor | None]:
    """Return what a loss contributes to each parameter; None to those that are not `mine`."""
    found: list[Tensor | None] = [None] * len(parameters)
    for at, part in zip(mine, strategy.contribute(loss, [parameters[at] for at in mine]), strict=True):
        found[at] = part
    return found


def check_weight(total: Partial, sums: Sums, where: str) -> None:
    """Raise NonFinite if there is nothing to divide by."""
    if total.sums is None or not float(sums.layout.views(total.sums)["weight"].sum()) > 0:
        raise NonFinite(f"Weights must add up to more than zero, however in {where} they do not; drop such rows")


def _ratio(value: float, weight: float) -> float:
    return value / weight if weight else math.nan
