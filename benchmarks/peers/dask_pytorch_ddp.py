"""dask-pytorch-ddp: DistributedDataParallel in a task on each Dask worker, fed by a DataLoader as in its README."""

from pathlib import Path

from dask.distributed import Client, LocalCluster
from dask_pytorch_ddp import dispatch

from benchmarks.peers.ddp_dataloader import train
from benchmarks.peers.training import WORKERS


def seconds(folder: Path, warm: int) -> float:
    """Return the seconds of an epoch, of the worker that took longest."""
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        return max(client.gather(dispatch.run(client, train, folder=folder, warm=warm, backend="gloo")))
