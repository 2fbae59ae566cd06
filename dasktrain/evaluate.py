"""Means over a whole data set, computed where it lies."""

import math
from collections.abc import Mapping

import dask
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dasktrain.data.block import Block, Collate, batches, call
from dasktrain.data.source import Encoding, Source, check_surveys
from dasktrain.data.tokenised import run_each
from dasktrain.objective import Measure, detached, measure

#: rows per forward pass
ROWS = 64


def evaluate(
    module: nn.Module, encoding: Encoding, data: Source, metrics: Mapping[str, Measure], rows: int = ROWS
) -> dict[str, float]:
    """Return each metric's mean over all rows of `data`; a metric that returns (sum, weight) has its own denominator.

    Parameters
    ----------
    module, encoding
        Of a training run.
    data
        Of the kind the run was trained on.
    metrics
        Name -> ``metric(output, target)``.
    rows
        Of a forward pass; it changes results by rounding only.
    """
    source = data.staged(lambda tasks: list(dask.persist(*tasks)))
    surveys = dask.compute(*source.survey())
    check_surveys(surveys, "evaluated", encoding.target)
    source.sample(encoding, surveys, 1)  # refuses what does not fit
    bound = (module.eval(), encoding.collate, dict(metrics), rows)
    found = dask.compute(*run_each(_sums, bound, source.convert(encoding, surveys, by_class=False)))
    totals = np.array([np.zeros((len(metrics), 2)), *found]).sum(axis=0)
    sums = zip(metrics, totals.tolist(), strict=True)
    return {name: total / weight if weight else math.nan for name, (total, weight) in sums}


def _sums(
    module: nn.Module, collate: Collate, metrics: Mapping[str, Measure], rows: int, block: Block
) -> NDArray[np.float64]:
    """Return each metric's sum and weight over one partition, (metrics, 2)."""
    totals = np.zeros((len(metrics), 2))
    with torch.no_grad():
        for batch in batches(block, collate, rows):
            output = call(module, batch.inputs)
            totals += [measure(metric, detached(output), batch) for metric in metrics.values()]
    return totals
