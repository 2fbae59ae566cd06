"""DistributedDataParallel on gloo as most write it: a shuffling DataLoader over a TensorDataset of each rank's rows."""

from pathlib import Path

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.ranks import on_ranks
from benchmarks.peers.training import SHARE, WORKERS, model, rows_of, seconds_of_epoch


def seconds(folder: Path, warm: int) -> float:
    """Return the seconds of an epoch, of the rank that took longest."""
    return max(on_ranks(train, folder, warm))


def train(folder: Path, warm: int) -> float:
    """Be one of the ranks."""
    rows = TensorDataset(*rows_of(folder, dist.get_rank(), WORKERS))
    # its own processes would have to share the two cores with the ranks
    batches = DataLoader(rows, batch_size=SHARE, shuffle=True)
    return seconds_of_epoch(DistributedDataParallel(model()), batches, warm)
