"""Named tensors and the flat vector they share."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dasktrain.errors import ModelError
from dasktrain.vector import FlatParameters, Layout, as_tensor, tensor_in, trainable

shapes = st.dictionaries(st.text("abc", min_size=1), st.lists(st.integers(0, 4), max_size=3).map(tuple), max_size=5)


class Bare(nn.Module):
    """A module of whatever parameters it is given."""

    def __init__(self, **parameters: nn.Parameter) -> None:
        super().__init__()
        for name, each in parameters.items():
            self.register_parameter(name, each)


class Tied(nn.Module):
    """An embedding whose weight is the output layer's as well."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def parameter(*values: float, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


# -- layout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("array", [np.arange, torch.arange], ids=["numpy", "torch"])
@given(shapes=shapes)
def test_views_cut_the_vector_into_named_arrays_in_order(
    array: Callable[[int], Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    layout = Layout(shapes)
    views = layout.views(array(layout.size))
    assert {name: tuple(view.shape) for name, view in views.items()} == shapes
    assert [int(value) for view in views.values() for value in view.reshape(-1)] == list(range(layout.size))


@pytest.mark.parametrize("array", [np.zeros, torch.zeros], ids=["numpy", "torch"])
def test_views_share_memory_with_the_vector(array: Callable[[int], Any]) -> None:
    flat = array(7)
    views = Layout({"matrix": (2, 3), "scalar": ()}).views(flat)
    views["matrix"][1, 2] = 5
    views["scalar"][...] = 6
    assert flat.tolist() == [0, 0, 0, 0, 0, 5, 6]


@pytest.mark.parametrize("writeable", [True, False])
def test_tensor_shares_memory_with_any_array(writeable: bool) -> None:
    array = np.arange(4, dtype=np.float32)
    array.flags.writeable = writeable
    tensor = as_tensor(array)
    assert tensor.tolist() == [0, 1, 2, 3]
    assert tensor.data_ptr() == array.ctypes.data


# -- parameters -------------------------------------------------------------------------------------------------


def test_parameters_and_vector_are_the_same_memory() -> None:
    module = nn.Linear(2, 1)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    flat = FlatParameters(module)
    assert torch.equal(flat.vector, torch.cat([part.reshape(-1) for part in before]))
    flat.vector.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert (module.weight.tolist(), module.bias.tolist()) == ([[1.0, 2.0]], [3.0])
    with torch.no_grad():
        module.bias.add_(1)
    assert flat.vector.tolist() == [1, 2, 4]


def test_tied_parameter_is_in_the_vector_once_and_stays_tied() -> None:
    module = Tied()
    flat = FlatParameters(module)
    assert dict(flat.layout.shapes) == {"embedding.weight": (5, 3)}
    flat.vector.fill_(2)
    assert module.head.weight is module.embedding.weight
    assert (module.head.weight == 2).all()


def test_frozen_parameter_is_left_out_and_left_alone() -> None:
    module = Bare(frozen=parameter(9.0).requires_grad_(False), free=parameter(1.0))
    assert list(trainable(module)) == ["free"]
    FlatParameters(module).vector.zero_()
    assert module.frozen.item() == 9.0


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([torch.float32], torch.float32),
        ([torch.bfloat16], torch.float32),
        ([torch.float16, torch.float32], torch.float32),
        ([torch.float32, torch.float64], torch.float64),
        ([torch.bfloat16, torch.float64], torch.float64),
    ],
)
def test_vector_is_as_wide_as_the_widest_parameter(dtypes: list[torch.dtype], expected: torch.dtype) -> None:
    module = Bare(**{f"p{place}": parameter(0.5, dtype=dtype) for place, dtype in enumerate(dtypes)})
    flat = FlatParameters(module)
    assert (flat.vector.dtype, flat.vector.tolist()) == (expected, [0.5] * len(dtypes))
    assert [part.dtype for part in module.parameters()] == dtypes


def test_narrow_parameters_are_converted_when_loaded_and_stored() -> None:
    module = Bare(narrow=parameter(1.0, dtype=torch.bfloat16), wide=parameter(1.0))
    flat = FlatParameters(module)
    flat.vector.fill_(1 + 2**-20)  # more digits than bfloat16 has
    flat.load()
    assert (module.narrow.item(), module.wide.item()) == (1.0, 1 + 2**-20)
    with torch.no_grad():
        module.narrow.fill_(3.0)
    flat.store()
    assert flat.vector.tolist() == [3.0, 1 + 2**-20]


