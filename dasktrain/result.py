"""What a run leaves: the trained module, how to feed it, and what happened."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dasktrain.assessment import BINS, Assessment, assess
from dasktrain.balancing import Balance
from dasktrain.checkpoint import save_state
from dasktrain.coordinator import Timing
from dasktrain.data.saved import with_function
from dasktrain.data.source import Encoding, Source
from dasktrain.driver import Driver
from dasktrain.evaluate import evaluate
from dasktrain.export import export
from dasktrain.generate import generate
from dasktrain.local import LocalModel
from dasktrain.observe import History
from dasktrain.optimizers import MakeOptimizer
from dasktrain.pictures import Picture, plot
from dasktrain.predict import predict
from dasktrain.profiling import draw
from dasktrain.report import report
from dasktrain.shipping import shipped
from dasktrain.state import TrainState, digest_of, named_state
from dasktrain.stored import Stored, not_saved
from dasktrain.vector import trainable


@dataclass(frozen=True)
class Result:
    """A trained model.

    Attributes
    ----------
    model : nn.Module
        On the CPU, in evaluation mode.
    history : History
        One dict per epoch; ``history.rounds`` has one per round; ``history.to_frame()`` is a DataFrame.
    encoding : Encoding
        How columns become the model's inputs, and its outputs labels.
    digest : str
        Hex sha256 over names, dtypes, shapes and bytes of parameters, buffers and optimizer state.
    settings : dict
        What the digest depends on, besides the data and the model: shards, seed, batch size, threads, ...
    ended : str
        "epochs", "max_rounds", "observer" or "interrupt".
    ship : tuple of str
        Packages whose code goes along to workers that predict.
    happened : tuple of (float, str)
        What became of workers: seconds since the driver began, and what was told of them.
    """

    model: nn.Module
    history: History
    encoding: Encoding
    digest: str
    settings: dict[str, Any]
    ended: str
    ship: tuple[str, ...]
    _tensors: dict[str, Tensor] = field(repr=False)
    happened: tuple[tuple[float, str], ...] = field(repr=False, default=())
    _timings: tuple[Timing, ...] = field(repr=False, default=())

    @staticmethod
    def of(
        state: TrainState, encoding: Encoding, driver: Driver, ship: tuple[str, ...], balance: Balance | None
    ) -> "Result":
        """Take over the state of a run that ended."""
        state.parameters.release()
        plan = driver.plan
        settings = {
            "run": driver.run.id,
            "shards": plan.shards,
            "threads": driver.run.threads,
            "workers": len(driver.run.workers),
            "batch_size": plan.batch_size,
            "seed": plan.seed,
            "partition": plan.partition,
            "shuffle": plan.shuffle,
            "window": plan.window,
            "torch": torch.__version__,
        }
        settings |= {"grouped": True} if plan.grouped else {}
        settings |= {} if balance is None else {"balance": str(balance)}
        # Copies, so that training the model on does not change what is saved.
        tensors = {name: tensor.clone() for name, tensor in named_state(state.module, state.optimizer)}
        return Result(
            state.module.eval(),
            driver.run.history,
            encoding,
            digest_of(tensors.items()),
            settings,
            driver.ended,
            ship,
            tensors,
            tuple(driver.coordinator.happened),
            tuple(driver.coordinator.timings),
        )

    def predict(self, data: Any) -> Any:
        """Return labels or numbers for every row, lazily.

        Parameters
        ----------
        data
            Dask or pandas DataFrame with the columns trained on (others are ignored); Dask or NumPy array if
            the model was trained on Arrays; also a Series, a Dask Bag or a list of texts if it was trained
            on Text.

        Returns
        -------
        dask.dataframe.Series, dask.dataframe.DataFrame or dask.array.Array
            Named like the target, with the index and partitions of `data`. A DataFrame for several targets.
        """
        with shipped(self.ship):
            return predict(self.model, self.encoding, data, "prediction")

    def predict_proba(self, data: Any) -> Any:
        """Return the probability of each class for every row, lazily: one column a class, in sorted order."""
        with shipped(self.ship):
            return predict(self.model, self.encoding, data, "probability")

    def generate(self, texts: Any, **settings: Any) -> Any:
        """Go on with texts, or turn them into others, lazily; see :func:`dasktrain.generate.generate`."""
        with shipped(self.ship):
            return generate(self.model, self.encoding, texts, **settings)

    def evaluate(self, data: Source, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Return each metric over a data set; see :func:`dasktrain.evaluate.evaluate`."""
        with shipped(self.ship):
            return evaluate(self.model, self.encoding, data, metrics)

    def assess(self, data: Source, bins: int = BINS) -> Assessment:
        """Count on the cluster how a classifier does: confusion, ROC, precision and recall, calibration.

        See :func:`dasktrain.assessment.assess`.
        """
        with shipped(self.ship):
            return assess(self.model, self.encoding, data, bins)

    @property
    def timings(self) -> tuple[Timing, ...]:
        """When each worker answered, and how long it took; none of a result that was loaded."""
        return self._timings

    def profile(self) -> Any:
        """Draw where the time went: rounds as stacked bars by part, and the work of each worker.

        Returns
        -------
        matplotlib.figure.Figure
            ``figure.savefig("profile.png")``. The parts are those of :class:`dasktrain.History`. Of a result that was
            loaded there is no work by worker.
        """
        return draw(self.history, self._timings)

    def plot(self, what: Picture = "curves", data: Source | None = None) -> Any:
        """Draw something of the run; needs ``pip install 'dasktrain[plot]'``.

        Parameters
        ----------
        what
            ``"curves"``: loss and metrics by epoch. ``"timeline"``: when each worker computed, and what became of them.
            ``"confusion"`` and ``"calibration"``: of a classifier, on `data`.
        data
            Of the kind the run was trained on.

        Returns
        -------
        matplotlib.figure.Figure
            ``figure.savefig("curves.png")``.

        Raises
        ------
        BadInput
            There is nothing to draw, or no data.
        """
        return plot(self, what, data)

    def report(self, path: str, data: Source | None = None) -> None:
        """Write a page that says all of the run: see :func:`dasktrain.report.report`."""
        report(self, path, data)

    def continued(self, make_optimizer: MakeOptimizer) -> MakeOptimizer:
        """Return what makes optimizers that go on from where this run's ended.

        Parameters
        ----------
        make_optimizer
            As :class:`dasktrain.Trainer` takes it, of the same kind.

        Examples
        --------
        ``dt.Trainer(result.model, loss, result.continued(make_optimizer)).fit(more_data)``
        """
        kept: dict[str, dict[str, Tensor]] = {name: {} for name in trainable(self.model)}
        for name, tensor in self._tensors.items():
            kind, _, rest = name.partition("/")
            parameter, _, key = rest.rpartition("/")
            if kind == "optimizer" and parameter in kept:
                kept[parameter][key] = tensor
        return partial(_go_on, make_optimizer, list(kept.values()))

    def to_local(self) -> LocalModel:
        """Return the model with its encoders, for where Dask is not installed; see :class:`dasktrain.LocalModel`."""
        return LocalModel(copy.deepcopy(self.model), self.encoding)

    def export(self, url: str) -> None:
        """Write the model for others to run, as the suffix says; see :func:`dasktrain.export.export`."""
        export(self.model, self.encoding, self.digest, url)

    def save(self, url: str) -> None:
        """Write model, optimizer state, encoding and history to a directory (any fsspec URL), atomically."""
        facts = {
            "digest": self.digest,
            "ended": self.ended,
            "ship": list(self.ship),
            "settings": self.settings,
            "encoding": self.encoding.to_json(),
            "happened": self.happened,
            "history": {"epochs": list(self.history), "rounds": self.history.rounds},
        }
        save_state(str(url), self._tensors, facts)


