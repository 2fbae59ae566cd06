"""Means over a whole data set, computed where it lies."""

from collections.abc import Mapping
from typing import Any

import dask
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dasktrain.data.block import Block, Collate, batches, call
from dasktrain.data.source import Encoding, Source, check_surveys
from dasktrain.data.tokenised import run_each
from dasktrain.metrics import Metric, figures_of, metrics_of
from dasktrain.objective import detached

#: rows per forward pass
ROWS = 64


def evaluate(
    module: nn.Module, encoding: Encoding, data: Source, metrics: Mapping[str, Any], rows: int = ROWS
) -> dict[str, float]:
    """Return each metric over all rows of `data`; a metric that returns (sum, weight) has its own denominator.

    Parameters
    ----------
    module, encoding
        Of a training run.
    data
        Of the kind the run was trained on.
    metrics
        As :class:`dasktrain.Trainer` takes them.
    rows
        Of a forward pass; it changes results by rounding only.
    """
    source = data.staged(lambda tasks: list(dask.persist(*tasks)))
    surveys = dask.compute(*source.survey())
    check_surveys(surveys, "evaluated", encoding.target)
    source.sample(encoding, surveys, 1)  # refuses what does not fit
    summed = metrics_of(metrics, encoding)
    bound = (module.eval(), encoding.collate, summed, rows)
    found = dask.compute(*run_each(_sums, bound, source.convert(encoding, surveys, by_class=False)))
    return figures_of(summed, np.array([np.zeros(_size(summed)), *found]).sum(axis=0))


def _sums(
    module: nn.Module, collate: Collate, metrics: Mapping[str, Metric], rows: int, block: Block
) -> NDArray[np.float64]:
    """Return each metric's sums over one partition, one after the other."""
    totals = np.zeros(_size(metrics))
    with torch.no_grad():
        for batch in batches(block, collate, rows):
            output = call(module, batch.inputs)
            found = [metric.sums(detached(output), batch) for metric in metrics.values()]
            totals += np.concatenate([np.zeros(0), *found])
    return totals


def _size(metrics: Mapping[str, Metric]) -> int:
    """Return how many sums all metrics have."""
    return sum(metric.size for metric in metrics.values())
