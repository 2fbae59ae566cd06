"""Named tensors and one flat vector: the only owner of the order in which names become floats."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dasktrain.errors import ModelError, ReductionError
from dasktrain.messages import Partial
from dasktrain.sparse import check_touched, tables

Array = TypeVar("Array", np.ndarray, Tensor)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Where each named array lies in a flat vector, in the order given.

    Parameters
    ----------
    shapes
        name -> shape; ``()`` is a scalar and takes one element.

    Attributes
    ----------
    size : int
        Elements of the flat vector.
    places : mapping
        name -> its slice of the flat vector.
    """

    shapes: Mapping[str, Shape]
    size: int = field(init=False)
    places: Mapping[str, slice] = field(init=False)

    def __post_init__(self) -> None:
        stops = list(accumulate(math.prod(shape) for shape in self.shapes.values()))
        places = map(slice, [0, *stops], stops)
        object.__setattr__(self, "size", stops[-1] if stops else 0)
        object.__setattr__(self, "places", dict(zip(self.shapes, places, strict=True)))

    def views(self, flat: Array) -> dict[str, Array]:
        """Return each name's array, sharing memory with `flat` (size,)."""
        return {name: flat[place].reshape(self.shapes[name]) for name, place in self.places.items()}


def as_tensor(array: np.ndarray) -> Tensor:
    """Return a tensor that shares memory with `array`; it must not be written to if the array is read-only."""
    # from_numpy warns about read-only arrays, which is what Dask and the wire hand out; from_dlpack takes them.
    tensor: Tensor = torch.from_numpy(array) if array.flags.writeable else torch.utils.dlpack.from_dlpack(array)
    return tensor


#: returns so many bytes of writable memory
Memory = Callable[[int], Any]


def plain_memory(size: int) -> Any:
    """Return memory of this process alone."""
    return np.empty(size, dtype=np.uint8)


def tensor_in(memory: Memory, size: int, dtype: torch.dtype) -> Tensor:
    """Return a vector in new memory."""
    if not size:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(memory(size * dtype.itemsize), dtype=dtype, count=size)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that take part in training, tables last; a shared one once, under its first name."""
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    last = tables(module)
    return {name: parameter for name, parameter in named.items() if name not in last} | last


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    """Return the layout of named tensors."""
    return Layout({name: tuple(tensor.shape) for name, tensor in tensors.items()})


class FlatParameters:
    """A module's trainable parameters as one contiguous vector.

    Parameters of the vector's dtype become views of it, so nothing is copied between them; those of a
    narrower dtype (bfloat16, float16) are converted by `load` and `store`.

    Attributes
    ----------
    layout : Layout
    tables : mapping
        The last of the parameters, whose gradients are rows.
    gradient : Layout
        Of the gradients of all others: the beginning of `layout`.
    vector : Tensor
        (size,), float32, or float64 if any parameter is; on the device of the parameters.
    """

    def __init__(self, module: nn.Module, memory: Memory = plain_memory) -> None:
        self.parameters = trainable(module)
        if not self.parameters:
            raise ModelError("The model must have parameters that require gradients, however it has none")
        self.tables = tables(module)
        self.layout = layout_of(self.parameters)
        self.gradient = layout_of({name: part for name, part in self.parameters.items() if name not in self.tables})
        self._viewed: tuple[Tensor, list[Tensor]] | None = None
        device = next(iter(self.parameters.values())).device
        vector = tensor_in(memory, self.layout.size, _vector_dtype(self.parameters))
        self._bind(vector if device.type == "cpu" else torch.empty_like(vector, device=device), copy=True)

    def _bind(self, vector: Tensor, copy: bool) -> None:
        """Have parameters lie in a vector, whose values may be theirs."""
        self.vector = vector
        views = self.layout.views(vector)
        self._converted: list[tuple[nn.Parameter, Tensor]] = []
        for name, parameter in self.parameters.items():
            if copy:
                views[name].copy_(parameter.detach())
            if parameter.dtype == vector.dtype:
                parameter.data = views[name]
            else:
                self._converted.append((parameter, views[name]))

    def move(self, vector: Tensor) -> None:
        """Have parameters lie in another vector (size,) of this one's dtype, with the values they have."""
        self._bind(vector, copy=True)

    def adopt(self, values: Tensor) -> None:
        """Have parameters be what lies in a vector (size,) of this one's dtype, as long as it lies there."""
        if values.data_ptr() != self.vector.data_ptr():
            self._bind(values, copy=False)
        self.load()

    def load(self) -> None:
        """Carry the vector into parameters that are not views of it."""
        for parameter, view in self._converted:
            parameter.data.copy_(view)

    def views_of(self, vector: Tensor) -> list[Tensor]:
        """Return each gradient in a vector (gradient.size,); those of the same memory are the same next time."""
        if self._viewed is None or self._viewed[0].data_ptr() != vector.data_ptr():
            self._viewed = vector, list(self.gradient.views(vector).values())
        return self._viewed[1]

    def store(self) -> None:
        """Carry parameters that are not views of the vector into it."""
        for parameter, view in self._converted:
            view.copy_(parameter.detach())

    def check(self, total: Partial) -> None:
        """Raise ReductionError if a gradient is not one of these parameters."""
        if total.vector is None:
            return
        if total.vector.shape != (self.gradient.size,):
            raise ReductionError(
                f"Gradients must have {self.gradient.size} numbers, however they have {total.vector.shape}; report this"
            )
        check_touched(total.touched, self.tables)

    def release(self) -> None:
        """Give every parameter memory of its own again, and no gradient."""
        self._viewed = None
        for parameter in self.parameters.values():
            parameter.data = parameter.data.clone()
            parameter.grad = None


def _vector_dtype(parameters: Mapping[str, nn.Parameter]) -> torch.dtype:
    for name, parameter in parameters.items():
        if not parameter.is_floating_point():
            raise ModelError(f"Trainable parameters must be real floating point, however {name!r} is {parameter.dtype}")
    wide = any(parameter.dtype == torch.float64 for parameter in parameters.values())
    return torch.float64 if wide else torch.float32