def test_released_parameters_have_memory_of_their_own() -> None:
    module = Bare(narrow=parameter(1.0, dtype=torch.bfloat16), wide=parameter(2.0))
    flat = FlatParameters(module)
    flat.release()
    flat.vector.zero_()
    assert (module.narrow.item(), module.wide.item()) == (1.0, 2.0)


# -- memory that somebody else has ------------------------------------------------------------------------------


class Memory:
    """Hands out memory, and keeps it."""

    def __init__(self) -> None:
        self.taken: list[np.ndarray] = []

    def __call__(self, size: int) -> np.ndarray:
        self.taken.append(np.full(size, 255, dtype=np.uint8))
        return self.taken[-1]


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float32, np.float32), (torch.float64, np.float64)])
@given(size=st.integers(0, 9))
def test_tensor_lies_in_the_memory_it_is_given(dtype: torch.dtype, kind: Any, size: int) -> None:
    memory = Memory()
    tensor = tensor_in(memory, size, dtype).fill_(1)
    assert (tensor.dtype, tensor.shape) == (dtype, (size,))
    assert [taken.view(kind).tolist() for taken in memory.taken] == [[1.0] * size] * (size > 0)


def test_parameters_lie_in_the_memory_they_are_given_with_the_values_they_had() -> None:
    memory, module = Memory(), nn.Linear(2, 1)
    before = torch.cat([part.detach().reshape(-1) for part in module.parameters()])
    FlatParameters(module, memory)
    (taken,) = memory.taken
    assert taken.view(np.float32).tolist() == before.tolist()
    taken.view(np.float32)[:] = [1.0, 2.0, 3.0]
    assert (module.weight.tolist(), module.bias.tolist()) == ([[1.0, 2.0]], [3.0])


@pytest.mark.parametrize("writeable", [True, False])
def test_adopted_parameters_are_what_lies_in_the_array_as_it_changes(writeable: bool) -> None:
    module = Tied()
    flat = FlatParameters(module)
    values = np.arange(15, dtype=np.float32)
    lent = values.view()
    lent.flags.writeable = writeable
    flat.adopt(as_tensor(lent))
    values += 1
    assert module.head.weight is module.embedding.weight
    assert module.head.weight.flatten().tolist() == flat.vector.tolist() == values.tolist()
    assert module.head.weight.data_ptr() == values.ctypes.data


def test_narrow_parameters_are_converted_whenever_they_are_adopted() -> None:
    module = Bare(narrow=parameter(1.0, dtype=torch.bfloat16), wide=parameter(1.0))
    flat, values = FlatParameters(module), np.zeros(2, np.float32)
    for value in (3.0, 1 + 2**-20):  # which has more digits than bfloat16
        values[:] = value
        flat.adopt(as_tensor(values))
        assert (module.narrow.item(), module.wide.item()) == (round(value), value)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_arrays_may_be_adopted_in_any_order_and_again(order: list[int]) -> None:
    module = nn.Linear(2, 1)
    flat = FlatParameters(module)
    arrays = [np.full(3, float(place), np.float32) for place in range(3)]
    for place in order:
        flat.adopt(as_tensor(arrays[place]))
        assert module.weight.tolist() == [[float(place)] * 2]
    assert [array.tolist() for array in arrays] == [[float(place)] * 3 for place in range(3)]


def test_gradients_of_adopted_parameters_are_those_of_parameters_of_ones_own() -> None:
    own, adopting = nn.Linear(4, 2), nn.Linear(4, 2)
    values = FlatParameters(own).vector.numpy().copy()
    values.flags.writeable = False
    FlatParameters(adopting).adopt(as_tensor(values))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    found = [torch.autograd.grad(module(x).square().sum(), list(module.parameters())) for module in (own, adopting)]
    assert all(map(torch.equal, *found))


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.ReLU(), "must have parameters that require gradients, however it has none"),
        (nn.Linear(1, 1).requires_grad_(False), "however it has none"),
        (Bare(phase=nn.Parameter(torch.zeros(1, dtype=torch.complex64))), "however 'phase' is torch.complex64"),
    ],
    ids=["nothing", "frozen", "complex"],
)
def test_module_that_cannot_be_trained_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        FlatParameters(module)
