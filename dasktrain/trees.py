"""Nested state, such as an optimizer's, as plain JSON values and named tensors, and back to the last bit.

What JSON has is written as it is. Everything else is an object with one entry, its kind: ``{"tuple": [1, 2]}``,
``{"Counter": [[4, 1]]}``, ``{"tensor": "optimizer/state/0/exp_avg"}``. Types are exact: what is only nearly one of
these, such as a subclass, is refused instead of coming back as something else.
"""

import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Mapping
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dasktrain.errors import BadInput

_AS_THEY_ARE = (NoneType, bool, int, str)
_DICTS: dict[str, type[dict[Any, Any]]] = {kind.__name__: kind for kind in (dict, OrderedDict, Counter)}
#: dtype kinds of NumPy whose bytes are their whole value: numbers and times
_NUMPY = "biufcmM"


def flatten(value: Any, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Take nested state apart.

    Parameters
    ----------
    value
        None, numbers, text, tensors, dtypes, NumPy numbers and arrays, and lists, tuples, dicts, OrderedDicts and
        Counters of them.
    name
        First part of every tensor's name; the path to the tensor follows.

    Returns
    -------
    tuple
        A value for JSON, and the tensors by name, which share memory with `value`.

    Raises
    ------
    BadInput
        Something in `value` is of another type.
    """
    tensors: dict[str, Tensor] = {}
    return _plain(value, name, tensors), tensors


def unflatten(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put together what `flatten` took apart; the tensors in it are those given.

    Raises
    ------
    KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError, RecursionError
        `flatten` did not make it.
    """
    if isinstance(plain, list):
        return [unflatten(value, tensors) for value in plain]
    if not isinstance(plain, dict):
        return plain
    [(kind, kept)] = plain.items()
    match kind:
        case "tuple":
            return tuple(unflatten(kept, tensors))
        case "float":
            return struct.unpack("<d", bytes.fromhex(kept))[0]
        case "dtype":
            return _torch_dtype(kept)
        case "tensor":
            return tensors[kept]
        case "number":
            return np.frombuffer(bytes.fromhex(kept[1]), _numpy_dtype(kept[0]))[0]
        case "array":
            dtype, shape, tensor = kept
            return tensors[tensor].numpy().copy().view(_numpy_dtype(dtype)).reshape(shape)
        case _:
            # Not _DICTS[kind](pairs): a Counter would count them.
            return _DICTS[kind](dict(map(tuple, unflatten(kept, tensors))))


def _torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no dtype of torch")
    return dtype


def _numpy_dtype(name: str) -> np.dtype[Any]:
    dtype = np.dtype(name)
    if dtype.kind not in _NUMPY:
        raise ValueError(f"{name!r} is no dtype of numbers or times")
    return dtype


def _plain(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    kind = type(value)
    if kind in _AS_THEY_ARE or (kind is float and math.isfinite(value)):
        return value
    if kind is list:
        return [_plain(part, f"{path}/{index}", tensors) for index, part in enumerate(value)]
    if kind is tuple:
        return {"tuple": _plain(list(value), path, tensors)}
    if kind in _DICTS.values():
        return {
            kind.__name__: [[_key(key, path), _plain(part, f"{path}/{key}", tensors)] for key, part in value.items()]
        }
    if kind is float:  # infinite or one of many NaNs, for which JSON has no words
        return {"float": struct.pack("<d", value).hex()}
    if kind is torch.dtype:
        return {"dtype": str(value).removeprefix("torch.")}
    if kind is Tensor and value.layout is torch.strided:
        return {"tensor": _keep(value.detach(), path, tensors)}
    if isinstance(value, np.generic) and value.dtype.kind in _NUMPY:
        return {"number": [value.dtype.str, value.tobytes().hex()]}
    if kind is np.ndarray and value.dtype.kind in _NUMPY:
        content = torch.tensor(np.frombuffer(value.tobytes(), np.uint8))
        return {"array": [value.dtype.str, list(value.shape), _keep(content, path, tensors)]}
    raise BadInput(
        f"State in {path!r} must be numbers, text, tensors and containers of them, however it is {kind}; "
        "let state_dict() return what it was made from instead"
    )


def _key(key: Any, path: str) -> Any:
    plain, tensors = flatten(key, f"{path}/{key}")
    if tensors:  # they are keys by their identity, which does not come back
        raise BadInput(f"Keys of the state in {path!r} must be numbers and text, however one holds a tensor; name it")
    return plain


def _keep(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    """Name a tensor by its path; keys may be anything, so the path may be no UTF-8 or that of another one."""
    name = path.encode(errors="backslashreplace").decode()
    while name in tensors:
        name += "'"
    tensors[name] = tensor
    return name
