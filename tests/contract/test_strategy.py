"""What every strategy promises. A new one is one more line of `STRATEGIES`."""

import copy
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import nn

import dasktrain as dt
from dasktrain.strategies import Strategy
from tests.chaos_wire import ChaosWire, Clock
from tests.small import fit, table

STRATEGIES: dict[str, Any] = {
    "averaging": dt.GradientAveraging,
    "clipped": lambda: dt.GradientAveraging(clip_norm=0.05),
    "local": lambda: dt.LocalSGD(steps=3),
    "diloco": lambda: dt.DiLoCo(steps=2, clip_norm=1.0, warmup=1.0),
}
SETTINGS: dict[str, Any] = {"epochs": 2, "shards": 4, "batch_size": 23}


@pytest.fixture(params=STRATEGIES)
def strategy(request: pytest.FixtureRequest) -> Strategy:
    made: Strategy = STRATEGIES[request.param]()
    return made


def model(schema: dt.Schema) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 3))


def trained(strategy: Strategy, wire: Any = None, **settings: Any) -> dt.Result:
    return fit(table(), wire, model=model, strategy=copy.deepcopy(strategy), **(SETTINGS | settings))


def test_it_contributes_a_tensor_of_its_shape_or_nothing_for_each_parameter(strategy: Strategy) -> None:
    layer, other = nn.Linear(3, 2), nn.Linear(1, 1)
    parameters = [*layer.parameters(), *other.parameters()]
    found = strategy.contribute(layer(torch.ones(4, 3)).square().sum(), parameters)
    assert len(found) == len(parameters)
    assert [None if part is None else part.shape for part in found] == [(2, 3), (2,), None, None]


def test_it_gives_the_same_bits_on_any_number_of_workers(strategy: Strategy) -> None:
    wanted = trained(strategy).digest
    for workers in (2, 3, 4):
        assert trained(strategy, dt.LocalWire(workers)).digest == wanted


@pytest.mark.parametrize("seed", range(3))
def test_it_gives_the_same_bits_whatever_becomes_of_workers(strategy: Strategy, seed: int) -> None:
    clock = Clock()
    wire = ChaosWire(Random(seed), 3, clock)
    with clock.ticking():
        found = trained(strategy, wire)
    assert found.digest == trained(strategy).digest


def test_it_learns(strategy: Strategy) -> None:
    history = trained(strategy, epochs=12).history
    assert history[-1]["loss"] < history[0]["loss"]


def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(strategy: Strategy, tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    trained(strategy, observers=[dt.Checkpoint(url, every="1 round")], max_rounds=3)
    assert trained(strategy, dt.LocalWire(3), resume=url).digest == trained(strategy).digest


def test_it_remembers_what_it_says_it_does(strategy: Strategy) -> None:
    kept = copy.deepcopy(strategy.state_dict())
    other = copy.deepcopy(strategy)
    other.load_state_dict(kept)
    assert other.state_dict() == kept


def test_it_says_whether_sending_may_begin_early(strategy: Strategy) -> None:
    assert strategy.is_gradient in (True, False)
