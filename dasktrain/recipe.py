"""A job as a few lines of YAML: names of classes and their keywords."""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import dask.bag as db
import dask.dataframe as dd
import torch
import yaml
from torch import nn

import dasktrain
from dasktrain.data.source import Schema, Source
from dasktrain.errors import BadInput, nearest
from dasktrain.observe import Observer
from dasktrain.observers.progress import Progress
from dasktrain.result import Result
from dasktrain.trainer import Trainer

READERS: dict[str, Callable[..., Any]] = {
    "parquet": dd.read_parquet,
    "csv": dd.read_csv,
    "json": dd.read_json,
    "lines": db.read_text,
}
SOURCES: dict[str, Callable[..., Source]] = {"table": dasktrain.Table, "text": dasktrain.Text}
#: where the names of each part are looked up
ROOMS = {
    "model": (dasktrain.models,),
    "loss": (torch.nn, dasktrain.text),
    "optimizer": (torch.optim,),
    "scheduler": (torch.optim.lr_scheduler,),
    "metrics": (dasktrain, dasktrain.text),
    "strategy": (dasktrain,),
    "observers": (dasktrain,),
    "balance": (dasktrain.balance,),
}
#: parameters of a model that the data decides
FROM_SCHEMA = ("num_features", "num_outputs", "cardinalities", "vocab_size", "context")


class _Loader(yaml.SafeLoader):
    """Plain values, by YAML 1.2's rule for numbers: to PyYAML's 1.1, 1e-3 is a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def read_yaml(text: str | bytes, what: str) -> Any:
    """Return the plain values that a text describes."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"{what} must be YAML, however {error}") from error


def read_recipe(file: str) -> dict[str, Any]:
    """Return what a YAML file says, as yet unchecked but for being a mapping."""
    found = read_yaml(Path(file).read_bytes(), file)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise BadInput(f"{file} must be a mapping of names, however it is a {type(found).__name__}")
    return found


def fit_recipe(recipe: Mapping[str, Any], /, **settings: Any) -> Result:
    """Train as a recipe says, on the current client.

    Parameters
    ----------
    recipe
        Keywords of :meth:`dasktrain.Trainer.fit`, and these:

        ========================  ======================================================================================
        ``data``, ``validation``  ``{parquet: URL, table: {target: label}}``; or csv, json, lines; and text in the place
                                  of table. A reader may have keywords: ``{parquet: {path: URL, columns: [x, label]}}``
        ``model``                 of :mod:`dasktrain.models`; what the data decides is filled in
        ``loss``                  of `torch.nn` or :mod:`dasktrain.text`
        ``optimizer``             of `torch.optim`; ``scheduler`` of `torch.optim.lr_scheduler`, ``schedule_every``
        ``metrics``               a list: ``[accuracy]``
        ``strategy``              of dasktrain, and ``observers``, a list of them; a Progress is always there
        ``balance``               of dasktrain.balance
        ``compute``               ``{microbatch: 64}``: keywords of :class:`dasktrain.Compute`
        ========================  ======================================================================================

        A name stands alone or with its keywords: ``{AdamW: {lr: 0.001}}``. ``package.module:name`` is something of
        your own, which is imported: a recipe is code, whoever wrote it.
    settings
        Override the recipe's; with dots, within it: ``{"optimizer.AdamW.lr": 0.01}``.

    Raises
    ------
    BadInput
        Something of it is not there, or does not take its keywords.
    """
    for name, value in settings.items():
        recipe = _overridden(recipe, name.split("."), value)
    trainer, rest = opened(recipe)
    return trainer.fit(**rest)


def opened(recipe: Mapping[str, Any]) -> tuple[Trainer, dict[str, Any]]:
    """Return the trainer of a recipe, and keywords for its `fit`."""
    missing = [name for name in ("data", "model", "loss", "optimizer") if name not in recipe]
    if missing:
        raise BadInput(f"A recipe must have data, model, loss and optimizer, however it has no {missing[0]}")
    rest = dict(recipe)
    trainer = Trainer(**{name: make(rest.pop(name)) for name, make in PARTS.items() if name in rest})
    if rest.get("balance") is not None:
        rest["balance"] = _made("balance", rest["balance"])
    return trainer, rest | {name: _source(name, rest[name]) for name in ("data", "validation") if name in rest}


def model_of(spec: Any) -> Callable[[Schema], nn.Module]:
    """Return what builds a recipe's model for a schema."""
    name, keywords = _split("model", spec)
    found = _named("model", name)
    with _keywords_of("model", found) as signature:
        signature.bind_partial(**keywords)
    return partial(build, found, keywords)


def build(kind: Callable[..., nn.Module], given: Mapping[str, Any], schema: Schema) -> nn.Module:
    """Call a class of module with what was given, and with what the data decides where it has such parameters."""
    decided = {name: getattr(schema, name) for name in FROM_SCHEMA} | {"schema": schema}
    wanted = inspect.signature(kind).parameters
    module: nn.Module = _called(
        "model", kind, **{name: value for name, value in decided.items() if name in wanted} | dict(given)
    )
    return module


