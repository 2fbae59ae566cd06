"""A run as one page of HTML that needs nothing beside it."""

import base64
import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import fsspec
from jinja2 import Environment, PackageLoader

from dasktrain.data.source import Encoding, Schema, Source
from dasktrain.data.target import Labels
from dasktrain.errors import BadInput
from dasktrain.pictures import calibration, confusion, curves, timeline
from dasktrain.profiling import draw

if TYPE_CHECKING:
    from dasktrain.result import Result

#: names of columns that are written out
MOST_NAMES = 40
DPI = 110


def report(result: "Result", path: str, data: Source | None = None) -> None:
    """Write a page: settings, data, curves, what workers did and what became of them, digest, how to do it again.

    It has its pictures within it, runs no script, and asks no other host for anything.

    Parameters
    ----------
    path
        Of an HTML file; any fsspec URL.
    data
        Data to count a classifier's confusion and calibration on; None: leave them out.

    Raises
    ------
    BadInput
        The path is not that of a page, or there is no epoch.
    ImportError
        matplotlib is not installed: ``pip install 'dasktrain[plot]'``.
    """
    if not str(path).endswith((".html", ".htm")):
        raise BadInput(f"A report must be written to an .html file, however it is to {path}")
    pictures = dict(_pictures(result, data))
    environment = Environment(loader=PackageLoader("dasktrain"), autoescape=True)
    page = environment.get_template("report.html").render(
        title=f"{type(result.model).__name__} {result.digest[:12]}",
        result=result,
        last=result.history[-1],
        parameters=sum(parameter.numel() for parameter in result.model.parameters()),
        data=_data(result.encoding),
        settings=result.settings,
        pictures={name: (_as_png(figure), text) for name, (figure, text) in pictures.items()},
        again=_again(result.settings),
    )
    with fsspec.open(str(path), "w", encoding="utf-8") as file:
        file.write(page)


def _pictures(result: "Result", data: Source | None) -> Iterator[tuple[str, tuple[Any, str]]]:
    """Yield name -> figure and what it shows."""
    yield "Learning curves", (curves(result.history), "Pale: the loss of each round.")
    if result.history.rounds:
        yield (
            "Where the time went",
            (draw(result.history, result.timings), "Rounds by part, and the work of each worker."),
        )
    if result.timings:
        text = "Numbered: what became of workers." if result.happened else "Nothing became of any worker."
        yield "Workers", (timeline(result.timings, result.happened), text)
    if data is not None:
        assessment = result.assess(data)
        if assessment.matrix is not None:
            yield "Confusion", (confusion(assessment), f"Mean negative log-likelihood {assessment.log_loss:.4g} nats.")
        yield "Calibration", (calibration(assessment), "Dashed: probabilities that are what they say.")


def _as_png(figure: Any) -> str:
    """Return a figure as a data URL."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _data(encoding: Encoding) -> dict[str, str]:
    """Return what is known of the data, by what it is called."""
    schema: Schema = encoding.schema
    found = {"read as": type(encoding).__name__.removesuffix("Encoding")}
    found["inputs"] = ", ".join(
        f"{'numbers' if part.bounds is None else 'integers'} (rows{''.join(f', {size}' for size in part.shape)})"
        for part in schema.inputs
    )
    if schema.feature_names:
        found["numeric columns"] = _listed(schema.feature_names)
    categorical = getattr(encoding, "categorical", ())
    if categorical:
        found["categorical columns"] = _listed([f"{each.name} ({each.cardinality})" for each in categorical])
    target = encoding.target
    if target is not None:
        names = target.values if isinstance(target, Labels) else target.names
        found["predicted"] = f"{schema.num_outputs} outputs: {_listed([str(name) for name in names])}"
    return found


def _listed(names: Any) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _again(settings: Mapping[str, Any]) -> str:
    """Return the call that gives the same digest, given the same data, model and trainer."""
    names = ("batch_size", "shards", "seed", "partition", "shuffle", "window")
    given = ", ".join(f"{name}={settings[name]!r}" for name in names if name in settings)
    return f"trainer.fit(data, {given}, ...)"
