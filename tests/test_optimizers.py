"""Several optimizers that are one."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import dasktrain as dt
from dasktrain.errors import ModelError
from dasktrain.optimizers import take_step
from tests.small import fit, linear, table

MAKERS = {"slow": partial(torch.optim.SGD, lr=0.01, momentum=0.9), "fast": partial(torch.optim.Adagrad, lr=0.5)}


def parts() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]


def grouped(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": [part], "optimizer": name} for part, name in zip(parameters, ("fast", "slow"), strict=True)]


def stepped(optimizers: list[torch.optim.Optimizer], parameters: list[nn.Parameter], steps: int) -> list[list[float]]:
    """Step with gradients that follow the parameters; return these."""
    for _ in range(steps):
        for part in parameters:
            part.grad = part.detach() * 0.3
        for optimizer in optimizers:
            optimizer.step()
    return [part.flatten().tolist() for part in parameters]


def test_each_steps_its_groups_as_it_would_alone() -> None:
    ours, theirs = parts(), parts()
    alone = [MAKERS["fast"](theirs[:1]), MAKERS["slow"](theirs[1:])]
    assert stepped([dt.Optimizers(grouped(ours), MAKERS)], ours, 3) == stepped(alone, theirs, 3)


def test_schedule_changes_the_rate_of_each() -> None:
    parameters = parts()
    optimizer = dt.Optimizers(grouped(parameters), MAKERS)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    stepped([optimizer], parameters, 1)
    schedule.step()
    rates = {each: part.param_groups[0]["lr"] for each, part in optimizer.optimizers.items()}
    assert rates == pytest.approx({"slow": 0.001, "fast": 0.05})


@pytest.mark.parametrize("way", ["state_dict", "deepcopy"])
def test_copy_goes_on_where_it_was(way: str) -> None:
    parameters = parts()
    optimizer = dt.Optimizers(grouped(parameters), MAKERS)
    stepped([optimizer], parameters, 2)
    if way == "deepcopy":
        others, copied = copy.deepcopy((parameters, optimizer))
    else:
        others = copy.deepcopy(parameters)
        copied = dt.Optimizers(grouped(others), MAKERS)
        copied.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert stepped([copied], others, 2) == stepped([optimizer], parameters, 2)
    assert set(copied.state) == set(others)


def test_groups_that_name_no_optimizer_are_refused() -> None:
    for groups in (parts(), [{"params": parts()}], [{"params": parts(), "optimizer": "other"}]):
        with pytest.raises(ModelError, match=r"must name its optimizer, one of .'slow', 'fast'., however one names"):
            dt.Optimizers(groups, MAKERS)


def test_groups_of_any_model_may_name_theirs() -> None:
    def groups(module: nn.Module) -> list[dict[str, Any]]:
        return [{"params": [part], "optimizer": "slow" if part.ndim == 1 else "fast"} for part in module.parameters()]

    def digest(workers: int) -> str:
        optimizer = partial(dt.Optimizers, makers=MAKERS)
        return fit(table(), dt.LocalWire(workers), model=linear, optimizer=optimizer, groups=groups).digest

    assert digest(1) == digest(3)


@pytest.mark.parametrize("several", [False, True])
def test_a_parameter_that_takes_part_later_gets_its_momentum_then(several: bool) -> None:
    """As if each had an optimizer of its own; torch's fused SGD takes either none that have momentum or all."""
    make = partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, fused=True)
    ours, theirs = parts(), parts()
    both: list[Any] = [{"params": ours, "optimizer": "both"}]
    optimizer = dt.Optimizers(both, {"both": make}) if several else make(ours)
    alone = [make([part]) for part in theirs]
    for number in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad, other.grad = one.detach() * 0.3, other.detach() * 0.3
        if number < 2:
            ours[1].grad = theirs[1].grad = None
        take_step(optimizer)
        for each in alone:
            each.step()
        assert [part.grad is not None for part in ours] == [True, number >= 2]
    assert [part.tolist() for part in ours] == [part.tolist() for part in theirs]
    assert [optimizer.state[part]["momentum_buffer"].tolist() for part in ours] == [
        each.state[part]["momentum_buffer"].tolist() for each, part in zip(alone, theirs, strict=True)
    ]
