"""Stands in for dask-cuda, which needs GPUs: takes some of its keywords, and starts workers that have none."""

from typing import Any

from distributed import LocalCluster


class LocalCUDACluster(LocalCluster):
    """Has one worker, as on a machine with one GPU."""

    def __init__(
        self,
        CUDA_VISIBLE_DEVICES: str | list[int] | None = None,
        n_workers: int | None = None,
        threads_per_worker: int = 1,
        memory_limit: Any = "auto",
        device_memory_limit: Any = 0.8,
    ) -> None:
        super().__init__(
            n_workers=n_workers or 1,
            threads_per_worker=threads_per_worker,
            memory_limit=memory_limit,
            dashboard_address=":0",
        )
