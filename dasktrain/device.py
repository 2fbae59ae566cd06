"""Where a replica computes: the CPU, or the GPU that its worker was given."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from dasktrain import domain
from dasktrain.data.block import Batch
from dasktrain.errors import AttachError

Wanted = Literal["auto", "cpu", "cuda"]
M = TypeVar("M", bound=nn.Module)


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
        return replace(
            batch, inputs=self._put(batch.inputs), target=self._put(batch.target), weight=self._put(batch.weight)
        )

    def _put(self, value: Any) -> Any:
        """Move every tensor in what `collate` may return."""
        if isinstance(value, Tensor):
            pinned = value.pin_memory() if self.place.type == "cuda" else value
            return pinned.to(self.place, non_blocking=True)
        if isinstance(value, dict):
            return type(value)({key: self._put(part) for key, part in value.items()})
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self._put, value))
        return type(value)(map(self._put, value)) if isinstance(value, list | tuple) else value
