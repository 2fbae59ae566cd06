"""The page itself, in Bokeh, as those of Dask are made."""

from html import escape
from typing import TYPE_CHECKING, Any

from bokeh.document import Document
from bokeh.layouts import column, gridplot
from bokeh.models import ColumnDataSource, DataRange1d, FactorRange
from bokeh.models.widgets import Div, Select
from bokeh.plotting import figure
from distributed.dashboard.components.scheduler import BOKEH_THEME, env
from distributed.dashboard.core import BokehApplication
from distributed.dashboard.scheduler import template_variables
from tornado.ioloop import IOLoop

from dasktrain.observe import PARTS

if TYPE_CHECKING:
    from distributed import Scheduler

    from dasktrain.dashboard.board import Board, Boards

URL, NAME = "individual-dasktrain", "Dasktrain"
#: milliseconds between updates; rounds whose parts are drawn
INTERVAL, LATEST = 500, 80
COLOURS = ("#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#666666")


def add(scheduler: "Scheduler", boards: "Boards") -> None:
    """Put the page on a scheduler's dashboard, and into its menu."""

    def page(server: "Scheduler", extra: dict[str, Any], doc: Document) -> None:
        Page(boards).show(doc, extra)

    variables = template_variables(scheduler)
    others = scheduler.http_application.applications
    prefix = next((other.prefix for other in others if hasattr(other, "prefix")), "")  # of Dask's own pages
    application = BokehApplication({f"/{URL}": page}, scheduler, prefix=prefix, template_variables=variables)
    scheduler.http_application.add_application(application)
    application.initialize(IOLoop.current())
    if all(plot["url"] != URL for plot in variables["plots"]):
        variables["plots"].append({"url": URL, "name": NAME})


class Page:
    """One browser's view of one run."""

    def __init__(self, boards: "Boards") -> None:
        self._boards = boards
        self._known: list[str] = []  # runs to choose from
        self._rounds = ColumnDataSource({"at": [], "loss": [], "rate": []})
        self._epochs = ColumnDataSource({"at": [], "loss": []})
        self._parts = ColumnDataSource({"at": [], **{part: [] for part in PARTS}})
        self._workers = ColumnDataSource({"worker": [], "compute": [], "wait_data": []})
        self._which = Select(title="Run", options=[], value="")
        self._head, self._told = Div(sizing_mode="stretch_width"), Div(sizing_mode="stretch_width")
        self._rows = FactorRange()
        grid = gridplot(
            [[self._losses(), self._rates()], [self._stacked(), self._answers()]],
            sizing_mode="stretch_width",
            toolbar_location=None,
        )
        self._root = column(self._which, self._head, grid, self._told, sizing_mode="stretch_width")

    def show(self, doc: Document, extra: dict[str, Any]) -> None:
        """Fill a browser's document, and keep it up to date."""
        doc.title = "Dask: dasktrain"
        doc.add_root(self._root)
        doc.template = env.get_template("simple.html")
        doc.template_variables.update(extra)
        doc.theme = BOKEH_THEME
        self.update()
        doc.add_periodic_callback(self.update, INTERVAL)

    def update(self) -> None:
        """Show the run as it is now: the latest, unless another was chosen."""
        runs = list(self._boards.boards)[::-1]
        if not runs:
            self._head.text = "No run has <code>dt.Dashboard()</code> among its observers yet."
            return
        if runs != self._known:
            follows = self._which.value in ("", *self._known[:1])
            self._which.update(options=runs)
            self._known = runs
            if follows or self._which.value not in runs:
                self._which.value = runs[0]
        self._fill(self._boards.boards[self._which.value])

    def _fill(self, board: "Board") -> None:
        if board.run is None:
            return
        each = board.run.rounds_per_epoch
        at = [record["epoch"] * each + record["round"] for record in board.rounds]
        self._rounds.data = {
            "at": at,
            "loss": [record["loss"] for record in board.rounds],
            "rate": [record["rows_per_second"] for record in board.rounds],
        }
        valid = [record for record in board.epochs if "valid_loss" in record]
        self._epochs.data = {
            "at": [(record["epoch"] + 1) * each for record in valid],
            "loss": [record["valid_loss"] for record in valid],
        }
        latest = board.rounds[-LATEST:]
        parts = {part: [1e3 * record[part] for record in latest] for part in PARTS}
        self._parts.data = {"at": at[-LATEST:], **parts}
        workers = sorted(board.workers)
        self._rows.factors = workers[::-1]
        self._workers.data = {
            "worker": workers,
            "compute": [1e3 * board.workers[worker][0] for worker in workers],
            "wait_data": [1e3 * board.workers[worker][1] for worker in workers],
        }
        self._head.text = _headline(board)
        lines = list(board.told)[::-1]
        self._told.text = "<br>".join(f"<code>{at:8.1f} s</code> {escape(text)}" for at, text in lines)

    # -- figures ------------------------------------------------------------------------------------------------------

    def _losses(self) -> Any:
        axes = figure(title="loss", x_axis_label="round", height=260)
        axes.line("at", "loss", source=self._rounds, color=COLOURS[1], legend_label="training")
        axes.scatter("at", "loss", source=self._epochs, color=COLOURS[0], size=8, legend_label="validation")
        return axes

    def _rates(self) -> Any:
        axes = figure(title="rows a second", x_axis_label="round", height=260)
        axes.line("at", "rate", source=self._rounds, color=COLOURS[2])
        return axes

    def _stacked(self) -> Any:
        axes = figure(title="what rounds are spent on, ms", x_axis_label="round", height=260)
        axes.vbar_stack(list(PARTS), x="at", width=0.9, source=self._parts, color=COLOURS, legend_label=list(PARTS))
        return _legend_below(axes)

    def _answers(self) -> Any:
        axes = figure(title="latest answers, ms", x_range=DataRange1d(start=0), y_range=self._rows, height=260)
        names = ["compute", "wait_data"]
        axes.hbar_stack(
            names, y="worker", height=0.7, source=self._workers, color=[COLOURS[1], COLOURS[0]], legend_label=names
        )
        return _legend_below(axes)


def _legend_below(axes: Any) -> Any:
    """Return a figure whose legend hides nothing."""
    legend = axes.legend[0]
    legend.orientation = "horizontal"
    axes.add_layout(legend, "below")
    return axes


def _headline(board: "Board") -> str:
    """Return what is to be said of a run in a line."""
    run = board.run
    assert run is not None
    done = len(board.epochs)
    epochs = f"epoch {done} of {run.epochs}" if run.epochs is not None else f"epoch {done}"
    loss = f", loss {board.rounds[-1]['loss']:.4g}" if board.rounds else ""
    facts = f"{run.parameters:,} parameters, {run.rows:,} rows, {run.shards} shards on {len(run.workers)} workers"
    return f"<b>{'ended' if board.over else 'running'}</b>: {epochs}{loss}; {facts}"
