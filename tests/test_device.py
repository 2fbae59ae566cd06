"""Where replicas compute. What needs a GPU is marked, and skipped without one."""

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dasktrain as dt
from dasktrain.accumulate import Accumulator
from dasktrain.buffers import FlatBuffers
from dasktrain.data.block import Batch
from dasktrain.device import Device
from dasktrain.domain import canary, digest_of_bits
from dasktrain.errors import AttachError, BadInput
from dasktrain.vector import FlatParameters
from tests.problems import PROBLEMS
from tests.small import fit, table

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU on this machine")
needs_none = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU on this machine")
Pair = namedtuple("Pair", "left right")


@pytest.fixture
def elsewhere() -> Device:
    """Return a device that is not the CPU and that any machine has: tensors there have no values."""
    device = Device("cpu")
    device.place = torch.device("meta")
    return device


def places(value: Any) -> set[str]:
    """Return where the tensors in nested containers are."""
    if isinstance(value, torch.Tensor):
        return {value.device.type}
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return set().union(*map(places, parts))


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.ones(2), torch.ones(2)),
        {"input_ids": torch.ones(2), "more": [torch.ones(2), {"deep": torch.ones(1)}]},
        (Pair(torch.ones(2), "text"), 3),
    ],
)
def test_every_tensor_of_a_batch_moves(elsewhere: Device, inputs: Any) -> None:
    batch = Batch(inputs, torch.ones(2), torch.ones(2), 2)
    moved = elsewhere.batch(batch)
    assert places([moved.inputs, moved.target, moved.weight]) == {"meta"}
    assert type(moved.inputs) is type(inputs)
    assert moved.rows == 2
    assert elsewhere.batch(Batch(inputs, None, None, 2)).weight is None
    assert places(inputs) == {"cpu"}
    assert Device("cpu").batch(batch) is batch


def test_what_a_replica_sums_in_is_where_its_module_is(elsewhere: Device) -> None:
    module = elsewhere.takes(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    parameters, buffers = FlatParameters(module), FlatBuffers(module)
    assert places([parameters.vector, buffers.vector, *parameters.parameters.values()]) == {"meta"}
    elsewhere.fill(parameters.vector, torch.zeros(parameters.layout.size))
    accumulator = Accumulator(parameters.layout, parameters.vector)
    gradients = [torch.ones_like(parameter) for parameter in parameters.parameters.values()]
    total = accumulator.leaf(gradients, np.zeros(1), None)
    total = accumulator.leaf([gradient.clone() for gradient in gradients], np.zeros(1), total)
    with pytest.raises(NotImplementedError, match="meta"):  # it comes to the CPU in the end, were there values
        accumulator.flat(total)
    assert places([*total.gradients.views]) == {"meta"}  # type: ignore[union-attr]


def test_device_is_one_of_three() -> None:
    with pytest.raises(BadInput, match="device must be one of .*'cuda'.* however it is 'gpu'"):
        fit(table(), device="gpu")


@needs_none
def test_gpu_that_is_not_there_is_missed_by_name() -> None:
    with pytest.raises(AttachError, match="must have a GPU"):
        fit(table(), device="cuda")
    assert fit(table(), device="auto").digest == fit(table(), device="cpu").digest


@needs_none
def test_cpu_has_no_facts_of_a_gpu() -> None:
    assert set(Device("auto").facts()) == {"torch", "kernel path", "threads"}


# -- with a GPU ---------------------------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_same_bits_on_a_gpu(problem: Any) -> None:
    one, two, again = (problem.fit(dt.LocalWire(workers), device="cuda").digest for workers in (1, 2, 2))
    assert one == two == again


@needs_gpu
def test_gpu_is_close_to_the_cpu() -> None:
    on_gpu, on_cpu = (fit(table(), device=device).model for device in ("cuda", "cpu"))
    for one, other in zip(on_gpu.parameters(), on_cpu.parameters(), strict=True):
        assert one.device.type == "cpu"
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@needs_gpu
def test_gpu_is_a_domain_of_its_own_and_leaves_torch_as_it_was() -> None:
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark, torch.cuda.get_rng_state()
    device = Device("auto")
    with device.pinned(1):
        facts = device.facts()
        first, second = (digest_of_bits(canary(device.place)) for _ in range(2))
        assert torch.are_deterministic_algorithms_enabled()
        device.seed(3)
    assert first == second
    assert torch.cuda.get_device_name(0) in str(facts["gpu"])
    assert before[:2] == (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)
    assert torch.equal(before[2], torch.cuda.get_rng_state())
