"""Metrics as sums over rows, from which their figures follow whatever cut the rows were in.

====================================  ==========================================================================
what a user gives                     what is summed
====================================  ==========================================================================
``metric(output, target)``            its value and its weight
an object of torchmetrics             its states, which must be sums
a figure or report of scikit-learn    rows by their label and the predicted one, of which it is then computed
====================================  ==========================================================================
"""

import copy
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dasktrain.data.block import Batch, scores
from dasktrain.data.source import Encoding
from dasktrain.data.target import Labels
from dasktrain.errors import ModelError
from dasktrain.objective import Measure, measure

Floats = NDArray[np.float64]
#: what names a figure that a metric is the only one of
ONLY = ""
#: figures of scikit-learn that depend on nothing but how many rows of each label got which prediction
OF_COUNTS = frozenset(
    {
        "accuracy_score",
        "balanced_accuracy_score",
        "class_likelihood_ratios",
        "classification_report",
        "cohen_kappa_score",
        "confusion_matrix",
        "f1_score",
        "fbeta_score",
        "hamming_loss",
        "jaccard_score",
        "matthews_corrcoef",
        "precision_score",
        "recall_score",
        "zero_one_loss",
    }
)


class Metric(Protocol):
    """Turns rows into sums on a worker, and sums of all of them into figures on the driver."""

    @property
    def size(self) -> int:
        """How many sums."""

    @property
    def every_round(self) -> bool:
        """Whether a round has its figures as well, and not only an epoch."""

    def sums(self, output: Any, batch: Batch) -> Floats:
        """Return what a batch's rows add, (size,) float64."""

    def figures(self, sums: Floats) -> dict[str, float]:
        """Return name -> figure of (size,) sums; NaN of no rows."""


@dataclass(frozen=True)
class Mean:
    """A weighted mean over rows.

    Sample weights do not enter.
    """

    metric: Measure
    size = 2
    every_round = True

    def sums(self, output: Any, batch: Batch) -> Floats:
        """Return the metric's (sum, weight); see :func:`dasktrain.objective.measure`."""
        return np.array(measure(self.metric, output, batch))

    def figures(self, sums: Floats) -> dict[str, float]:
        """Return the mean."""
        total, weight = sums.tolist()
        return {ONLY: total / weight if weight else float("nan")}


@dataclass(frozen=True)
class States:
    """An object of torchmetrics whose states are sums, such as its F1Score, R2Score, or AUROC with ``thresholds=200``.

    Those of classification are given probabilities: the softmax or the sigmoid of what the module returns.

    Raises
    ------
    ModelError
        A state is a list of all rows, or no sum.
    """

    metric: Any
    size: int = field(init=False)
    every_round = False

    def __post_init__(self) -> None:
        from torchmetrics.utilities import dim_zero_sum

        metric = copy.deepcopy(self.metric)
        metric.reset()
        states = metric.metric_state
        name = type(metric).__name__
        if not states:
            raise ModelError(f"A metric must have states to sum, however {name} has none; give what it wraps")
        for state, value in states.items():
            if isinstance(value, list) or metric._reductions[state] is not dim_zero_sum:
                raise ModelError(
                    f"A metric's states must be sums, however {state!r} of {name} is not; give it thresholds=200 if "
                    "it takes them, or use result.assess()"
                )
        object.__setattr__(self, "metric", metric)
        object.__setattr__(self, "size", sum(value.numel() for value in states.values()))

    def sums(self, output: Any, batch: Batch) -> Floats:
        """Return the states after an update with a batch alone."""
        output, target = scores(output), batch.target
        if output.shape == (batch.rows, 1) and target.ndim == 1:
            output = output[:, 0]
        if type(self.metric).__module__.startswith("torchmetrics.classification"):
            # By itself it takes scores between 0 and 1 for probabilities, and so those of some shards alone.
            is_one_label = output.ndim > 1 and output.shape[1] > 1 and target.ndim == 1
            output = output.softmax(dim=1) if is_one_label else output.sigmoid()
        self.metric.to(output.device)
        self.metric.reset()
        self.metric.update(output, target)
        states = [state.flatten().double().cpu() for state in self.metric.metric_state.values()]
        return np.asarray(torch.cat(states).numpy())

    def figures(self, sums: Floats) -> dict[str, float]:
        """Return what it computes from summed states: a number for every element, key and entry."""
        metric, first = self.metric.to("cpu"), 0
        metric.reset()
        for name, state in metric.metric_state.items():
            last = first + state.numel()
            setattr(metric, name, torch.from_numpy(sums[first:last].copy()).to(state.dtype).reshape(state.shape))
            first = last
        metric._update_count = 1  # or it warns
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes without rows
            return dict(_numbers(metric.compute()))


