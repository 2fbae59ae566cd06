"""What the driver makes of a round's sum: one division, one step."""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dasktrain.errors import BadInput, NonFinite
from dasktrain.messages import Partial
from dasktrain.metrics import Mean
from dasktrain.norms import NORM_BLOCK, canonical_norm
from dasktrain.objective import accuracy
from dasktrain.state import TrainState
from dasktrain.strategies import GradientAveraging, Sums, check_weight

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01, foreach=False),
    "AdamW": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, foreach=False),
}
optimizers = pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


class Round:
    """A state, and sums for a round of it."""

    def __init__(self, module: nn.Module, make_optimizer: Any = OPTIMIZERS["SGD"]) -> None:
        self.state = TrainState(module, make_optimizer)
        self.sums = Sums({}, len(self.state.parameters.parameters), self.state.buffers.layout.size)

    def total(self, gradient: Any, unused: int | None = None, **scalars: Any) -> Partial:
        """Make the sum of 8 shards; `unused` is a parameter that took no part."""
        flat = np.zeros(self.sums.layout.size)
        view = self.sums.layout.views(flat)
        view["used"][:] = 8
        if unused is not None:
            view["used"][unused] = 0
        for name, value in ({"weight": 4.0, "rows": 4.0} | scalars).items():
            view[name][...] = value
        return Partial(0, 8, np.array(gradient, dtype=np.float32), flat)

    def apply(self, total: Partial, **settings: Any) -> dict[str, float]:
        return GradientAveraging(**settings).apply(self.state, total, self.sums)


def values(module: nn.Module) -> list[Tensor]:
    return [part.detach().clone() for part in module.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def linear() -> nn.Module:
    module = nn.Linear(3, 2)
    with torch.no_grad():
        module.weight.copy_(torch.arange(6.0).reshape(2, 3) / 7)
        module.bias.copy_(torch.tensor([0.3, -0.1]))
    return module


GRADIENT = [0.1, -2.0, 3.0, 0.7, 1.1, -0.3, 5.0, 0.01]
LENGTH = math.sqrt(sum(value**2 for value in GRADIENT))

# -- the step ---------------------------------------------------------------------------------------------------


@optimizers
def test_rounds_step_as_torch_does_to_the_bit(linear: nn.Module, make_optimizer: Any) -> None:
    plain = copy.deepcopy(linear)
    optimizer = make_optimizer(plain.parameters())
    round = Round(linear, make_optimizer)
    for scale in (1.0, 0.3, -2.0):
        sums = np.array(GRADIENT, dtype=np.float32) * np.float32(scale)
        gradient = torch.from_numpy(sums.copy()) / 3.7
        plain.weight.grad, plain.bias.grad = gradient[:6].reshape(2, 3), gradient[6:]
        optimizer.step()
        round.apply(round.total(sums, weight=3.7))
        assert same(values(linear), values(plain))
    assert torch.equal(round.state.parameters.vector, torch.cat([part.reshape(-1) for part in values(linear)]))


@optimizers
def test_parameter_that_took_no_part_is_not_stepped(linear: nn.Module, make_optimizer: Any) -> None:
    weight, bias = values(linear)
    round = Round(linear, make_optimizer)
    round.apply(round.total(GRADIENT, unused=1))
    assert torch.equal(linear.bias, bias)
    assert not torch.equal(linear.weight, weight)
    assert set(round.state.optimizer.state) == {linear.weight}


def test_narrow_parameters_are_stepped_and_carried_into_the_vector() -> None:
    module = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    round = Round(module)
    round.apply(round.total([8.0]))
    assert module.weight.grad is not None
    assert (module.weight.grad.dtype, module.weight.grad.item()) == (torch.bfloat16, 2.0)
    assert round.state.parameters.vector.tolist() == [module.weight.item()]


def test_buffers_change_by_the_mean_over_rows() -> None:
    module = nn.BatchNorm1d(1)
    round = Round(module)
    round.apply(round.total([0.0, 0.0], rows=4.0, weight=2.0, buffers=[8.0, 4.0, -2.0, 4.0, 4.0, 4.0]))
    assert (module.running_mean.item(), module.running_var.item(), module.num_batches_tracked.item()) == (2.0, 0.5, 1)


def test_sums_that_came_in_read_only_memory_are_stepped_with(linear: nn.Module) -> None:
    """The sum of a cluster of one worker is the very array that came over the wire."""
    other = Round(copy.deepcopy(linear))
    other.apply(other.total(GRADIENT))
    round = Round(linear)
    total = round.total(GRADIENT)
    assert total.vector is not None
    assert total.sums is not None
    frames = total.vector.tobytes(), total.sums.tobytes()
    round.apply(Partial(0, 8, np.frombuffer(frames[0], np.float32), np.frombuffer(frames[1])))
    assert same(values(linear), values(other.state.module))


# -- clipping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm", [0.5, LENGTH / 4 - 1e-3])
def test_longer_gradient_is_scaled_down_to_the_norm(linear: nn.Module, clip_norm: float) -> None:
    round = Round(linear)
    figures = round.apply(round.total(GRADIENT), clip_norm=clip_norm)
    found = [part.grad.clone() for part in linear.parameters() if part.grad is not None]
    assert figures == {"gradient_norm": pytest.approx(LENGTH / 4)}
    gradient = torch.tensor(GRADIENT) / 4
    linear.weight.grad, linear.bias.grad = gradient[:6].reshape(2, 3), gradient[6:]
    nn.utils.clip_grad_norm_(linear.parameters(), clip_norm)
    torch.testing.assert_close(found, [part.grad for part in linear.parameters()], rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(("clip_norm", "figures"), [(None, {}), (LENGTH, {"gradient_norm": pytest.approx(LENGTH / 4)})])
def test_shorter_gradient_is_left_as_it_is(linear: nn.Module, clip_norm: float | None, figures: Any) -> None:
    round = Round(linear)
    assert round.apply(round.total(GRADIENT), clip_norm=clip_norm) == figures
    assert linear.weight.grad is not None
    assert torch.equal(linear.weight.grad, (torch.tensor(GRADIENT) / 4)[:6].reshape(2, 3))


@pytest.mark.parametrize("clip_norm", [0, -1.0, math.nan])
def test_clip_norm_that_is_not_positive_is_refused(clip_norm: float) -> None:
    with pytest.raises(BadInput, match=f"clip_norm must be positive, however it is {clip_norm}"):
        GradientAveraging(clip_norm=clip_norm)


# -- the norm ---------------------------------------------------------------------------------------------------


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_norm_has_the_same_bits_on_any_number_of_threads(threads: Callable[[int], None]) -> None:
    vector = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(canonical_norm(vector))
    assert found == [found[0]] * 3


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2 * NORM_BLOCK + 5), st.sampled_from([1e-30, 1.0, 1e30]))
def test_norm_is_euclids_of_any_length_and_scale(length: int, scale: float) -> None:
    vector = torch.randn(length, generator=torch.Generator().manual_seed(length)) * scale
    assert canonical_norm(vector) == pytest.approx(vector.double().norm().item(), rel=1e-12)


