"""Write the data set that the demonstration trains on: points in four interleaved spirals, in several Parquet files.

    python data.py FOLDER

It is made of one seed, so that every machine writes the same rows. Files differ in size, and one of them is empty, as
partitions are in real life.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import pandas as pd

ARMS = ["north", "east", "south", "west"]
CUTS = [0, 300, 4000, 4000, 9000, 9001, 13000, 16000]  # of the training rows; the third file is empty
VALIDATION = 4000


def spirals(rows: int, generator: np.random.Generator) -> pd.DataFrame:
    """Return points along four arms that turn once around the origin, with their arm as the label."""
    arm = generator.integers(len(ARMS), size=rows)
    radius = generator.uniform(0.1, 1.0, size=rows)
    angle = 2 * np.pi * (radius + arm / len(ARMS)) + generator.normal(scale=0.3, size=rows)
    return pd.DataFrame({"x": radius * np.cos(angle), "y": radius * np.sin(angle), "arm": np.array(ARMS)[arm]})


def write(frame: pd.DataFrame, cuts: list[int], folder: Path) -> None:
    """Write rows cuts[i] to cuts[i + 1] to the i-th file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
        frame.iloc[start:stop].to_parquet(folder / f"part-{number:02d}.parquet")


def main() -> None:
    """Write FOLDER/train and FOLDER/valid."""
    folder = Path(sys.argv[1])
    generator = np.random.default_rng(0)
    write(spirals(CUTS[-1], generator), CUTS, folder / "train")
    write(spirals(VALIDATION, generator), [0, VALIDATION], folder / "valid")
    print(f"wrote {CUTS[-1]} rows for training and {VALIDATION} for validation to {folder}")


if __name__ == "__main__":
    main()