@dataclass(frozen=True)
class Counted:
    """A figure or report of scikit-learn, from how many rows of each label got which prediction.

    Parameters
    ----------
    function
        ``function(y_true, y_pred, sample_weight=...)`` of ``sklearn.metrics``, one of `OF_COUNTS`.
    labels
        Of classes, in the order of their numbers.
    """

    function: Callable[..., Any]
    labels: tuple[Any, ...]
    every_round = False

    @property
    def size(self) -> int:
        """Pairs of labels."""
        return len(self.labels) ** 2

    def sums(self, output: Any, batch: Batch) -> Floats:
        """Return the confusion matrix, row by row."""
        output, target = scores(output), batch.target
        if output.ndim > 1 and output.shape[1] > 1:
            predicted = output.argmax(dim=1)
        else:
            predicted = (output.reshape(len(output)) > 0).long()
        if predicted.shape != target.shape:
            raise ModelError(
                f"There must be one predicted label a row, however the output is {tuple(output.shape)} and the target "
                f"{tuple(target.shape)}"
            )
        pairs = target.long() * len(self.labels) + predicted
        return np.asarray(torch.bincount(pairs, minlength=self.size).double().cpu().numpy())

    def figures(self, sums: Floats) -> dict[str, float]:
        """Compute it from one pair of labels for each that occurs, weighted by how often."""
        pairs = np.flatnonzero(sums)
        if not len(pairs):
            return {}
        labels = np.array(self.labels)
        true, predicted = labels[pairs // len(labels)], labels[pairs % len(labels)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of labels that were never predicted
            return dict(_numbers(self.function(true, predicted, sample_weight=sums[pairs])))


def metric_of(metric: Any, encoding: Encoding) -> Metric:
    """Return how a metric of a user's is summed.

    Raises
    ------
    ModelError
        Its figures do not follow from sums.
    """
    torchmetrics = sys.modules.get("torchmetrics")  # not there, so it is none of its
    if torchmetrics is not None and isinstance(metric, torchmetrics.Metric):
        return States(metric)
    function = metric
    while isinstance(function, partial):
        function = function.func
    if not str(getattr(function, "__module__", "")).startswith("sklearn.metrics"):
        return Mean(metric)
    name = function.__name__
    if name not in OF_COUNTS:
        raise ModelError(
            f"A metric of scikit-learn must follow from predicted labels, however {name} does not; use one of "
            "torchmetrics', or result.assess()"
        )
    if not isinstance(encoding.target, Labels):
        raise ModelError(f"{name} must be of class labels, however these data have none; use a metric of numbers")
    if name == "classification_report":
        metric = partial(metric, output_dict=True)
    return Counted(metric, encoding.target.values)


def metrics_of(metrics: Mapping[str, Any], encoding: Encoding) -> dict[str, Metric]:
    """Return how each of a user's metrics is summed."""
    return {name: metric_of(metric, encoding) for name, metric in metrics.items()}


def figures_of(metrics: Mapping[str, Metric], sums: Floats, every_round: bool = False) -> dict[str, float]:
    """Return the figures of all metrics, given their sums one after the other: of rounds, or of all rows."""
    found: dict[str, float] = {}
    first = 0
    for name, metric in metrics.items():
        last = first + metric.size
        if metric.every_round or not every_round:
            parts = metric.figures(sums[first:last])
            found |= {f"{name}_{part}" if part else name: value for part, value in parts.items()}
        first = last
    return found


def _numbers(value: Any, name: str = ONLY) -> Iterator[tuple[str, float]]:
    """Yield every number of what was computed, named by its keys and places."""
    if isinstance(value, Mapping):
        entries = value.items()
    elif (isinstance(value, Tensor | np.ndarray) and value.ndim) or isinstance(value, list | tuple):
        entries = enumerate(value)  # type: ignore[assignment]
    elif value is not None:
        yield name, float(value)
        return
    else:
        return
    for key, entry in entries:
        yield from _numbers(entry, f"{name}_{key}" if name else str(key))
