"""scikit-learn's default scores of rows on a cluster, summed there: nothing but sums comes here."""

from functools import reduce
from typing import Any, NamedTuple

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasktrain.data.encoders import floats
from dasktrain.data.tokenised import run_each

Floats = NDArray[np.float64]


class Sums(NamedTuple):
    """Of a stretch of rows, with their weights; (targets,) but for the weight."""

    weight: float
    mean: Floats
    deviations: Floats  # squared, from that mean
    errors: Floats  # squared

    @staticmethod
    def of(target: Floats, predicted: Floats, weight: Floats) -> "Sums":
        """Sum (rows, targets) and (rows,)."""
        total = float(weight.sum())
        column = weight[:, None]
        mean = (column * target).sum(axis=0) / total if total else np.zeros(target.shape[1])
        return Sums(
            total, mean, (column * (target - mean) ** 2).sum(axis=0), (column * (target - predicted) ** 2).sum(axis=0)
        )

    def merged(self, other: "Sums") -> "Sums":
        """Merge with those of more rows (Chan, Golub and LeVeque, as encoders do)."""
        total = self.weight + other.weight
        delta, share = other.mean - self.mean, other.weight / total if total else 0.0
        between = delta**2 * self.weight * share
        return Sums(
            total, self.mean + delta * share, self.deviations + other.deviations + between, self.errors + other.errors
        )


def score(frame: dd.DataFrame, predicted: Any, targets: list[str], weight: str | None, labels: bool) -> float:
    """Return the share of rows all of whose labels are predicted, or the mean of R² over targets.

    Parameters
    ----------
    frame
        Has the targets and the weight, if there is one.
    predicted
        Dask Series or DataFrame with its partitions.
    """
    with dask.config.set({"optimization.tune.active": False}):
        tasks = run_each(_sums, (targets, weight, labels), frame.to_delayed(), predicted.to_delayed())
    total = reduce(Sums.merged, dask.compute(*tasks))
    if labels:
        return float(total.mean[0])
    shares = np.divide(total.errors, total.deviations, out=np.ones(len(targets)), where=total.deviations > 0)
    return float(np.where(total.errors == 0, 1.0, 1.0 - shares).mean())


def _sums(targets: list[str], weight: str | None, labels: bool, frame: pd.DataFrame, predicted: Any) -> Sums:
    truth, found = frame[targets].to_numpy(), np.asarray(predicted).reshape(len(frame), len(targets))
    weights = np.ones(len(frame)) if weight is None else floats(frame[weight])
    if labels:
        return Sums.of((truth == found).all(axis=1)[:, None].astype(np.float64), np.ones((len(frame), 1)), weights)
    return Sums.of(truth.astype(np.float64), found.astype(np.float64), weights)
