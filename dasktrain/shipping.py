"""Functions and objects as bytes: the cluster gets nothing else from us.

The scheduler unpickles task graphs, so a graph that names a torch class needs torch there. A graph that
holds bytes and one function by value needs nothing.
"""

import importlib.util
import io
import pickle
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, TypeVar

import cloudpickle
import torch
from torch import Tensor, nn

from dasktrain.errors import DasktrainError, DataError, ModelError
from dasktrain.messages import Failure, Task

F = TypeVar("F", bound=Callable[..., Any])

_INSTALLED = tuple(str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib"))
#: and folders of these names: of a user, of the Python below an environment, of a distribution, of a module of HPC
_SITES = {"site-packages", "dist-packages"}

#: packages that are sent although they are installed here
_SHIPPED: ContextVar[frozenset[str]] = ContextVar("shipped", default=frozenset())


def by_value(function: F) -> F:
    """Have pickles carry `function` itself and not its name, for processes that lack dasktrain."""
    function.__module__ = "__main__"  # what belongs there, cloudpickle ships by value
    return function


@by_value
def explained(error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Return an error that says what to do about the module a process lacks."""
    remedy = (
        f"every worker must have the module {error.name!r}: install it there, or send it along with "
        f"ship=[{str(error.name).partition('.')[0]!r}]. An import within a function is not seen when the function is "
        "sent: put it at the top of its file"
    )
    text = str(error)
    return ModuleNotFoundError(text if remedy in text else f"{text}; {remedy}", name=error.name)


def failure_of(raised: Exception, task: Task) -> Failure:
    """Return what to say of an exception, while it is handled."""
    error = explained(raised) if isinstance(raised, ModuleNotFoundError) else raised
    ours = isinstance(error, DasktrainError)
    name, text = (type(error).__name__, str(error)) if ours else ("ReplicaError", f"{type(error).__name__}: {error}")
    return Failure(name, text, traceback.format_exc(), task)


@by_value
def run_packed(payload: bytes, *args: Any) -> Any:
    """Call what `pack` packed, with further arguments."""
    import pickle

    try:
        function, bound = pickle.loads(payload)
        return function(*bound, *args)
    except ModuleNotFoundError as error:
        raise explained(error) from error


@by_value
def run_packed_with(wanted: dict[str, str], payload: bytes) -> Any:
    """Call what `pack` packed, or return what this process lacks for it; knows only the standard library.

    Parameters
    ----------
    wanted
        "python" and package names -> versions.

    Returns
    -------
    Any
        What was called returned, or a message with a place for ``{worker}``.
    """
    import pickle
    import sys
    from importlib.metadata import PackageNotFoundError, version

    for package, here in wanted.items():
        try:
            found = ".".join(map(str, sys.version_info[:2])) if package == "python" else version(package)
        except PackageNotFoundError:
            found = "missing"
        if found != here:
            return (
                f"Every worker must have the driver's {package} {here}, however on {{worker}} it is {found}; "
                "install the same there"
            )
    function, bound = pickle.loads(payload)
    return function(*bound)


@contextmanager
def shipped(packages: Sequence[str]) -> Iterator[None]:
    """Have `pack` send the code of these packages and modules, with all within them, as it does the user's own."""
    before = _SHIPPED.set(_SHIPPED.get() | set(packages))
    try:
        yield
    finally:
        _SHIPPED.reset(before)


def pack(function: Callable[..., Any], *bound: Any) -> bytes:
    """Return ``function(*bound, ...)`` as bytes, classes and functions of the user's own files by value."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    try:
        pickler.dump((function, bound))
    finally:
        pickler.unregister()
    return buffer.getvalue()


def record_to_bytes(record: Any) -> bytes:
    """Return a record's pickle, the same bytes for equal records of plain values and tensors."""
    buffer = io.BytesIO()
    pickler = _RecordPickler(buffer)
    # Without references to what was seen before: whether two strings in a record are one object is a matter of chance.
    pickler.fast = True
    try:
        pickler.dump(record)
    except (pickle.PicklingError, TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"Every record must pickle and not refer to itself, however {type(error).__name__}: {error}"
        ) from error
    return buffer.getvalue()


def record_from_bytes(pickled: bytes) -> Any:
    """Return the record of which `record_to_bytes` made `pickled`."""
    return pickle.loads(pickled)


class _RecordPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Writes neither addresses, as torch does, nor what refers to itself, as a class of ``__main__`` does."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Tensor and obj.device.type == "cpu" and obj.layout is torch.strided and not obj.requires_grad:
            flat = obj.resolve_conj().resolve_neg().reshape(-1).contiguous()
            data = flat.view(torch.uint8).numpy().tobytes() if len(flat) else b""
            return _tensor, (data, obj.dtype, tuple(obj.shape))
        reduced = super().reducer_override(obj)
        by_value = reduced is not NotImplemented and isinstance(obj, (type, FunctionType))
        return (pickle.loads, (cloudpickle.dumps(obj),)) if by_value else reduced


def _tensor(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor that a `_RecordPickler` wrote."""
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Sends by value whatever lives in a module the workers are not expected to have."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._registered: list[ModuleType] = []

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (type, FunctionType, ModuleType)):
            module = obj if isinstance(obj, ModuleType) else sys.modules.get(obj.__module__ or "")
            if module is not None and _is_users(module) and module.__name__ not in _by_value():
                cloudpickle.register_pickle_by_value(module)
                self._registered.append(module)
        if type(obj) is Tensor and _is_part(obj):
            return obj.clone().__reduce_ex__(pickle.HIGHEST_PROTOCOL)  # type: ignore[no-untyped-call]
        return super().reducer_override(obj)

    def unregister(self) -> None:
        for module in self._registered:
            cloudpickle.unregister_pickle_by_value(module)


def _is_part(tensor: Tensor) -> bool:
    """Return whether a tensor is some of a larger one, all of which torch would write: once for each parameter."""
    plain = tensor.layout is torch.strided and tensor.is_leaf and not tensor.requires_grad
    return plain and tensor.untyped_storage().nbytes() > tensor.nbytes


def check_shipped(packages: Sequence[str]) -> None:
    """Raise ModelError naming the package that is not here to be sent, if there is one."""
    for package in packages:
        try:
            found = importlib.util.find_spec(package)
        except (ImportError, ValueError, AttributeError, TypeError):
            found = None
        if found is None or isinstance(packages, str):
            raise ModelError(f"ship must be a list of packages and modules that are here, however {package!r} is not")


def _by_value() -> set[str]:
    return set(cloudpickle.list_registry_pickle_by_value())


def _is_users(module: ModuleType) -> bool:
    if module.__name__ == "__main__" or module.__name__.partition(".")[0] == "dasktrain":
        return False
    if any(f"{module.__name__}.".startswith(f"{package}.") for package in _SHIPPED.get()):
        return True
    file = getattr(module, "__file__", None)
    if not file:
        return False
    path = Path(file).resolve()
    return not (str(path).startswith(_INSTALLED) or _SITES.intersection(path.parts))


def check_ships(model: nn.Module, **others: Any) -> None:
    """Raise ModelError naming the submodule, loss or metric that cannot be pickled, if there is one."""
    for name, part in {"the model": model, **others}.items():
        try:
            pack(type, part)
        except Exception as error:
            culprit = _culprit(part) if isinstance(part, nn.Module) else name
            raise ModelError(
                f"Everything a replica needs must be picklable, however {culprit} is not: {error}; "
                "keep locks, files and clients out of it, or make them in forward()"
            ) from error


def _culprit(model: nn.Module) -> str:
    """Name the innermost module that cannot be pickled, and not its parents."""
    for name, part in [*model.named_modules()][::-1]:
        try:
            pack(type, part)
        except Exception:
            return f"module {name!r} ({type(part).__name__})" if name else f"the model ({type(part).__name__})"
    return "the model"
