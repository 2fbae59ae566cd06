"""Nested state through files: every type, order and bit comes back, and what could not is refused."""

import enum
import json
import math
import struct
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.torch import load, save
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler

from dasktrain.errors import BadInput
from dasktrain.trees import flatten, unflatten


def through_files(value: Any, name: str = "state") -> Any:
    """Flatten, write, read and unflatten."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    plain, tensors = flatten(value, name)
    assert all(each == name or each.startswith(f"{name}/") for each in tensors)
    written = save({each: tensor.contiguous().clone() for each, tensor in tensors.items()})
    return unflatten(json.loads(json.dumps(plain), parse_constant=refuse), load(written))


def bits(value: Any) -> Any:
    """Return a value as types and bytes, which are equal only if every bit is."""
    kind = type(value)
    if isinstance(value, dict):
        return kind, [(bits(key), bits(part)) for key, part in value.items()]
    if isinstance(value, list | tuple):
        return kind, [bits(part) for part in value]
    if isinstance(value, Tensor):
        content = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return kind, value.dtype, value.shape, value.requires_grad, content
    if isinstance(value, np.ndarray | np.generic):
        return kind, value.dtype, value.shape, value.tobytes()
    return kind, struct.pack("<d", value) if kind is float else value


# -- every type ---------------------------------------------------------------------------------------------------

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.float8_e4m3fn]
DTYPES += [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint64]
NUMPY = (
    npst.boolean_dtypes()
    | npst.integer_dtypes(endianness="?")
    | npst.unsigned_integer_dtypes(endianness="?")
    | npst.floating_dtypes(endianness="?")
    | npst.complex_number_dtypes(endianness="?")
    | npst.datetime64_dtypes(endianness="?")
    | npst.timedelta64_dtypes(endianness="?")
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any bytes, seen as any dtype and shape, also with strides."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = math.prod(shape) * dtype.itemsize
    content = draw(st.binary(min_size=size, max_size=size))
    if dtype is torch.bool:  # a bool has one bit
        content = bytes(byte & 1 for byte in content)
    flat = torch.tensor(np.frombuffer(content, np.uint8))
    tensor = flat.view(dtype).reshape(shape)
    return draw(st.sampled_from([tensor, tensor.permute(list(reversed(range(tensor.ndim))))]))


NUMBERS = NUMPY.flatmap(npst.from_dtype)
ARRAYS = npst.arrays(NUMPY, npst.array_shapes(min_dims=0, min_side=0, max_side=3))
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
KEYS = st.recursive(PLAIN | NUMBERS, lambda keys: st.lists(keys, max_size=2).map(tuple), max_leaves=3)
STATES = st.recursive(
    PLAIN | st.sampled_from(DTYPES) | NUMBERS | ARRAYS | tensors(),
    lambda states: (
        st.lists(states, max_size=4)
        | st.lists(states, max_size=4).map(tuple)
        | st.dictionaries(KEYS, states, max_size=4)
        | st.dictionaries(KEYS, states, max_size=4).map(OrderedDict)
        | st.dictionaries(KEYS, states, max_size=4).map(Counter)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(STATES)
def test_state_comes_back_to_the_last_bit(state: Any) -> None:
    assert bits(through_files(state)) == bits(state)


@pytest.mark.parametrize(
    "state",
    [
        math.inf,
        -math.inf,
        math.nan,
        -math.nan,
        -0.0,
        5e-324,
        10**40,
        True,
        "\ud800",
        (),
        [[]],
        {(1, (2.0, None)): 1, "1": 2, 1: 3, None: 4, 0.5: 5, False: 6},
        {"tuple": [1]},
        {"tensor": "state"},
        Counter({4: 1, 2: -1}),
        OrderedDict(b=1, a=2),
        torch.tensor(1.5, dtype=torch.bfloat16),
        torch.zeros(0, 3),
        torch.arange(12).reshape(3, 4).T,
        torch.tensor([math.nan, -0.0, math.inf]),
        torch.float64,
        np.float64(-0.0),
        np.datetime64("2024-02-29", "s"),
        np.arange(6, dtype=">i4").reshape(2, 3).T,
        np.array(2.5),
    ],
    ids=repr,
)
def test_corner_comes_back_to_the_last_bit(state: Any) -> None:
    assert bits(through_files(state)) == bits(state)


def test_arrays_that_come_back_can_be_written_to() -> None:
    found = through_files({"array": np.zeros(2), "tensor": torch.zeros(2)})
    found["array"] += 1
    found["tensor"] += 1
    assert found["array"].sum() == found["tensor"].sum() == 2


# -- names --------------------------------------------------------------------------------------------------------


def test_tensors_are_named_by_their_path() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = optim.AdamW([parameter], amsgrad=True)
    optimizer.step()
    _, found = flatten({"optimizer": optimizer.state_dict(), "parts": (torch.ones(1), [torch.ones(2)])}, "run")
    assert list(found) == [
        "run/optimizer/state/0/step",
        "run/optimizer/state/0/exp_avg",
        "run/optimizer/state/0/exp_avg_sq",
        "run/optimizer/state/0/max_exp_avg_sq",
        "run/parts/0",
        "run/parts/1/0",
    ]


def test_tensors_of_one_path_keep_apart() -> None:
    state = {name: torch.tensor(value) for value, name in enumerate((1, "1", 1.5, "1.5", "a/b", "\ud800", "\\ud800"))}
    state["a"] = {"b": torch.tensor(9), "b'": torch.tensor(10)}
    assert bits(through_files(state)) == bits(state)


def test_tensor_alone_has_the_name_itself() -> None:
    assert list(flatten(torch.ones(1), "loss")[1]) == ["loss"]


def test_tensors_are_not_copied() -> None:
    tensor = torch.ones(2)
    assert flatten([tensor], "x")[1]["x/0"].data_ptr() == tensor.data_ptr()


# -- what is refused ----------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "a b")


class Level(enum.IntEnum):
    LOW = 1


def named(epoch: int) -> float:
    return 0.5


REFUSED: dict[str, Any] = {
    "function": named,
    "object": object(),
    "class": nn.Linear,
    "set": {1},
    "bytes": b"1",
    "range": range(3),
    "named tuple": Pair(1, 2),
    "enumeration": Level.LOW,
    "defaultdict": defaultdict(int),
    "parameter": nn.Parameter(torch.ones(1)),
    "sparse tensor": torch.eye(2).to_sparse(),
    "size": torch.Size([1]),
    "device": torch.device("cpu"),
    "generator": torch.Generator(),
    "array of objects": np.array([None]),
    "array of text": np.array(["a"]),
    "structured array": np.zeros(1, "i4,f4"),
    "NumPy text": np.str_("min"),
    "masked array": np.ma.masked_array([1.0]),
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
def test_what_would_not_come_back_is_refused_with_its_path(value: Any) -> None:
    with pytest.raises(BadInput) as caught:
        flatten({"scheduler": {"lr_lambdas": (value,)}}, "run")
    assert str(caught.value) == (
        "State in 'run/scheduler/lr_lambdas/0' must be numbers, text, tensors and containers of them, however it is "
        f"{type(value)}; let state_dict() return what it was made from instead"
    )


@pytest.mark.parametrize("key", [torch.ones(1), (1, torch.ones(1)), nn.Parameter(torch.ones(1)), named, Level.LOW])
def test_key_that_would_not_come_back_is_refused(key: Any) -> None:
    with pytest.raises(BadInput, match="'optimizer/state"):
        flatten({"state": {key: 1}}, "optimizer")


# -- optimizers and schedulers ------------------------------------------------------------------------------------


class Warmup:
    """A callable whose own state a LambdaLR keeps."""

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()

    def __call__(self, epoch: int) -> float:
        self.calls[epoch % 3] += 1
        return 1.0 / sum(self.calls.values())


SGD = partial(optim.SGD, lr=0.1, momentum=0.9)
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "SGD": SGD,
    "Nesterov": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "tensor rate": lambda groups: optim.AdamW(groups, lr=torch.tensor(0.01), foreach=False),
    "AdamW": partial(optim.AdamW, lr=0.01, amsgrad=True),
    "Adagrad": partial(optim.Adagrad, lr=0.1, lr_decay=0.1),
    "RMSprop": partial(optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
    "Adafactor": optim.Adafactor,
    "NAdam": optim.NAdam,
    "Rprop": optim.Rprop,
}
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "StepLR": partial(lr_scheduler.StepLR, step_size=2),
    "MultiStepLR": partial(lr_scheduler.MultiStepLR, milestones=[2, 4, 4, 7]),
    "MultiStepLR of NumPy": partial(lr_scheduler.MultiStepLR, milestones=np.array([2, 7])),
    "CosineAnnealingWarmRestarts": partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=3, T_mult=2),
    "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=0.2, total_steps=20),
    "SequentialLR": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)], milestones=[4]
    ),
    "ReduceLROnPlateau": partial(lr_scheduler.ReduceLROnPlateau, patience=1),
    "ChainedScheduler": lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer), lr_scheduler.MultiStepLR(optimizer, [3, 6])], optimizer
    ),
    "CyclicLR": partial(lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=3),
    "LambdaLR": partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 0.9**epoch),
    "LambdaLR with state": lambda optimizer: lr_scheduler.LambdaLR(optimizer, Warmup()),
}


class Training:
    """Two parameters with a gradient that depends on them and on the round."""

    def __init__(self, optimizer: Callable[..., Any], scheduler: Callable[[Any], Any]) -> None:
        self.parameters = [nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3)), nn.Parameter(torch.ones(3))]
        self.optimizer = optimizer([{"params": [self.parameters[0]]}, {"params": [self.parameters[1]], "lr": 0.05}])
        self.scheduler = scheduler(self.optimizer)

    def run(self, rounds: range) -> None:
        for number in rounds:
            for parameter in self.parameters:
                parameter.grad = torch.sin(parameter.detach() * 3 + number)
            self.optimizer.step()
            plateau = isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau)
            self.scheduler.step(*[1.0] * plateau)

    def state(self) -> dict[str, Any]:
        return {
            "parameters": [parameter.detach() for parameter in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        for parameter, value in zip(self.parameters, state["parameters"], strict=True):
            parameter.data.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


COMBINATIONS = [(name, "StepLR") for name in OPTIMIZERS] + [("SGD", name) for name in SCHEDULERS]


@pytest.mark.parametrize(("optimizer", "scheduler"), COMBINATIONS)
def test_training_goes_on_as_if_it_had_never_stopped(optimizer: str, scheduler: str) -> None:
    through, first, second = (Training(OPTIMIZERS[optimizer], SCHEDULERS[scheduler]) for _ in range(3))
    through.run(range(10))
    first.run(range(5))
    kept = first.state()
    found = through_files(kept)
    assert bits(found) == bits(kept)
    second.load(found)
    second.run(range(5, 10))
    assert bits(second.state()) == bits(through.state())
