"""How good a classifier is on a data set, from counts that are taken where its rows lie; no row comes to the client."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import dask
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import digamma, expit  # type: ignore[import-untyped]
from torch import Tensor, nn

from dasktrain.data.block import Block, Collate, batches, call, scores
from dasktrain.data.source import Encoding, Source, check_surveys
from dasktrain.data.target import Indicators, Labels
from dasktrain.data.tokenised import run_each
from dasktrain.errors import BadInput

#: rows per forward pass; bins of the log-odds, and how far these reach: odds of 1 to 485 million
ROWS, BINS, REACH = 1024, 10_000, 20.0
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


class Binned(NamedTuple):
    """A figure computed from bins; without them it would be within `error` of `value`."""

    value: float
    error: float


@dataclass(frozen=True)
class Assessment:
    """Counts of labels, and of the scores they got.

    Scores are log-odds, ``log(p / (1 - p))``, in bins of one width: with 10,000 of them a bin's probabilities differ by
    0.4% of the lesser of p and 1 - p. Counts are exact, and the same for any partitioning and any number of workers.

    Attributes
    ----------
    labels : tuple
        The classes, or the names of indicators that a row may have several of.
    counted : ndarray
        (labels, 2, bins) int64: rows that are not, and are, of each label, by the score they got for it.
    matrix : ndarray or None
        (labels, labels) int64: rows by their label and the predicted one; None for indicators.
    log_loss : float
        Mean negative log-likelihood in nats; for indicators summed over them.
    brier : float
        Mean squared difference of probabilities and outcomes, summed over labels (Brier, 1950); for two classes it is
        twice that of scikit-learn, which looks at one of them.
    """

    labels: tuple[Any, ...]
    counted: Counts = field(repr=False)
    matrix: Counts | None = field(repr=False)
    log_loss: float
    brier: float

    # -- predictions --------------------------------------------------------------------------------------

    @property
    def confusion(self) -> pd.DataFrame:
        """Rows by their label (down) and the predicted one (across)."""
        if self.matrix is None:
            raise BadInput("A confusion matrix must be of classes, however rows may have several of these labels")
        return pd.DataFrame(
            self.matrix, pd.Index(self.labels, name="label"), pd.Index(self.labels, name="predicted"), copy=True
        )

    def report(self) -> pd.DataFrame:
        """Return precision, recall, f1 and support of each label, and their means, as scikit-learn's report.

        The last rows are ``"accuracy"`` (classes only), ``"macro avg"`` and ``"weighted avg"``. 0 where there is
        nothing to divide by.
        """
        right, predicted, support = self._decisions()
        columns = {
            "precision": _ratio(right, predicted),
            "recall": _ratio(right, support),
            "f1": _ratio(2 * right, predicted + support),
        }
        frame = pd.DataFrame(columns | {"support": support}, index=pd.Index(self.labels, name="label", dtype=object))
        total = int(support.sum())
        means = {
            "macro avg": [float(column.mean()) for column in columns.values()],
            "weighted avg": [float(_ratio((column * support).sum(), total)) for column in columns.values()],
        }
        if self.matrix is not None:
            means = {"accuracy": [float(_ratio(right.sum(), total))] * 3} | means
        for name, values in means.items():
            frame.loc[name] = [*values, total]
        return frame.astype({"support": np.int64})

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the labels that occur."""
        right, _, support = self._decisions()
        return float((right[support > 0] / support[support > 0]).mean())

    def _decisions(self) -> tuple[Counts, Counts, Counts]:
        """Return how many rows of each label were found, how many were said to be, and how many are."""
        if self.matrix is not None:
            return np.diag(self.matrix), self.matrix.sum(axis=0), self.matrix.sum(axis=1)
        said = self.counted[:, :, self.counted.shape[2] // 2 :].sum(axis=2)
        return said[:, 1], said.sum(axis=1), self.counted[:, 1].sum(axis=1)

    # -- scores -------------------------------------------------------------------------------------------

    def roc(self, label: Any = None) -> pd.DataFrame:
        """Return false_positive_rate and true_positive_rate of rows whose probability is at least ``threshold``."""
        negative, positive = self._falling(label)
        rates = {"false_positive_rate": negative, "true_positive_rate": positive}
        return self._curve({name: _ratio(np.cumsum(each), each.sum()) for name, each in rates.items()}, [0.0, 0.0])

    def roc_auc(self, label: Any = None) -> Binned:
        """Return the area below `roc`: how often a row of a label scores higher than one that is not; ties count half.

        Rows of one bin are ties, so that the error is half of the pairs that share one.
        """
        negative, positive = self._falling(label)
        pairs = float(positive.sum()) * float(negative.sum())
        ties = float((positive * negative.astype(np.float64)).sum()) / 2
        above = np.cumsum(positive) - positive
        return Binned(*_ratio(np.array([(above * negative.astype(np.float64)).sum() + ties, ties]), pairs).tolist())

    def precision_recall(self, label: Any = None) -> pd.DataFrame:
        """Return precision and recall of rows whose probability is at least ``threshold``."""
        negative, positive = self._falling(label)
        found, false = np.cumsum(positive), np.cumsum(negative)
        return self._curve(
            {"precision": _ratio(found, found + false, 1.0), "recall": _ratio(found, positive.sum())}, [1.0, 0.0]
        )

    def average_precision(self, label: Any = None) -> Binned:
        """Return the area below `precision_recall`: the mean, over rows of a label, of the precision at their score.

        The error is what any order of the rows of each bin could change.
        """
        negative, positive = (each.astype(np.float64) for each in self._falling(label))
        found, false = np.cumsum(positive), np.cumsum(negative)
        before = found - positive
        value = (positive * _ratio(found, found + false)).sum()
        # Row i of a bin has precision (before + i) / (before + i + false); sums of 1 / (x + i) are digammas.
        most, least = (
            (positive - wrong * (digamma(found + wrong + 1) - digamma(before + wrong + 1))).sum()
            for wrong in (false - negative, false)
        )
        total = positive.sum()
        return Binned(*_ratio(np.array([value, max(most - value, value - least)]), total).tolist())

    def calibration(self, label: Any = None, bins: int = 10) -> pd.DataFrame:
        """Return what the probabilities of a label are worth, by ranges of them.

        Returns
        -------
        pandas.DataFrame
            ``from``, ``to``: a range of probabilities, as near to one in `bins` as bins of scores allow; ``rows``;
            ``probability``, their mean to within a bin of scores; ``frequency``, the share of rows that are of the
            label. Ranges without rows are left out.
        """
        if bins < 1:
            raise BadInput(f"bins must be at least 1, however they are {bins}")
        negative, positive = self._of(label)
        edges, middles = expit(_edges(len(positive))), expit(_middles(len(positive)))
        rows = negative + positive
        fine = {"from": edges[:-1], "to": edges[1:], "rows": rows, "sum": rows * middles, "hits": positive}
        ranges = pd.DataFrame(fine).groupby(np.minimum((middles * bins).astype(int), bins - 1))
        frame = ranges.agg({"from": "first", "to": "last", "rows": "sum", "sum": "sum", "hits": "sum"})
        frame = frame[frame["rows"] > 0].reset_index(drop=True)
        return frame.assign(probability=frame["sum"] / frame["rows"], frequency=frame["hits"] / frame["rows"]).drop(
            columns=["sum", "hits"]
        )

    def _of(self, label: Any) -> tuple[Counts, Counts]:
        """Return how many rows that are not, and are, of a label each bin has; None: the last of two labels."""
        if label is None and len(self.labels) == 2:
            label = self.labels[1]
        if label not in self.labels:
            raise BadInput(f"label must be one of {self.labels}, however it is {label!r}")
        negative, positive = self.counted[self.labels.index(label)]
        return negative, positive

    def _falling(self, label: Any) -> tuple[Counts, Counts]:
        negative, positive = self._of(label)
        return negative[::-1], positive[::-1]

    def _curve(self, columns: dict[str, Floats], start: list[float]) -> pd.DataFrame:
        """Return a curve by falling thresholds, from where no row is said to be of the label."""
        thresholds = expit(_edges(self.counted.shape[2])[:-1])[::-1]
        frame = pd.DataFrame({"threshold": thresholds, **columns})
        first = pd.DataFrame([[math.inf, *start]], columns=frame.columns)
        return pd.concat([first, frame], ignore_index=True)


def assess(module: nn.Module, encoding: Encoding, data: Source, bins: int = BINS, rows: int = ROWS) -> Assessment:
    """Assess a classifier on all rows of a data set.

    Parameters
    ----------
    module, encoding
        Of a training run.
    data
        Of the kind the run was trained on, with its target. Sample weights do not enter.
    bins
        Of scores, an even number; more of them make `Binned` errors smaller.
    rows
        Of a forward pass.

    Raises
    ------
    BadInput
        The target is no label, or `data` is not of the kind trained on.
    """
    target = encoding.target
    if not isinstance(target, Labels | Indicators):
        raise BadInput("What is assessed must predict labels, however these are none; use evaluate with metrics")
    if bins < 2 or bins % 2:
        raise BadInput(f"bins must be an even number, so that none has both decisions, however they are {bins}")
    source = data.staged(lambda tasks: list(dask.persist(*tasks)))
    surveys = dask.compute(*source.survey())
    check_surveys(surveys, "assessed", target)
    source.sample(encoding, surveys, 1)  # refuses what does not fit
    labels = target.values if isinstance(target, Labels) else target.names
    bound = (module.eval(), encoding.collate, len(labels), isinstance(target, Labels), bins, rows)
    found = dask.compute(*run_each(_count, bound, source.convert(encoding, surveys, by_class=False)))
    counted, matrix, sums = (sum(parts) for parts in zip(*found, strict=True))
    total = int(counted[0].sum())
    if not total:
        raise BadInput("There must be rows to assess, however there is none")
    loss, brier = (sums / total).tolist()
    return Assessment(tuple(labels), counted, matrix if isinstance(target, Labels) else None, loss, brier)


def _count(
    module: nn.Module, collate: Collate, labels: int, exclusive: bool, bins: int, rows: int, block: Block
) -> tuple[Counts, Counts, Floats]:
    """Return one partition's counts by bin, its confusion matrix, and its sums of losses and squares."""
    counted, matrix = np.zeros((labels, 2, bins), dtype=np.int64), np.zeros((labels, labels), dtype=np.int64)
    sums = np.zeros(2)
    with torch.no_grad():
        for batch in batches(block, collate, rows):
            odds = _log_odds(scores(call(module, batch.inputs)), labels, exclusive).numpy()
            target = np.asarray(batch.target)
            hits = np.eye(labels, dtype=bool)[target] if exclusive else target.reshape(odds.shape) > 0.5
            place = np.clip((odds + REACH) / (2 * REACH) * bins, 0, bins - 1).astype(np.int64)
            label = np.broadcast_to(np.arange(labels), odds.shape)
            np.add.at(counted, (label, hits.astype(np.int64), place), 1)
            if exclusive:
                np.add.at(matrix, (target, odds.argmax(axis=1)), 1)
            sums += _losses(odds, hits, exclusive)
    return counted, matrix, sums


def _log_odds(output: Tensor, labels: int, exclusive: bool) -> Tensor:
    """Return log(p / (1 - p)) of each label, (rows, labels) float64."""
    output = output.double()
    if not exclusive:
        return output.reshape(len(output), labels)
    if output.ndim == 1 or output.shape[1] == 1:  # the logit of the second of two
        logit = output.reshape(-1, 1)
        return torch.cat([-logit, logit], dim=1)
    own = torch.eye(labels, dtype=torch.bool)
    others = output[:, None, :].masked_fill(own, -math.inf).logsumexp(dim=2)  # (rows, labels, labels) -> others of each
    return output - others


def _losses(odds: Floats, hits: NDArray[np.bool_], exclusive: bool) -> Floats:
    """Sum the negative log-likelihood and the squared differences of all rows."""
    surprise = np.logaddexp(0.0, np.where(hits, -odds, odds))  # -log of the probability of what is
    loss = surprise[hits].sum() if exclusive else surprise.sum()
    return np.array([loss, ((expit(odds) - hits) ** 2).sum()])


def _edges(bins: int) -> Floats:
    """Return the log-odds between which bins lie, (bins + 1,); the outermost bins hold all beyond them."""
    return np.linspace(-REACH, REACH, bins + 1)


def _middles(bins: int) -> Floats:
    edges = _edges(bins)
    return (edges[1:] + edges[:-1]) / 2


def _ratio(value: Any, whole: Any, nothing: float = 0.0) -> Any:
    """Divide; `nothing` where there is nothing to divide by."""
    value, whole = np.asarray(value, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(
        value, whole, out=np.full(np.broadcast_shapes(value.shape, whole.shape), nothing), where=whole != 0
    )
