"""What can be known to fail before the first round, tried on the driver with rows that are made up."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dasktrain.data.block import Batch, call
from dasktrain.errors import DasktrainError, ModelError, PlanError
from dasktrain.objective import Measure, Objective, detached, measure
from dasktrain.plan import Plan
from dasktrain.strategies import Strategy
from dasktrain.vector import FlatParameters, trainable


def check(
    module: nn.Module,
    loss: Measure,
    metrics: Mapping[str, Measure],
    strategy: Strategy,
    plan: Plan,
    batch: Batch,
) -> None:
    """Try one contribution of the plan's smallest size.

    Raises
    ------
    ModelError
        Module, loss or metric do not accept the data or each other.
    PlanError
        A shard may have one row of a module that needs two.
    """
    with torch.random.fork_rng(devices=[]):
        _try(copy.deepcopy(module).train(), loss, metrics, strategy, plan, batch)


def _try(
    module: nn.Module,
    loss: Measure,
    metrics: Mapping[str, Measure],
    strategy: Strategy,
    plan: Plan,
    batch: Batch,
) -> None:
    named = batch.inputs.items() if isinstance(batch.inputs, dict) else [("", part) for part in batch.inputs]
    shapes = ", ".join(f"{name} {_shape(part)}".strip() for name, part in named)
    FlatParameters(module)  # refuses a module without anything to train
    try:
        output = call(module, batch.inputs)
    except Exception as error:
        if _needs_two_rows(module) and batch.rows == 1:
            raise PlanError(_too_few_rows(plan)) from error
        raise ModelError(f"The model must accept inputs {shapes}, however {type(error).__name__}: {error}") from error
    found = f"output {_shape(output)} and target {_shape(batch.target)}"
    try:
        total, _ = Objective(loss)(output, batch)
        strategy.contribute(total, list(trainable(module).values()))
    except DasktrainError:
        raise
    except Exception as error:
        raise ModelError(f"The loss must accept {found}, however {type(error).__name__}: {error}") from error
    for name, metric in metrics.items():
        try:
            measure(metric, detached(output), batch)
        except Exception as error:
            raise ModelError(f"Metric {name!r} must accept {found}, however {type(error).__name__}: {error}") from error


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
