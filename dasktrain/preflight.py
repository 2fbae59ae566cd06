"""What can be known to fail before the first round, tried on the driver with rows that are made up."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dasktrain.data.block import Batch, call
from dasktrain.errors import DasktrainError, ModelError, PlanError
from dasktrain.metrics import Counted, Metric
from dasktrain.objective import Objective, detached
from dasktrain.plan import Plan
from dasktrain.players import Players
from dasktrain.sparse import split, tables
from dasktrain.strategies import Strategy, contributed
from dasktrain.vector import FlatParameters, trainable


def check(
    module: nn.Module,
    players: Players,
    metrics: Mapping[str, Metric],
    strategy: Strategy,
    plan: Plan,
    batch: Batch,
) -> None:
    """Try one contribution of the plan's smallest size.

    Raises
    ------
    ModelError
        Module, loss or metric do not accept the data or each other, or the module writes to its parameters.
    PlanError
        A shard may have one row of a module that needs two.
    """
    with torch.random.fork_rng(devices=[]):
        module = copy.deepcopy(module).train()
        with _Writes(FlatParameters(module).parameters) as writes:  # refuses a module without anything to train
            _try(module, players, metrics, strategy, plan, batch)
        writes.check(trainable(module))


def _try(
    module: nn.Module,
    players: Players,
    metrics: Mapping[str, Metric],
    strategy: Strategy,
    plan: Plan,
    batch: Batch,
) -> None:
    named = batch.inputs.items() if isinstance(batch.inputs, dict) else [("", part) for part in batch.inputs]
    shapes = ", ".join(f"{name} {_shape(part)}".strip() for name, part in named)
    try:
        output = call(module, batch.inputs)
    except Exception as error:
        if _needs_two_rows(module) and batch.rows == 1:
            raise PlanError(_too_few_rows(plan)) from error
        raise ModelError(f"The model must accept inputs {shapes}, however {type(error).__name__}: {error}") from error
    found = f"output {_shape(output)} and target {_shape(batch.target)}"
    parameters = list(trainable(module).values())
    try:
        for loss, mine in zip(players.losses.values(), players.parameters(module), strict=True):
            total, _ = Objective(loss)(call(module, batch.inputs), batch)
            split(contributed(strategy, total, parameters, mine), tables(module), total.dtype)
    except DasktrainError:
        raise
    except Exception as error:
        raise ModelError(f"The loss must accept {found}, however {type(error).__name__}: {error}") from error
    for name, metric in metrics.items():
        try:
            metric.sums(detached(output), batch)
            if isinstance(metric, Counted):
                metric.figures(np.ones(metric.size))  # as if every label was predicted for every other
        except Exception as error:
            raise ModelError(f"Metric {name!r} must accept {found}, however {type(error).__name__}: {error}") from error


class _Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what is written to parameters, also under no_grad and by their `data`.

    Workers may have them in memory that can only be read, which they would die of.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places = {
            name: range(part.data_ptr(), part.data_ptr() + part.nbytes) for name, part in parameters.items()
        }
        self._written: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        declared, kwargs = func._schema.arguments, kwargs or {}
        given = dict(zip((argument.name for argument in declared), args, strict=False)) | kwargs
        for argument in declared:
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._note(given.get(argument.name))
        return func(*args, **kwargs)

    def _note(self, value: Any) -> None:
        for tensor in value if isinstance(value, list | tuple) else [value]:
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                address = tensor.data_ptr()
                self._written.update(name for name, place in self._places.items() if address in place)

    def check(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise ModelError if any parameter was written to, or is not where it was."""
        moved = {name for name, place in self._places.items() if parameters[name].data_ptr() != place.start}
        for name in sorted(self._written | moved):
            raise ModelError(
                f"A module must not write to its parameters in forward, however it wrote to {name!r}; compute "
                "with a changed copy, or keep what changes in a buffer"
            )


def _shape(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    reach = "" if value.is_floating_point() else f" from {int(value.min())} to {int(value.max())}"
    return f"{tuple(value.shape)} {value.dtype}{reach}"


def _needs_two_rows(module: nn.Module) -> bool:
    return any(isinstance(part, nn.modules.batchnorm._NormBase) for part in module.modules())


def _too_few_rows(plan: Plan) -> str:
    most = plan.num_rows // plan.rounds // 2
    remedy = f"use shards={most} or fewer" if most else "use a larger batch_size or more rows"
    return (
        f"Batch normalisation must have 2 rows in every shard of every round, however with {plan.num_rows} rows, "
        f"batch_size={plan.batch_size} and shards={plan.shards} a shard may have 1; {remedy}"
    )
