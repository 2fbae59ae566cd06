"""Data and models of the benchmarks."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import nn

COLUMNS = 28


def write_table(folder: Path, rows: int, partitions: int) -> Path:
    """Write a Parquet table of float64 columns and a 0/1 label, one file a partition, with little memory."""
    folder.mkdir(parents=True)
    for number in range(partitions):
        rng = np.random.default_rng(number)
        count = rows // partitions + (number < rows % partitions)
        frame = pd.DataFrame(rng.normal(size=(count, COLUMNS)), columns=[f"x{place}" for place in range(COLUMNS)])
        frame["label"] = (frame.x0 * frame.x1 > 0).astype("int8")
        frame.to_parquet(folder / f"part-{number:04d}.parquet")
    return folder


def mlp(inputs: int, width: int, outputs: int) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


class Step(NamedTuple):
    """One step of an MLP of two hidden layers, with so many rows a worker."""

    name: str
    inputs: int
    width: int
    outputs: int
    rows: int

    def model(self) -> nn.Module:
        """Build it."""
        return mlp(self.inputs, self.width, self.outputs)


STEPS = (
    Step("4k", 28, 48, 2, 64),
    Step("0.8M", 100, 840, 10, 128),
    Step("9.4M", 100, 3010, 10, 256),
    Step("54.6M", 100, 7333, 10, 64),
)


def rows_for(case: Step, workers: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a worker's rows: enough for 40 steps of other rows each."""
    rng = np.random.default_rng(rank)
    count = 40 * case.rows
    return rng.normal(size=(count, case.inputs)).astype(np.float32), rng.integers(0, case.outputs, count)
