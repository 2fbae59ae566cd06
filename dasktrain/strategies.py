"""What a shard contributes to a round, and what the driver makes of the sum."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dasktrain.errors import BadInput, NonFinite
from dasktrain.messages import Partial
from dasktrain.metrics import Metric, figures_of
from dasktrain.sparse import as_gradient
from dasktrain.state import TrainState
from dasktrain.vector import Layout, as_tensor

#: elements summed at a time in a norm; fixed, since another cut would round differently
NORM_BLOCK = 4096


class Strategy(Protocol):
    """Turn the loss of a shard into gradients (on a replica) and the sum of them into a step (on the driver)."""

    @property
    def is_gradient(self) -> bool:
        """Whether what is contributed is the gradient as backward computes it, so that sending it may begin then."""

    def contribute(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        """Return one tensor a parameter, sparse ones for tables, or None where it took no part."""

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
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise BadInput(f"clip_norm must be positive, however it is {self.clip_norm}; use None not to clip")

    @property
    def is_gradient(self) -> bool:
        """It is."""
        return True

    def contribute(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        """Return the gradient of the sum of losses for each parameter."""
        return list(torch.autograd.grad(loss, parameters, allow_unused=True))

    def apply(self, state: TrainState, total: Partial, sums: Sums) -> dict[str, float]:
        """Divide once by the exact sum of weights, clip, step, and add the buffers' mean change over rows."""
        assert total.vector is not None
        assert total.sums is not None
        view = sums.layout.views(total.sums)
        gradient = torch.from_numpy(total.vector if total.vector.flags.writeable else total.vector.copy())
        values = [torch.tensor(each.values) for each in total.touched]
        for part in (gradient, *values):
            part.div_(float(view["weight"].sum()))
        figures: dict[str, float] = {}
        if self.clip_norm is not None:
            norm = canonical_norm(gradient, *values)
            figures["gradient_norm"] = norm
            if norm > self.clip_norm:
                for part in (gradient, *values):
                    part.mul_(self.clip_norm / norm)
        parameters = state.parameters
        rows = zip(total.touched, values, parameters.tables.values(), strict=True)
        sparse = [as_gradient(each.rows, part, table.shape) for each, part, table in rows]
        gradients = [*parameters.views_of(gradient), *sparse]
        for parameter, part, used in zip(parameters.parameters.values(), gradients, view["used"].tolist(), strict=True):
            parameter.grad = part.to(parameter.dtype) if used else None
        state.step(total.touched)
        if state.buffers.layout.size:
            state.buffers.add(as_tensor(view["buffers"]) / float(view["rows"]))
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a round does not depend on those before it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember nothing."""


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


def canonical_norm(*parts: Tensor) -> float:
    """Return the Euclidean norm of all numbers of some tensors, the same bits for any number of threads.

    Squares are summed in float64 over fixed blocks, and the blocks' sums are added exactly (math.fsum).
    """
    blocks = (block for part in parts for block in torch.split(part.flatten(), NORM_BLOCK))
    squares = [float(block.double().square().sum()) for block in blocks]
    return math.sqrt(math.fsum(squares))


def _ratio(value: float, weight: float) -> float:
    return value / weight if weight else math.nan
