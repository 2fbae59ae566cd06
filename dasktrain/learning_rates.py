"""Which learning rate a trainer can do with: a run through many of them (Smith, 2017, arXiv 1506.01186)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dasktrain.data.source import Source
from dasktrain.errors import BadInput, NonFinite
from dasktrain.observe import Observer, Record
from dasktrain.trainer import Trainer, Where

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: rounds of which a loss is the mean, and how many are needed at least
WINDOW, FEWEST = 5, 10
#: times the least loss that ends the run
DIVERGED = 4.0
#: settings of a fit that a run through learning rates decides
DECIDED = ("epochs", "max_rounds", "resume", "driver", "validation")


@dataclass(frozen=True)
class LearningRates:
    """How the loss went while the learning rate rose.

    Attributes
    ----------
    frame : pandas.DataFrame
        One row a round: ``learning_rate``, ``loss``, and ``smooth``, the mean loss of the rounds around it.
    suggestion : float or None
        Where the smooth loss falls fastest over the logarithm of the rate; None if it falls nowhere.
    """

    frame: pd.DataFrame = field(repr=False)
    suggestion: float | None

    def plot(self) -> "Figure":
        """Draw the loss over the learning rate.

        Raises
        ------
        ImportError
            matplotlib is not installed: ``pip install 'dasktrain[plot]'``.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.semilogx(self.frame["learning_rate"], self.frame["loss"], color="#bbbbbb", label="loss")
        axes.semilogx(self.frame["learning_rate"], self.frame["smooth"], color="#7570b3", label="smooth")
        if self.suggestion is not None:
            axes.axvline(self.suggestion, color="#d95f02", label=f"suggestion {self.suggestion:.2g}")
        axes.set_xlabel("learning rate")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        return figure


def find_learning_rate(
    trainer: Trainer,
    data: Source,
    smallest: float = 1e-6,
    largest: float = 1.0,
    rounds: int = 100,
    client: Where = None,
    **settings: Any,
) -> LearningRates:
    """Train for some rounds whose learning rate rises from `smallest` to `largest`, by one factor a round.

    It ends early once the loss is several times its least or not finite. Trainer and model are left as they are; the
    trainer's scheduler and observers take no part. The curve is the same on any number of workers. Parameter groups
    keep the ratios of their learning rates; `smallest` and `largest` are those of the first.

    Parameters
    ----------
    trainer, data, client
        As for a fit.
    smallest, largest
        Learning rates.
    rounds
        Of the whole way.
    settings
        Others of ``fit``: ``batch_size``, ``shards``, ``seed``, ``partition``, ``shuffle``, ``window``,
        ``determinism``, ``ship``, ``balance``.

    Raises
    ------
    BadInput
        Before the first round; or the loss was not finite before there was anything to see.
    RunError
        As ``fit`` raises it.

    Examples
    --------
    ``dt.find_learning_rate(trainer, data, batch_size=256).suggestion``
    """
    if not 0 < smallest < largest or rounds < FEWEST:
        raise BadInput(
            f"There must be 0 < smallest < largest and at least {FEWEST} rounds, however they are {smallest}, "
            f"{largest} and {rounds}"
        )
    for name in DECIDED:
        if name in settings:
            raise BadInput(f"A run through learning rates decides {name} by itself, however it is given; leave it out")
    sweep = _Sweep()
    trial = copy.copy(trainer)
    trial.observers = [sweep]
    trial.schedule_every = "round"
    trial.scheduler = partial(_rising, smallest=smallest, factor=(largest / smallest) ** (1 / (rounds - 1)))
    try:
        trial.fit(data, max_rounds=rounds, client=client, driver="client", **settings)
    except NonFinite as error:
        if len(sweep.records) < FEWEST:
            raise BadInput(
                f"The loss must be finite for {FEWEST} rounds, however it was for {len(sweep.records)}; choose a "
                f"smaller learning rate to begin with than {smallest:g}"
            ) from error
    return _seen(sweep.records)


def _rising(optimizer: Optimizer, smallest: float, factor: float) -> LambdaLR:
    """Return a schedule whose rate rises by a factor a step, whatever the optimizer's own is."""
    first = float(optimizer.param_groups[0]["lr"])
    if not first > 0:
        raise BadInput(f"The optimizer must have a learning rate above 0, however it is {first}; give it any")
    return LambdaLR(optimizer, lambda done: smallest / first * factor**done)


class _Sweep(Observer):
    """Keeps the rounds, and ends the run once the loss has risen for good."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._least = np.inf

    def round(self, record: Record) -> bool:
        """Compare the latest rounds with the best."""
        self.records.append(record)
        if len(self.records) < FEWEST:
            return False
        latest = float(np.mean([each["loss"] for each in self.records[-WINDOW:]]))
        self._least = min(self._least, latest)
        return latest > DIVERGED * self._least


def _seen(records: Sequence[Record]) -> LearningRates:
    """Look for the steepest fall."""
    frame = pd.DataFrame(records)[["learning_rate", "loss"]]
    frame["smooth"] = frame["loss"].rolling(WINDOW, center=True, min_periods=1).mean()
    slope = np.gradient(frame["smooth"].to_numpy(), np.log(frame["learning_rate"].to_numpy()))
    steepest = int(slope.argmin())
    rate = float(frame["learning_rate"].iloc[steepest])
    return LearningRates(frame, rate if slope[steepest] < 0 else None)
