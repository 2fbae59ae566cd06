"""Trainer and Result: the public way in."""

import multiprocessing
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from functools import partial
from numbers import Integral
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from distributed import Client, LocalCluster
from torch import nn

from dasktrain.balancing import Balance
from dasktrain.compression import Compression, checked
from dasktrain.compute import Compute
from dasktrain.data.source import Schema, Source
from dasktrain.errors import BadInput, known_keywords
from dasktrain.fitting import Determinism, Fitting, Settings
from dasktrain.folds import Fold
from dasktrain.keras_module import adapted_loss
from dasktrain.objective import Measure
from dasktrain.observe import PARTS, Observer
from dasktrain.observers.progress import Progress
from dasktrain.optimizers import MakeOptimizer, MakeScheduler, Optimizers
from dasktrain.plan import Partitioning, Shuffle
from dasktrain.players import Players
from dasktrain.remote import launch, obeying
from dasktrain.result import Result
from dasktrain.shipping import check_shipped, shipped
from dasktrain.strategies import GradientAveraging, Strategy
from dasktrain.topology import Reduction
from dasktrain.wire import Wire
from dasktrain.wire.dask import DaskWire

T = TypeVar("T")
#: names that records of the history have for something else
RESERVED = (
    *("epoch", "round", "rounds", "rows", "loss", "learning_rate", "seconds", "rows_per_second", "gradient_norm"),
    *PARTS,
)
#: where to train; None: see :meth:`Trainer.fit`
Where: TypeAlias = Client | Wire | None
Model = nn.Module | Callable[[Schema], nn.Module]


