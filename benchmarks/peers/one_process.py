"""No distribution at all: one process that computes with as many threads as the others have workers."""

from pathlib import Path

import torch

from benchmarks.peers.training import BATCH, WORKERS, Shuffled, model, rows_of, seconds_of_epoch


def seconds(folder: Path, warm: int) -> float:
    """Return the seconds of an epoch."""
    torch.set_num_threads(WORKERS)
    return seconds_of_epoch(model(), Shuffled(*rows_of(folder), BATCH), warm)
