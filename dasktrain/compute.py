"""How a replica computes: where, how many rows at once, in which precision."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from dasktrain import domain
from dasktrain.data.block import Batch, call
from dasktrain.errors import AttachError, BadInput

Wanted = Literal["auto", "cpu", "cuda"]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Compute:
    """How replicas compute a shard. All but the default changes bits, the same on any cluster.

    Parameters
    ----------
    device
        ``"auto"``: on a worker's GPU if it sees one, the first (with dask-cuda: its own), else on the CPU. GPUs of
        other models, and CPUs, are other determinism domains. The optimizer steps on the driver's CPU in any case.
    microbatch
        Rows of a shard in one forward and backward at most, for large batches in little memory; their gradients are
        added in order. Batch normalisation sees so many rows at once. None: all.
    autocast
        ``"bfloat16"``: the module is called under ``torch.autocast``; parameters, its output's loss, gradients and
        their sums stay float32.
    compile
        Whether workers compile the module by ``torch.compile``, which takes a C++ compiler there, and some time.

    Raises
    ------
    BadInput
        There is no such device or precision, or no row at once.
    """

    device: Wanted = "auto"
    microbatch: int | None = None
    autocast: Literal["bfloat16"] | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        choices_of = {"device": get_args(Wanted), "autocast": (None, "bfloat16"), "compile": (False, True)}
        for name, choices in choices_of.items():
            if getattr(self, name) not in choices:
                raise BadInput(f"{name} must be one of {choices}, however it is {getattr(self, name)!r}")
        if self.microbatch is not None and (type(self.microbatch) is not int or self.microbatch < 1):
            raise BadInput(f"microbatch must be a whole number and at least 1, however it is {self.microbatch!r}")

    def pieces(self, batch: Batch) -> Iterator[Batch]:
        """Cut a batch into pieces of at most `microbatch` rows, in order."""
        size = self.microbatch
        if size is None or batch.rows <= size:
            yield batch
            return
        for start in range(0, batch.rows, size):
            yield _piece(batch, slice(start, min(start + size, batch.rows)))

    def call(self, module: nn.Module, batch: Batch, place: torch.device) -> Any:
        """Call a module with a batch."""
        if self.autocast is None:
            return call(module, batch.inputs)
        with torch.autocast(place.type, torch.bfloat16):
            output = call(module, batch.inputs)
        return _each_tensor(output, lambda part: part.float() if part.is_floating_point() else part)


def _piece(batch: Batch, place: slice) -> Batch:
    """Return some of a batch's rows."""
    inputs, target, weight = (
        _each_tensor(part, lambda part: _rows(part, place, batch.rows))
        for part in (batch.inputs, batch.target, batch.weight)
    )
    return Batch(inputs, target, weight, place.stop - place.start)


def _rows(part: Tensor, place: slice, rows: int) -> Tensor:
    if part.ndim == 0 or len(part) != rows:
        raise BadInput(
            f"With microbatch= every tensor of a batch must have its {rows} rows, however one has shape "
            f"{tuple(part.shape)}; collate them so"
        )
    return part[place]


def _each_tensor(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor in what `collate`, or a module, may return."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        parts = {key: _each_tensor(part, function) for key, part in value.items()}
        return type(value)(**parts) if dataclasses.is_dataclass(value) else type(value)(parts)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_each_tensor(part, function) for part in value))
    return type(value)(_each_tensor(part, function) for part in value) if isinstance(value, list | tuple) else value


class Device:
    """The CPU, or the first GPU this process sees: dask-cuda shows each worker its own first.

    Parameters
    ----------
    wanted
        ``"auto"``: the GPU if there is one.

    Raises
    ------
    AttachError
        A GPU is wanted, and there is none.

    Notes
    -----
    Kernels that add in an order of their own are refused (``torch.use_deterministic_algorithms``), and cuBLAS is given
    the fixed workspace that this asks for: https://docs.pytorch.org/docs/stable/notes/randomness.html.
    """

    def __init__(self, wanted: Wanted) -> None:
        if wanted == "cuda" and not torch.cuda.is_available():
            raise AttachError('Workers must have a GPU for device="cuda", however one has none; use device="auto"')
        gpu = wanted != "cpu" and torch.cuda.is_available()
        self.place = torch.device("cuda:0" if gpu else "cpu")
        if gpu:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    @property
    def is_gpu(self) -> bool:
        """Whether it is not the CPU."""
        return self.place.type != "cpu"

    @contextmanager
    def pinned(self, threads: int) -> Iterator[None]:
        """Compute in a way that gives the same bits again, and leave torch's settings as they were."""
        with domain.pinned(threads):
            if not self.is_gpu:
                yield
                return
            before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
            try:
                with torch.random.fork_rng([self.place]):
                    yield
            finally:
                torch.use_deterministic_algorithms(before[0])
                torch.backends.cudnn.benchmark = before[1]

    def facts(self) -> dict[str, str | int]:
        """Return what is known to change bits here; call it pinned."""
        found = domain.facts()
        if self.is_gpu:
            major, minor = torch.cuda.get_device_capability(self.place)
            found["gpu"] = f"{torch.cuda.get_device_name(self.place)} ({major}.{minor})"
            found["cuda"] = str(torch.version.cuda)
            found["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
        return found

    def seed(self, seed: int) -> None:
        """Seed what dropout draws from."""
        torch.default_generator.manual_seed(seed)
        if self.is_gpu:
            torch.cuda.manual_seed(seed)

    def takes(self, part: M) -> M:
        """Move a module here."""
        return part.to(self.place) if self.is_gpu else part

    def fill(self, tensor: Tensor, values: Tensor) -> None:
        """Copy values from the CPU into a tensor that is here."""
        tensor.copy_(self._put(values) if self.is_gpu else values)

    def batch(self, batch: Batch) -> Batch:
        """Move a batch here, through pinned memory, without waiting for it to arrive."""
        if not self.is_gpu:
            return batch
        inputs, target, weight = (_each_tensor(part, self._put) for part in (batch.inputs, batch.target, batch.weight))
        return Batch(inputs, target, weight, batch.rows)

    def _put(self, tensor: Tensor) -> Tensor:
        pinned = tensor.pin_memory() if self.place.type == "cuda" else tensor
        return pinned.to(self.place, non_blocking=True)