class Trainer:
    """How to train: a model, a loss, an optimizer, and who watches.

    Parameters
    ----------
    model
        A module (copied, yours is left alone), or a callable given the data's :class:`Schema` that returns one; it is
        called with torch seeded by the run's seed. Keras 3 models of the torch backend are trained as they are. The
        module is called with the data's inputs in order: ``model(numeric)``, ``model(categorical)`` or ``model(numeric,
        categorical)`` for a Table, ``model(X)`` for Arrays; Text and Records say how theirs is.
    loss
        ``loss(output, target)``: a mean, one value a row, or (sum, weight); see
        :class:`dasktrain.objective.Objective`. Several players that train the model against each other, such as a
        generator and its critic: a mapping from the name of a part of the model (an attribute that is a module) to the
        loss that this part's parameters are stepped by. All losses are given what the model returned. The history has
        ``<player>_loss`` of each, and their sum as ``loss``.
    optimizer
        Called with the parameters that require gradients, for example ``partial(torch.optim.AdamW, lr=1e-3)``. Any
        torch optimizer that steps without a closure. Embeddings that are ``sparse=True`` take one that steps the rows
        they touch, such as SparseAdam; :class:`dasktrain.Optimizers` has another step the rest. Several players have
        one each, in a mapping with the names of `loss`.
    metrics
        Name -> ``metric(output, target)``, returning what a loss may; or an object of torchmetrics whose states are
        sums; or a figure or report of ``sklearn.metrics`` that follows from predicted labels, with ``partial`` for its
        settings, such as ``partial(f1_score, average="macro")``. All are summed exactly over shards. Those of the
        latter two kinds are computed once an epoch; what has several figures has them as ``name_key``.
    observers
        Who watches, in order; the history is kept in any case.
    strategy
        What is made of gradients: ``GradientAveraging(clip_norm=1.0)`` clips them, ``DiLoCo(steps=100)`` sends few.
    scheduler
        Called with the optimizer, for example ``partial(torch.optim.lr_scheduler.StepLR, step_size=10)``.
        ReduceLROnPlateau is given ``valid_loss``, or ``loss`` without validation data.
    schedule_every
        Whether the scheduler steps once a round or once an epoch.
    groups
        ``groups(module)`` returns parameter groups for the optimizer.
    compute
        Device, rows at once, precision, compilation; None: all of a shard's rows, float32, a GPU if a worker has one.
    turns
        The players in the order in which they step within a round, each on its rows and from what the one before has
        made; one that is named several times steps several times. None: each once, in the order of `loss`.
    compression
        How what is sent is made small, such as ``dt.PowerSGD()``; None: it is sent as it is.

    Raises
    ------
    UnknownKeyword
        With the nearest name.

    Examples
    --------
    >>> import pandas as pd
    >>> import torch
    >>> from functools import partial
    >>> import dasktrain as dt
    >>> table = dt.Table(pd.DataFrame({"x": [0.0, 1.0, 2.0, 3.0], "y": [0.0, 2.0, 4.0, 6.0]}), target="y")
    >>> trainer = dt.Trainer(nn.Linear(1, 1), nn.MSELoss(), partial(torch.optim.SGD, lr=0.1), observers=[])
    >>> result = trainer.fit(table, epochs=3, batch_size=2, client=dt.LocalWire())
    >>> len(result.history)
    3
    """

    @known_keywords
    def __init__(
        self,
        model: Model,
        loss: Measure | Mapping[str, Measure],
        optimizer: MakeOptimizer | Mapping[str, MakeOptimizer],
        metrics: Mapping[str, Any] | None = None,
        observers: Sequence[Observer] | None = None,
        strategy: Strategy | None = None,
        scheduler: MakeScheduler | None = None,
        schedule_every: Literal["round", "epoch"] = "epoch",
        groups: Callable[[nn.Module], Iterable[Any]] | None = None,
        compute: Compute | None = None,
        turns: Sequence[str] | None = None,
        compression: Compression | None = None,
    ) -> None:
        if schedule_every not in ("round", "epoch"):
            raise BadInput(f'schedule_every must be "round" or "epoch", however it is {schedule_every!r}')
        self.players = Players.of(adapted_loss(loss), turns)
        for name, value in (("model", model), *_each("loss", loss), *_each("optimizer", optimizer)):
            if not callable(value):
                raise BadInput(f"{name} must be callable, however it is {type(value)}")
        for name in dict(metrics or {}):
            if name in RESERVED or name in self.players.figures:
                raise BadInput(f"A metric must not be named like a figure of the history, however one is {name!r}")
        self.model = model
        self.optimizer = _one_optimizer(optimizer, self.players)
        self.metrics = dict(metrics or {})
        self.observers: list[Observer] = [Progress()] if observers is None else list(observers)
        self.strategy: Strategy = strategy or GradientAveraging()
        self.scheduler = scheduler
        self.schedule_every: Literal["round", "epoch"] = schedule_every
        self.groups = groups
        self.compute = compute or Compute()
        self.compression = checked(compression)

    @known_keywords
    def fit(
        self,
        data: Source,
        validation: Source | Fold | None = None,
        epochs: int | None = None,
        batch_size: int = 1024,
        shards: int | None = None,
        seed: int = 0,
        client: Where = None,
        max_rounds: int | None = None,
        partition: Partitioning = "block",
        shuffle: Shuffle = "shard",
        window: int = 65_536,
        resume: str | None = None,
        determinism: Determinism = "strict",
        driver: Literal["auto", "client", "cluster"] = "auto",
        ship: Sequence[str] = (),
        balance: Balance | None = None,
        reduction: Reduction = "auto",
    ) -> Result:
        """Train on the workers of a cluster and return the trained model.

        The result depends on the data and its partitioning, the model, the seed, these settings and `shards`,
        and not on how many workers there are.

        Parameters
        ----------
        data
            A Table, Arrays, Text or Records.
        validation
            More of the same columns, or a :class:`dasktrain.Fold` of `data`, evaluated after every epoch.
        epochs
            Passes over the data; None: 10, or without limit if `max_rounds` is given.
        batch_size
            Rows of a round at most, over all workers.
        shards
            Logical data-parallel ranks; None: the larger of 8 and the next power of two >= workers.
        seed
            Of initial parameters (of a model that is a callable), shuffling and dropout.
        client
            A Dask Client, or a wire such as :class:`dasktrain.LocalWire`. None: the current client, or a
            LocalCluster of our own with one thread a worker, closed afterwards.
        max_rounds
            Rounds to stop after.
        partition, shuffle, window
            How rows are dealt to shards and in which order they are read; see :class:`dasktrain.plan.Plan`.
        resume
            URL a :class:`dasktrain.Checkpoint` wrote to: go on from its newest complete state, on any number of
            workers, with the same plan, model and data. `epochs` and `max_rounds` count from the run's beginning.
        determinism
            ``"strict"``: workers whose bits would differ (another CPU kernel path, torch build or thread count) get
            no work, and are named. ``"off"``: they all do, and the result can depend on who computed what.
        driver
            Where rounds are driven. ``"client"``: in this process. ``"cluster"``: in a task on a worker; the run
            outlives this process (:func:`dasktrain.attach` finds it again) and, with a :class:`dasktrain.Checkpoint`,
            goes on from the newest one if that worker dies. Observers run there whose `runs_on` is "driver".
            ``"auto"``: here, unless no worker can be reached from here.
        ship
            Packages and modules that are installed here and not on the workers, whose code is sent along, such as
            ``["mypkg"]``. That of your script, notebook and own files is in any case. What they import within
            functions is not.
        balance
            What is done about rare classes, such as ``dt.balance.Oversample()``; see :mod:`dasktrain.balance`.
        reduction
            How parameters and gradients travel; no result depends on it. ``"flat"``: all through the driver's link.
            ``"sharded"``: each host adds up a part of the gradient, steps that part of the parameters if it is quicker,
            and passes it on: no link carries more than about twice the parameters a round in each direction.
            ``"tree"``: each adds up what two others send, in fewer messages. Both take workers on 2 or more hosts that
            can connect to each other. ``"auto"``: what takes least time at the bandwidth found at the start, which an
            observer's `stage` is told. Workers of one host add up there first in any case.

        Returns
        -------
        Result
            Also after a keyboard interrupt, which ends the run after the round under way.

        Raises
        ------
        BadInput
            Before the first round; the cluster is as it was.
        RunError
            During the run: no worker left, a loss that is NaN, a module that raised.
        """
        check_sources(data, validation)
        if driver not in (choices := ("auto", "client", "cluster")):
            raise BadInput(f"driver must be one of {choices}, however it is {driver!r}")
        settings = settings_of(
            epochs,
            batch_size,
            shards,
            seed,
            max_rounds,
            partition,
            shuffle,
            window,
            resume,
            determinism,
            ship,
            balance,
            reduction,
        )
        fitting = Fitting(self, data, validation, settings)
        with shipped(settings.ship), wire_of(client) as wire:
            if driver == "cluster" or (driver == "auto" and isinstance(wire, DaskWire) and not wire.reachable()):
                if not isinstance(wire, DaskWire):
                    raise BadInput(f'driver="cluster" must have a Dask cluster, however client is {wire}')
                return launch(fitting, wire.client).result()
            return driven(wire, lambda stop: fitting.prepare(wire, stop).run)


