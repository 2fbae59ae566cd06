"""steps.py, stepped.py, owned.py: whoever owns a part of the parameters steps it to the bits that the driver does."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

import dasktrain as dt
from dasktrain.cut import Cut
from dasktrain.errors import WireError
from dasktrain.messages import Partial, State, Vector
from dasktrain.optimizers import Optimizers
from dasktrain.owned import Owned, fingerprint, get_ready
from dasktrain.state import TrainState
from dasktrain.steps import TOGETHER, Mean, Step
from dasktrain.strategies import Sums
from dasktrain.wire.handout import decode_pieces, decode_step, encode_pieces, encode_step

MAKERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": partial(SGD, lr=0.1),
    "momentum": partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "Nesterov": partial(SGD, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": partial(Adam, lr=1e-2, weight_decay=0.01),
    "AMSGrad": partial(Adam, lr=1e-2, amsgrad=True),
    "AdamW": partial(AdamW, lr=1e-2, betas=(0.8, 0.95)),
    "Adagrad": partial(Adagrad, lr=0.1, lr_decay=0.01, initial_accumulator_value=0.1),
}


class Model(nn.Module):
    """Parameters of some lengths; 0 stands for a number that is no vector."""

    def __init__(self, lengths: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(0)
        shapes = ((length,) if length else () for length in lengths)
        self.parts = nn.ParameterList(
            nn.Parameter(torch.randn(shape, generator=drawn, dtype=dtype)) for shape in shapes
        )


def in_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Return two groups that step by rates of their own; in none of them is every fifth parameter."""
    parts = list(module.parameters())
    groups = [[part for place, part in enumerate(parts) if place % 5 in wanted] for wanted in ((0, 2), (1, 3))]
    return [{"params": group, "lr": rate} for group, rate in zip(groups, (0.3, 0.01), strict=True) if group]


class Training:
    """A driver's state, and sums of gradients that are drawn."""

    def __init__(self, state: TrainState, seed: int) -> None:
        self.state, self._rng = state, np.random.default_rng(seed)

    def round(self, mean: Mean) -> Vector:
        """Step; return the sum that it is taken with."""
        parameters = self.state.parameters
        scale = 10.0 ** self._rng.integers(-4, 4, parameters.layout.size)
        total = (self._rng.standard_normal(parameters.layout.size) * scale).astype(parameters.vector.numpy().dtype)
        gradient = torch.tensor(total).div_(mean.divisor).mul_(mean.factor)
        views = parameters.views_of(gradient)
        for place, (parameter, part) in enumerate(zip(parameters.parameters.values(), views, strict=True)):
            parameter.grad = part if place in mean.used else None
        self.state.step((), mean)
        return total


def told(state: State) -> Step:
    """Return the latest step as a worker is told it."""
    assert state.steps is not None
    latest = state.steps.latest()
    assert latest is not None
    return decode_step(json.loads(json.dumps(encode_step(latest))))


def handed(state: State, cut: Cut, offsets: Sequence[int]) -> Owned:
    """Return buckets of a state as a worker has them."""
    owned = Owned()
    assert state.steps is not None
    for offset in offsets:
        values = state.parameters[cut.place(offset)]
        header, arrays = encode_pieces(state.steps.pieces(cut.place(offset)))
        header |= {"dtype": values.dtype.name}
        pieces = decode_pieces(json.loads(json.dumps(header)), [array.tobytes() for array in arrays])
        owned.put(offset, values, pieces)
    return owned


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 90), min_size=1, max_size=7),
    st.sampled_from(list(MAKERS)),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
    st.data(),
)
def test_owners_step_to_the_driver_s_bits_wherever_parameters_are_cut(
    lengths: list[int], maker: str, dtype: torch.dtype, grouped: bool, data: st.DataObject
) -> None:
    state = TrainState(Model(lengths, dtype), MAKERS[maker], groups=in_groups if grouped else None)
    training, cut = Training(state, seed=len(lengths)), Cut(state.parameters.layout.size, data.draw(st.integers(1, 64)))
    divisor, factor = data.draw(st.floats(0.5, 100)), data.draw(st.sampled_from([1.0, 0.3]))

    def mean() -> Mean:
        return Mean(divisor, factor, tuple(data.draw(st.sets(st.integers(0, len(lengths) - 1)))))

    for _ in range(data.draw(st.integers(0, 2))):
        training.round(mean())
    offsets = cut.offsets[data.draw(st.integers(0, 2)) :: 3]
    owned = handed(state.message(), cut, offsets)
    for group in state.optimizer.param_groups:
        group["lr"] *= 0.5
    for _ in range(3):
        total = training.round(mean())
        owned.step(told(state.message()), {offset: total[cut.place(offset)] for offset in offsets})
        for offset in offsets:
            assert owned.values(offset).tobytes() == state.message().parameters[cut.place(offset)].tobytes()


