"""Where replicas compute. What needs a GPU is marked, and skipped without one."""

import shutil
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dasktrain as dt
from dasktrain.accumulate import Accumulator
from dasktrain.buffers import FlatBuffers
from dasktrain.compute import Compute, Device
from dasktrain.data.block import Batch
from dasktrain.domain import canary, digest_of_bits
from dasktrain.errors import AttachError, BadInput, NonFinite
from dasktrain.vector import FlatParameters
from tests.problems import PROBLEMS, SETTINGS
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
    with pytest.raises(BadInput, match=r"device must be one of .*'cuda'.* however it is 'gpu'"):
        Compute("gpu")  # type: ignore[arg-type]


@needs_none
def test_gpu_that_is_not_there_is_missed_by_name() -> None:
    with pytest.raises(AttachError, match="must have a GPU"):
        fit(table(), compute=Compute("cuda"))
    assert fit(table(), compute=Compute("auto")).digest == fit(table(), compute=Compute("cpu")).digest


@needs_none
def test_cpu_has_no_facts_of_a_gpu() -> None:
    assert set(Device("auto").facts()) == {"torch", "kernel path", "threads"}


# -- rows at once, precision, compilation ---------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"microbatch": 0}, {"microbatch": 2.0}, {"autocast": "float16"}, {"compile": 3}])
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(settings))):
        Compute(**settings)


def test_pieces_are_all_rows_in_order() -> None:
    X, y = torch.arange(14).reshape(7, 2), torch.arange(7)
    batch = Batch({"a": X, "b": [X]}, y, y.double(), 7)
    pieces = list(Compute(microbatch=3).pieces(batch))
    assert [piece.rows for piece in pieces] == [3, 3, 1]
    assert torch.equal(torch.cat([piece.inputs["b"][0] for piece in pieces]), X)
    assert torch.equal(torch.cat([piece.target for piece in pieces]), y)
    assert list(Compute(microbatch=7).pieces(batch)) == [batch]
    with pytest.raises(BadInput, match="must have its 7 rows"):
        list(Compute(microbatch=3).pieces(Batch((X.T,), y, None, 7)))


@pytest.mark.parametrize("compute", [Compute(microbatch=3), Compute(autocast="bfloat16")])
def test_same_bits_on_any_number_of_workers(compute: Compute) -> None:
    one, two, three = (fit(table(60), dt.LocalWire(workers), compute=compute, shards=4) for workers in (1, 2, 3))
    assert one.digest == two.digest == three.digest
    plain = fit(table(60), shards=4)
    assert plain.digest != one.digest  # or nothing was done
    for parameter, other in zip(one.model.parameters(), plain.model.parameters(), strict=True):
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter, other, rtol=0.05, atol=0.01)


def of_few(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Be of no use for more than 4 rows."""
    return nn.functional.cross_entropy(output, target, reduction="none") * (1.0 if len(output) <= 4 else float("nan"))


def test_microbatches_have_so_many_rows_at_most() -> None:
    fit(table(60), loss=of_few, compute=Compute(microbatch=4), shards=2)
    with pytest.raises(NonFinite):
        fit(table(60), loss=of_few, shards=2)


class Narrow(nn.Linear):
    """Sees to it that it is called under autocast."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Refuse to compute in float32, but for the trial on the driver."""
        output = super().forward(x)
        return output if output.dtype == torch.bfloat16 or not self.training else output * float("nan")


def full(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Refuse to compute in bfloat16."""
    assert output.dtype == torch.float32
    return nn.functional.cross_entropy(output, target, reduction="none")


def test_autocast_reaches_the_module_and_not_the_loss() -> None:
    settings = {"model": lambda schema: Narrow(2, 3), "loss": full}
    fit(table(60), compute=Compute(autocast="bfloat16"), **settings)
    with pytest.raises(NonFinite):
        fit(table(60), **settings)


def test_other_pieces_are_another_run(tmp_path: Any) -> None:
    url = str(tmp_path)
    fit(table(60), observers=[dt.Checkpoint(url)], compute=Compute(microbatch=3))
    with pytest.raises(BadInput, match="microbatch"):
        fit(table(60), observers=[dt.Checkpoint(url)], resume=url, epochs=2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch uses what it has deprecated
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile takes a C++ compiler, and there is none")
def test_compiled_module_has_the_same_bits_on_any_number_of_workers() -> None:
    compute = Compute(compile=True)
    one, two = (fit(table(60), dt.LocalWire(workers), compute=compute, shards=4) for workers in (1, 2))
    assert one.digest == two.digest
    assert type(one.model) is nn.Linear


# -- with a GPU ---------------------------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_same_bits_on_a_gpu(problem: Any) -> None:
    def digest(workers: int) -> str:
        trainer = problem.trainer()
        trainer.compute = Compute("cuda")
        return trainer.fit(problem.data, client=dt.LocalWire(workers), **SETTINGS).digest

    assert len({digest(workers) for workers in (1, 2, 2)}) == 1


@needs_gpu
def test_gpu_is_close_to_the_cpu() -> None:
    on_gpu, on_cpu = (fit(table(), compute=Compute(device)).model for device in ("cuda", "cpu"))
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