def load(url: str, model: Any, tokenizer: Callable[[str], Sequence[int]] | None = None) -> Result:
    """Read what :meth:`Result.save` wrote. Nothing is unpickled.

    Parameters
    ----------
    url
        Where it was saved.
    model
        A module of the same architecture (its parameters are overwritten), or a callable given the Schema.
    tokenizer
        The function that texts were tokenised by, if it was one: functions are not saved.

    Raises
    ------
    BadInput
        There is nothing complete there.
    ModelError
        The module has other parameters than the saved one.
    """
    stored = Stored.read(url)
    encoding = stored.encoding if tokenizer is None else with_function(stored.encoding, tokenizer)
    facts = stored.facts
    try:
        settings, ended, ship = facts["settings"], facts["ended"], tuple(facts["ship"])
        history = History(facts["history"]["epochs"], facts["history"]["rounds"])
        happened = tuple((float(at), str(text)) for at, text in facts["happened"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise not_saved(url, error) from error
    module = stored.filled(model, encoding.schema)
    return Result(module, history, encoding, stored.digest, settings, ended, ship, stored.tensors, happened)


def _go_on(make_optimizer: MakeOptimizer, kept: list[dict[str, Tensor]], parameters: list[nn.Parameter]) -> Optimizer:
    optimizer = make_optimizer(parameters)
    for parameter, state in zip(parameters, kept, strict=True):
        optimizer.state[parameter] = {key: tensor.clone() for key, tensor in state.items()}
    return optimizer