@pytest.mark.parametrize("maker", MAKERS)
def test_what_is_left_over_where_threads_share_a_parameter_is_stepped_alike(maker: str) -> None:
    state = TrainState(Model([300_001, 7, 99_997]), MAKERS[maker])
    training, cut, threads = Training(state, seed=1), Cut(400_005, 1 << 14), torch.get_num_threads()
    owned = handed(state.message(), cut, cut.offsets)
    try:
        torch.set_num_threads(2)
        for _ in range(3):
            total = training.round(Mean(7.0, 1.0, (0, 1, 2)))
            owned.step(told(state.message()), {offset: total[cut.place(offset)] for offset in cut.offsets})
    finally:
        torch.set_num_threads(threads)
    found = np.concatenate([owned.values(offset) for offset in cut.offsets])
    assert found.tobytes() == state.message().parameters.tobytes()


def test_buckets_are_stepped_one_by_one_as_well() -> None:
    state = TrainState(Model([20]), MAKERS["AdamW"])
    cut = Cut(20, 10)
    owned = handed(state.message(), cut, cut.offsets)
    for _ in range(2):
        total = Training(state, seed=0).round(Mean(1.0, 1.0, (0,)))
        for offset in cut.offsets:
            owned.step(told(state.message()), {offset: total[cut.place(offset)]})
    assert np.concatenate([owned.values(0), owned.values(10)]).tobytes() == state.message().parameters.tobytes()


def test_what_owns_nothing_that_is_stepped_steps_nothing() -> None:
    Owned().step(Step("SGD", ({},), Mean(1.0, 1.0, ())), {})


def test_fingerprints_tell_numbers_from_those_in_another_order() -> None:
    values = np.arange(9, dtype=np.float32)
    assert fingerprint(values) == fingerprint(values.copy())
    assert fingerprint(values) != fingerprint(values[::-1].copy())


def test_whoever_gets_ready_has_made_an_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(torch.optim, "SGD", lambda parameters: made.append(parameters))
    get_ready()
    assert len(made) == 1


# -- who can be told --------------------------------------------------------------------------------------------------


def of_two(parameters: Any) -> Optimizer:
    return Optimizers([{"params": list(parameters), "optimizer": "one"}], {"one": MAKERS["SGD"]})


class Own(SGD):
    """An optimizer of the user's."""


@pytest.mark.parametrize("maker", MAKERS)
def test_fused_optimizers_can_be_told(maker: str) -> None:
    assert TrainState(Model([3]), MAKERS[maker]).message().steps is not None


@pytest.mark.parametrize(
    "make",
    [
        partial(RMSprop, lr=0.1),
        of_two,
        partial(Own, lr=0.1),
        partial(SGD, lr=0.1, foreach=True),
        partial(Adam, lr=torch.tensor(0.1)),
    ],
    ids=["not fused", "several", "the user's", "another implementation", "a rate that is a tensor"],
)
def test_others_cannot(make: Callable[[Any], Optimizer]) -> None:
    assert TrainState(Model([3]), make).message().steps is None


def test_parameters_that_are_converted_cannot() -> None:
    assert TrainState(Model([3], torch.bfloat16), MAKERS["SGD"]).message().steps is None


def test_tables_cannot() -> None:
    module = nn.Sequential(nn.Embedding(5, 2, sparse=True), nn.Linear(2, 1))
    state = TrainState(module, partial(Optimizers, makers={"dense": MAKERS["SGD"], "sparse": partial(SGD, lr=0.1)}))
    assert state.message().steps is None


def test_a_group_with_something_that_is_no_number_cannot() -> None:
    def noted(module: nn.Module) -> list[dict[str, Any]]:
        return [{"params": list(module.parameters()), "note": object()}]

    assert TrainState(Model([3]), MAKERS["SGD"], groups=noted).message().steps is None


def test_what_a_group_gets_later_that_is_no_number_cannot_be_told() -> None:
    state = TrainState(Model([3]), MAKERS["SGD"])
    message = state.message()
    state.optimizer.param_groups[0]["note"] = object()
    Training(state, seed=0).round(Mean(1.0, 1.0, (0,)))
    assert message.steps is not None
    assert (message.steps.count, message.steps.latest()) == (1, None)


def test_what_an_optimizer_is_told_is_as_it_was_when_it_stepped() -> None:
    state = TrainState(Model([3]), MAKERS["SGD"])
    Training(state, seed=0).round(Mean(2.0, 0.5, (0,)))
    state.optimizer.param_groups[0]["lr"] = 7.0
    step = told(state.message())
    assert (step.optimizer, step.groups[0]["lr"], *step.mean) == ("SGD", 0.1, 2.0, 0.5, {0})


def test_steps_by_what_nobody_else_knows_count_and_are_not_told() -> None:
    state = TrainState(Model([3]), MAKERS["SGD"])
    steps, kept = state.message().steps, state.snapshot()
    assert steps is not None
    assert (steps.count, steps.latest()) == (0, None)
    state.step(())  # as a strategy of the user's may
    assert (steps.count, steps.latest()) == (1, None)
    Training(state, seed=0).round(Mean(1.0, 1.0, (0,)))
    assert steps.latest() is not None
    state.restore(kept)
    assert (steps.count, steps.latest()) == (3, None)


