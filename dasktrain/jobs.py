"""A job in a file: a Python function, or a recipe."""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from dasktrain.data.source import Schema
from dasktrain.errors import BadInput, known_keywords
from dasktrain.recipe import build, fit_recipe, model_of, read_recipe
from dasktrain.result import Result

#: trains on the current client; its keywords are the job's settings
Job = Callable[..., Result]


def read_job(path: str) -> Job:
    """Return the job a file describes.

    Parameters
    ----------
    path
        ``job.py``, whose function ``fit(**settings)`` trains and returns a Result; ``job.py:name`` is another function
        of it. ``job.yaml``: see :func:`dasktrain.recipe.fit_recipe`.

    Returns
    -------
    callable
        Trains on the current client. Keywords override what the file says.

    Raises
    ------
    BadInput
        There is no such file, or it does not describe a job.
    """
    file, name = _parted(path)
    if Path(file).suffix == ".py":
        return _function(file, name or "fit")
    return partial(fit_recipe, read_recipe(file))


def read_model(path: str) -> Callable[[Schema], nn.Module]:
    """Return what builds a model for a schema.

    Parameters
    ----------
    path
        ``job.yaml``: the model it trains. ``job.py:name``, ``package.module:name``, or a name in `dasktrain.models`: a
        class or function with parameters called like those of a :class:`dasktrain.Schema`, or one called ``schema``.
    """
    if Path(path).suffix in (".yaml", ".yml"):
        return model_of(read_recipe(_parted(path)[0]).get("model"))
    if ".py:" in path:
        return partial(build, _function_of(*_parted(path)), {})
    return model_of(path)


def _parted(path: str) -> tuple[str, str]:
    """Return the file and the name of ``file:name``."""
    file, _, name = path.partition(":")
    if not Path(file).is_file():
        raise BadInput(f"A job must be a .py or a .yaml file, however there is no file {file!r}")
    return file, name


def _function(file: str, name: str) -> Job:
    function = _function_of(file, name)
    kinds = {keyword.kind for keyword in inspect.signature(function).parameters.values()}
    checked = function if inspect.Parameter.VAR_KEYWORD in kinds else known_keywords(function)

    def job(**settings: Any) -> Result:
        result = checked(**settings)
        if not isinstance(result, Result):
            raise BadInput(f"{name} in {file} must return the Result of a fit, however it returned {type(result)}")
        return result

    return job


def _function_of(file: str, name: str) -> Callable[..., Any]:
    function = getattr(_run(file), name, None)
    if not callable(function):
        raise BadInput(
            f"{file} must have a function {name!r}, however it has none; write `def {name}(**settings):` there"
        )
    return function  # type: ignore[no-any-return]


def _run(file: str) -> ModuleType:
    """Run a file as a module that finds its neighbours, as a script does."""
    path = Path(file).resolve()
    name = f"dasktrain_job_{path.stem}"  # its own, in case it is called like something else
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where pickles look its classes up
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    return module