# -- on a replica -----------------------------------------------------------------------------------------------


def test_contribution_is_the_gradient_of_the_sum_and_none_where_unused() -> None:
    used, unused = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.ones(1))
    gradient, nothing = GradientAveraging().contribute((used**2).sum(), [used, unused])
    assert gradient is not None
    assert gradient.tolist() == [2.0, 4.0]
    assert nothing is None
    assert used.grad is None


# -- figures ----------------------------------------------------------------------------------------------------


def test_means_divide_each_sum_by_its_own_weight() -> None:
    sums = Sums({"accuracy": Mean(accuracy), "never": Mean(accuracy)}, parameters=1, buffers=0)
    flat = np.zeros(sums.layout.size)
    view = sums.layout.views(flat)
    view["loss"][...], view["weight"][...] = 6.0, 4.0
    view["metrics"][:2] = 3.0, 12.0
    means = sums.figures(flat)
    assert list(means) == ["loss", "accuracy", "never"]
    assert (means["loss"], means["accuracy"]) == (1.5, 0.25)
    assert math.isnan(means["never"])


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan])
def test_weights_that_do_not_add_up_are_refused(linear: nn.Module, weight: float) -> None:
    round = Round(linear)
    with pytest.raises(NonFinite, match="must add up to more than zero, however in round 3 of epoch 1 they do not"):
        check_weight(round.total(GRADIENT, weight=weight), round.sums, "round 3 of epoch 1")


def test_sum_of_nothing_is_refused_and_a_small_weight_is_not(linear: nn.Module) -> None:
    round = Round(linear)
    check_weight(round.total(GRADIENT, weight=1e-300), round.sums, "here")
    with pytest.raises(NonFinite, match="in here they do not"):
        check_weight(Partial(0, 8, None, None), round.sums, "here")
