"""Train on a Slurm cluster by dask-jobqueue: ``python slurm.py job.yaml``, where jobs can be submitted.

Needs dask-jobqueue besides dasktrain. Queue, account and network interface are yours to fill in.
"""

import signal
import sys

from dask.distributed import Client
from dask_jobqueue import SLURMCluster

from dasktrain.jobs import read_job

JOBS = 4
WORKERS_PER_JOB = 8


def main() -> None:
    """Keep four jobs of eight workers running until the training is over."""
    # dask-jobqueue has Ctrl-C leave at once; as it was, a run ends with the result so far
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with (
        SLURMCluster(
            queue="batch",
            account="project",
            interface="ib0",
            cores=WORKERS_PER_JOB,
            processes=WORKERS_PER_JOB,  # as many as cores, so that each has one thread
            memory="32GiB",
            walltime="04:00:00",
            # A worker leaves before Slurm kills its job. Its work goes to the others, and the bits stay.
            worker_extra_args=["--lifetime", "225m", "--lifetime-stagger", "10m"],
            local_directory="$TMPDIR",
        ) as cluster,
        Client(cluster) as client,
    ):
        cluster.adapt(minimum_jobs=JOBS, maximum_jobs=JOBS)  # a job that is over is replaced
        client.wait_for_workers(WORKERS_PER_JOB)  # the first job; the others join when Slurm starts them
        result = read_job(sys.argv[1])(shards=JOBS * WORKERS_PER_JOB)
        result.save("model")
        print(f"digest: {result.digest}")


if __name__ == "__main__":
    main()
