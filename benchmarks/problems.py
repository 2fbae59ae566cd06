"""Data and models of the benchmarks."""

from pathlib import Path

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