def test_however_many_parameters_a_bucket_has_its_frames_are_few() -> None:
    state = TrainState(Model([3] * 3000), MAKERS["AMSGrad"])
    Training(state, seed=0).round(Mean(1.0, 1.0, tuple(range(3000))))
    steps = state.message().steps
    assert steps is not None
    header, arrays = encode_pieces(steps.pieces(slice(0, 9000)))
    assert (len(header["pieces"]), len(arrays)) == (3000, 1)


def test_a_mean_of_whole_numbers_is_told_as_well() -> None:
    assert decode_step(encode_step(Step("SGD", ({"lr": 1},), Mean(8, 1, (0,))))).mean == (8.0, 1.0, {0})


def test_pieces_are_what_the_optimizer_steps_of_a_bucket() -> None:
    module = Model([40, 3, 30])
    state = TrainState(module, MAKERS["AdamW"], groups=lambda module: [{"params": [module.parts[0], module.parts[2]]}])
    Training(state, seed=0).round(Mean(1.0, 1.0, (0, 1, 2)))
    steps = state.message().steps
    assert steps is not None
    first, last = steps.pieces(slice(20, 50))
    assert (first.parameter, first.place, first.before, first.after) == (0, slice(0, 20), 20 % TOGETHER, 0)
    assert (last.parameter, last.place, last.before, last.after) == (2, slice(23, 30), 0, TOGETHER - 7)
    kept = state.optimizer.state[module.parts[0]]
    assert first.kept["step"] == 1.0
    assert np.array_equal(first.kept["exp_avg"], kept["exp_avg"][20:].numpy())  # type: ignore[arg-type]


# -- what makes no sense ----------------------------------------------------------------------------------------------

STEP = {"stepped": "SGD", "groups": [{"lr": 0.1}], "mean": [1.0, 1.0, [0]]}
ARRAY = np.zeros(3, np.float32).tobytes()
PIECE = [0, 0, 0, 3, 0, 0, {"momentum_buffer": True, "step": 1.0, "none": None}]


@pytest.mark.parametrize(
    "change",
    [
        {"stepped": "LBFGS"},
        {"stepped": ["SGD"]},
        {"groups": [7]},
        {"groups": None},
        {"mean": [0.0, 1.0, []]},
        {"mean": [1.0, float("inf"), []]},
        {"mean": [1, 1.0, []]},
        {"mean": [1.0, 1.0, [0.5]]},
        {"mean": [1.0, 1.0]},
    ],
)
def test_a_step_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    assert decode_step(STEP).groups == ({"lr": 0.1},)
    with pytest.raises(WireError):
        decode_step(STEP | change)


@pytest.mark.parametrize(
    ("piece", "arrays"),
    [
        ([-1, *PIECE[1:]], [ARRAY]),
        ([0, 0, 3, 3, 0, 0, PIECE[-1]], [ARRAY]),
        ([0, 0, 0, 2, 0, 0, PIECE[-1]], [ARRAY]),
        ([0, 0, 0, 4, 0, 0, PIECE[-1]], [ARRAY]),
        ([0, 0, 0, 3, 0.0, 0, PIECE[-1]], [ARRAY]),
        ([0, 0, 0, 3, TOGETHER, 0, PIECE[-1]], [ARRAY]),
        (PIECE[:-1], [ARRAY]),
        (PIECE, []),
        (PIECE, [ARRAY, ARRAY]),
        ([*PIECE[:-1], {"step": 1}], []),
        ([*PIECE[:-1], {"step": False}], []),
        ([*PIECE[:-1], {"step": "float32"}], [ARRAY]),
    ],
)
def test_a_piece_that_makes_no_sense_is_refused(piece: list[Any], arrays: list[bytes]) -> None:
    assert decode_pieces({"pieces": [PIECE], "dtype": "float32"}, [ARRAY])[0].kept["step"] == 1.0
    with pytest.raises(WireError):
        decode_pieces({"pieces": [piece], "dtype": "float32"}, arrays)


# -- strategies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [dt.GradientAveraging(), dt.GradientAveraging(clip_norm=0.01), dt.LocalSGD(2)])
def test_what_a_strategy_makes_of_a_sum_is_told(strategy: Any) -> None:
    state, cut = TrainState(Model([30, 20, 7]), MAKERS["Nesterov"]), Cut(57, 10)
    owned, sums = handed(state.message(), cut, cut.offsets), Sums({}, parameters=3, buffers=0)
    for round in range(3):
        scalars = np.zeros(sums.layout.size)
        view = sums.layout.views(scalars)
        view["weight"][:], view["rows"][...], view["used"][:] = 24.0, 24.0, (4, 0, round)
        total = np.random.default_rng(round).standard_normal(57).astype(np.float32)
        totals = {offset: total[cut.place(offset)].copy() for offset in cut.offsets}
        strategy.apply(state, Partial(0, 4, total, scalars), sums)
        owned.step(told(state.message()), totals)
        found = np.concatenate([owned.values(offset) for offset in cut.offsets])
        assert found.tobytes() == state.message().parameters.tobytes()
