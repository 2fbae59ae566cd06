"""Buffers: bytes to the shards, changes back, and not a bit of what nobody changed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.buffers import FlatBuffers
from tests import small

Change = Callable[[Tensor, int], object]
quick = settings(max_examples=50, deadline=None)


class Bare(nn.Module):
    """A module of whatever buffers it is given."""

    def __init__(self, **buffers: Tensor) -> None:
        super().__init__()
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)


class Shared(nn.Module):
    """One buffer under two names, and one that state_dict() leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Bare(mean=torch.zeros(2))
        self.other = Bare(mean=self.inner.mean)
        self.register_buffer("passing", torch.ones(1), persistent=False)


def after_a_round(buffer: Tensor, rows: list[int], change: Change | None = None) -> Tensor:
    """Have a shard for each of `rows` start from `buffer` and change it; return what the driver makes of it."""
    driver, replica = FlatBuffers(module := Bare(buffer=buffer.clone())), FlatBuffers(there := Bare(buffer=buffer))
    total = torch.zeros(driver.layout.size, dtype=torch.float64)
    for shard, count in enumerate(rows):
        replica.vector.copy_(driver.vector)
        replica.load()
        if change is not None:
            change(there.buffer, shard)
        out = torch.empty_like(total)
        replica.changes(out, count)
        total += out
    driver.add(total / float(sum(rows)))
    return module.buffer


def bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, list[int]]:
    return tensor.dtype, tensor.shape, tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


CONSTANTS = {
    "float32": torch.tensor([[0.1, -0.0], [3e38, 1e-45]]),
    "float64": torch.linspace(0.1, 0.9, 50, dtype=torch.float64),
    "bfloat16": torch.tensor([0.1, 3e38], dtype=torch.bfloat16),
    "float16": torch.tensor([0.1, -65504.0], dtype=torch.float16),
    "complex64": torch.tensor([1 + 2j, 0.1j]),
    "int64": torch.tensor([2**62 + 1, -(2**63)]),
    "uint8": torch.tensor([0, 255], dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(0.1),
    "empty": torch.empty(0, 3),
    "expanded": torch.tensor([0.1]).expand(3),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "infinite": torch.full((2, 2), -torch.inf).triu(1),
    "nan": torch.tensor([torch.nan, 1.0]),
}


# -- what nobody changes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", CONSTANTS.values(), ids=CONSTANTS)
def test_constant_buffer_of_any_kind_keeps_its_bits(buffer: Tensor) -> None:
    assert bits(after_a_round(buffer, [3, 7, 11])) == bits(buffer)


@quick
@given(
    values=arrays(np.float64, 4) | arrays(np.float32, 4) | arrays(np.int64, 4),
    rows=st.lists(st.integers(1, 10**6), min_size=1, max_size=8),
)
def test_constant_buffer_keeps_its_bits_through_any_round(values: np.ndarray, rows: list[int]) -> None:
    buffer = torch.from_numpy(values)
    assert bits(after_a_round(buffer, rows)) == bits(buffer)


def test_mask_of_minus_infinity_survives_a_run() -> None:
    mask = torch.full((2, 2), -torch.inf).triu(1)

    def masked(schema: dt.Schema) -> nn.Module:
        module = small.linear(schema)
        module.register_buffer("mask", mask.clone())
        return module

    assert torch.equal(small.fit(small.table(), model=masked).model.mask, mask)


# -- what shards change -----------------------------------------------------------------------------------------


@quick
@given(
    shards=st.lists(st.tuples(st.floats(-100, 100, width=32), st.integers(1, 1000)), min_size=1, max_size=6),
    before=st.floats(-100, 100, width=32),
)
def test_float_buffer_becomes_the_mean_over_rows(shards: list[tuple[float, int]], before: float) -> None:
    values, rows = zip(*shards, strict=True)
    found = after_a_round(torch.tensor([before]), list(rows), lambda buffer, shard: buffer.fill_(values[shard]))
    torch.testing.assert_close(found.item(), float(np.average(values, weights=rows)), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("buffer", "change", "expected"),
    [
        (torch.tensor(41), lambda buffer, shard: buffer.add_(1), 42),
        (torch.tensor(2**62 + 1), lambda buffer, shard: buffer.sub_(3), 2**62 - 2),
        (torch.tensor([5, 5], dtype=torch.uint8), lambda buffer, shard: buffer[0].sub_(2), [3, 5]),
        (torch.tensor(0), lambda buffer, shard: buffer.add_(shard), 1),  # (0 * 1 + 1 * 3) / 4 rounded
        (torch.tensor([False, False]), lambda buffer, shard: buffer[shard].fill_(True), [False, True]),
        (torch.tensor([1 + 1j]), lambda buffer, shard: buffer.mul_(2j), [-2 + 2j]),
    ],
    ids=["count", "large count", "uint8", "uneven count", "majority", "complex"],
)
def test_buffer_that_is_no_real_float_changes_as_its_kind_does(buffer: Tensor, change: Change, expected: Any) -> None:
    assert after_a_round(buffer, [1, 3], change).tolist() == expected


@pytest.mark.parametrize("value", [2.0, 0.0])
def test_buffer_that_begins_infinite_may_become_finite(value: float) -> None:
    """Observers of smallest and largest values begin at infinity."""
    found = after_a_round(torch.tensor([torch.inf]), [1, 3], lambda buffer, shard: buffer.fill_(value))
    assert found.tolist() == [value]


# -- one vector of bytes ----------------------------------------------------------------------------------------


def test_replaced_buffer_is_read_where_it_was_registered() -> None:
    module = Bare(state=torch.zeros(2))
    flat = FlatBuffers(module)
    module.state = module.state + 5  # as a forward() that does not work in place
    out = torch.empty(4, dtype=torch.float64)
    flat.changes(out, 3)
    assert out.tolist() == [15.0, 15.0, 3.0, 3.0]  # changes, then where there were any
    flat.load()
    assert module.state.tolist() == [0.0, 0.0]


def test_shared_buffer_is_in_the_vector_once_and_stays_shared() -> None:
    module = Shared()
    flat = FlatBuffers(module)
    assert dict(flat.layout.shapes) == {"passing": (2, 1), "inner.mean": (2, 2)}
    flat.add(torch.tensor([1.0, 1.0, 2.0, 3.0, 1.0, 1.0], dtype=torch.float64))
    assert module.other.mean is module.inner.mean
    assert (module.passing.tolist(), module.inner.mean.tolist()) == ([2.0], [2.0, 3.0])


def test_loaded_buffers_do_not_share_memory_with_the_vector() -> None:
    module = Bare(mean=torch.zeros(2))
    flat = FlatBuffers(module)
    flat.load()
    module.mean.fill_(3.0)
    assert set(flat.vector.tolist()) == {0}
    flat.store()
    module.mean.zero_()
    flat.load()
    assert module.mean.tolist() == [3.0, 3.0]


def test_buffers_of_odd_sizes_lie_side_by_side() -> None:
    kinds = {
        "flag": torch.tensor([True, False, True]),
        "wide": torch.tensor([0.1, 0.2], dtype=torch.float64),
        "byte": torch.tensor([7], dtype=torch.uint8),
        "rotation": torch.tensor([1 + 2j]),
    }
    module = Bare(**{name: tensor.clone() for name, tensor in kinds.items()})
    flat = FlatBuffers(module)
    for buffer in module.buffers():
        buffer.zero_()
    flat.load()
    assert [bits(buffer) for buffer in module.buffers()] == [bits(tensor) for tensor in kinds.values()]
