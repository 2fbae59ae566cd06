"""DistributedDataParallel on gloo with batches vectorised by hand: each rank's rows in memory, gathered by an index."""

from pathlib import Path

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.peers.ranks import on_ranks
from benchmarks.peers.training import SHARE, WORKERS, Shuffled, model, rows_of, seconds_of_epoch


def seconds(folder: Path, warm: int) -> float:
    """Return the seconds of an epoch, of the rank that took longest."""
    return max(on_ranks(train, folder, warm))


def train(folder: Path, warm: int) -> float:
    """Be one of the ranks."""
    batches = Shuffled(*rows_of(folder, dist.get_rank(), WORKERS), SHARE)
    return seconds_of_epoch(DistributedDataParallel(model()), batches, warm)