def _overridden(inside: Any, path: list[str], value: Any) -> dict[str, Any]:
    """Return a copy of a mapping, or of a bare name, that has `value` at the end of a path of names."""
    name, *rest = path
    known = dict(inside) if isinstance(inside, Mapping) else {} if inside is None else {inside: None}
    return known | {name: _overridden(known.get(name), rest, value) if rest else value}


def _source(what: str, spec: Any) -> Source:
    """Read a data set: one reader, one source."""
    parts = dict(spec) if isinstance(spec, Mapping) else {}
    reader, source = (next((key for key in parts if key in known), None) for known in (READERS, SOURCES))
    if reader is None or source is None or len(parts) != 2:
        raise BadInput(
            f"{what} must have one of {', '.join(READERS)} and one of {', '.join(SOURCES)}, however it is {spec!r}; "
            f"write {what}: {{parquet: URL, table: {{target: label}}}}"
        )
    _, how = _split(what, {source: parts[source]})
    frame = read_data(reader, parts[reader])
    made: Source = _called(what, SOURCES[source], frame, **how)
    return made


def read_data(reader: str, where: Any) -> Any:
    """Return the Dask collection at a URL, or at several, or as a reader's keywords say."""
    if isinstance(where, Mapping):
        return _called(reader, READERS[reader], **where)
    return _called(reader, READERS[reader], where)


def _made(what: str, spec: Any) -> Any:
    """Make an object of a class; a function stays what it is, with its keywords bound."""
    name, keywords = _split(what, spec)
    found = _named(what, name)
    if isinstance(found, type):
        return _called(what, found, **keywords)
    return partial(found, **keywords) if keywords else found


def _bound(what: str, spec: Any) -> Callable[..., Any]:
    """Return a class with its keywords bound, to be called with what it is for."""
    name, keywords = _split(what, spec)
    found = _named(what, name)
    with _keywords_of(what, found) as signature:
        signature.bind(None, **keywords)
    return partial(found, **keywords)


def _metrics(specs: Any) -> dict[str, Any]:
    return {_split("metrics", spec)[0].rpartition(":")[2]: _made("metrics", spec) for spec in _listed("metrics", specs)}


def _observers(specs: Any) -> list[Observer]:
    made = [_made("observers", spec) for spec in _listed("observers", specs)]
    for observer in made:
        if not isinstance(observer, Observer):
            raise BadInput(f"observers must be observers, however one is {observer!r}")
    return made if any(isinstance(observer, Progress) for observer in made) else [Progress(), *made]


#: what is made of each part of a recipe that is the Trainer's
PARTS: dict[str, Callable[[Any], Any]] = {
    "model": model_of,
    "loss": partial(_made, "loss"),
    "optimizer": partial(_bound, "optimizer"),
    "scheduler": partial(_bound, "scheduler"),
    "schedule_every": lambda value: value,
    "metrics": _metrics,
    "strategy": partial(_made, "strategy"),
    "observers": _observers,
    "compute": lambda keywords: _called("compute", dasktrain.Compute, **keywords),
}


def _listed(what: str, specs: Any) -> list[Any]:
    if not isinstance(specs, list):
        raise BadInput(f"{what} must be a list, however it is {specs!r}")
    return specs


def _split(what: str, spec: Any) -> tuple[str, dict[str, Any]]:
    """Return the name and the keywords of ``name`` or ``{name: keywords}``."""
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, Mapping) and len(spec) == 1:
        ((name, keywords),) = spec.items()
        keywords = {} if keywords is None else keywords
        if isinstance(name, str) and isinstance(keywords, Mapping) and all(isinstance(key, str) for key in keywords):
            return name, dict(keywords)
    raise BadInput(f"{what} must be a name, or one name and its keywords, however it is {spec!r}")


def _named(what: str, name: str) -> Callable[..., Any]:
    """Find a name where a part's names are, or import ``package.module:name``."""
    module, colon, attribute = name.partition(":")
    rooms: tuple[ModuleType, ...] = (_imported(what, module),) if colon else ROOMS[what]
    wanted = attribute if colon else name
    found = next((getattr(room, wanted) for room in rooms if hasattr(room, wanted)), None)
    if not callable(found) or wanted.startswith("_"):
        known = [known for room in rooms for known, value in vars(room).items() if callable(value) and known[0] != "_"]
        where = " or ".join(room.__name__ for room in rooms)
        raise BadInput(
            f"{what} must be a name in {where}, however {wanted!r} is none; {nearest(wanted, known)} "
            "Yours are written package.module:name"
        )
    return found  # type: ignore[no-any-return]


def _imported(what: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (ImportError, ValueError) as error:
        raise BadInput(f"{what} must be in a module that can be imported, however {error}") from error


def _called(what: str, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Any:
    with _keywords_of(what, function) as signature:
        signature.bind(*args, **keywords)
    return function(*args, **keywords)


@contextmanager
def _keywords_of(what: str, function: Callable[..., Any]) -> Iterator[inspect.Signature]:
    """Refuse keywords that what a recipe names does not take."""
    signature = inspect.signature(function)
    try:
        yield signature
    except TypeError as error:
        name = getattr(function, "__name__", what)
        raise BadInput(
            f"{what} must have the keywords of {name}, {', '.join(signature.parameters)}, however {error}"
        ) from error