def _each(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return a thing by its name, or those that a mapping has by names of their own."""
    return (
        [(f"{name}[{key!r}]", each) for key, each in value.items()] if isinstance(value, Mapping) else [(name, value)]
    )


def _one_optimizer(optimizer: MakeOptimizer | Mapping[str, MakeOptimizer], players: Players) -> MakeOptimizer:
    """Return what makes one optimizer of those of all players."""
    names = list(optimizer) if isinstance(optimizer, Mapping) else [""]
    if set(names) != set(players.losses):
        raise BadInput(
            f"Every player must have a loss and an optimizer, however losses are of {list(players.losses)} and "
            f"optimizers of {names}; give both as mappings with the same names"
        )
    return partial(Optimizers, makers=optimizer) if isinstance(optimizer, Mapping) else optimizer


def driven(wire: Wire, prepare: Callable[[threading.Event], Callable[[], T]]) -> T:
    """Prepare a run here and drive it beside this thread, until it ends or someone asks it to; close the wire."""
    stop = threading.Event()
    try:
        with ExitStack() as during:
            if isinstance(wire, DaskWire):
                during.enter_context(obeying(wire.run, wire.client, stop))
            return _in_thread(prepare(stop), stop)
    finally:
        wire.close()


def settings_of(
    epochs: int | None = None,
    batch_size: int = 1024,
    shards: int | None = None,
    seed: int = 0,
    max_rounds: int | None = None,
    partition: Partitioning = "block",
    shuffle: Shuffle = "shard",
    window: int = 65_536,
    resume: str | None = None,
    determinism: Determinism = "strict",
    ship: Sequence[str] = (),
    balance: Balance | None = None,
    reduction: Reduction = "auto",
) -> Settings:
    """Check what :meth:`Trainer.fit` was asked for."""
    if determinism not in (choices := ("strict", "off")):
        raise BadInput(f"determinism must be one of {choices}, however it is {determinism!r}")
    if reduction not in (ways := get_args(Reduction)):
        raise BadInput(f"reduction must be one of {ways}, however it is {reduction!r}")
    if not isinstance(balance, Balance | None):
        raise BadInput(f"balance must be one of dt.balance, such as Oversample(), however it is {balance!r}")
    check_shipped(ship)
    return Settings(
        _whole("epochs", 10 if epochs is None and max_rounds is None else epochs),
        _whole("batch_size", batch_size),
        _whole("shards", shards),
        seed,
        _whole("max_rounds", max_rounds),
        partition,
        shuffle,
        window,
        resume,
        determinism,
        tuple(ship),
        balance,
        reduction,
    )


def check_sources(data: Source, validation: Source | Fold | None) -> None:
    """Raise BadInput naming what is no data set of ours."""
    for name, source in {"data": data, "validation": None if isinstance(validation, Fold) else validation}.items():
        if source is not None and not hasattr(source, "survey"):
            kind = type(source).__name__
            raise BadInput(f"{name} must be a dt.Table, Arrays, Text or Records, however it is a {kind}; wrap it")


def _whole(name: str, value: T) -> T:
    """Return a count as a Python integer; None stays None."""
    if value is None:
        return value
    if not isinstance(value, Integral) or value < 1:
        raise BadInput(f"{name} must be a whole number and at least 1, however it is {value}")
    return int(value)  # type: ignore[return-value]


@contextmanager
def wire_of(client: Where) -> Iterator[Wire]:
    """Turn what the caller has into a wire; end only what was started here."""
    client = client or current_client()
    if client is None:
        _check_guarded()
        with (
            LocalCluster(threads_per_worker=1, dashboard_address=":0") as cluster,
            Client(cluster) as own,
        ):
            yield DaskWire(own)
        return
    yield DaskWire(client) if isinstance(client, Client) else client


def _check_guarded() -> None:
    """Raise BadInput in a process that a cluster is starting, which reads the script that started the cluster."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself finds it out
        raise BadInput(
            'A script that starts a cluster must do so below if __name__ == "__main__":, however this one does it '
            "where its own cluster's processes read it as well; move it there, or give client=dt.LocalWire()"
        )


def current_client() -> Client | None:
    """Return the current Dask client, if there is one."""
    try:
        return Client.current()
    except ValueError:
        return None


def _in_thread(work: Callable[[], T], stop: threading.Event) -> T:
    """Run `work` beside this thread; a first KeyboardInterrupt sets `stop` and waits, a second is raised.

    Rounds then never stop half-way, and a notebook's event loop does not get in the way of the driver's.
    """
    done: Future[T] = Future()

    def target() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    context = copy_context()  # knows what is shipped
    threading.Thread(target=context.run, args=(target,), name="dasktrain-driver", daemon=True).start()
    while True:
        try:
            return done.result()
        except KeyboardInterrupt:
            if stop.is_set():
                raise
            stop.set()
