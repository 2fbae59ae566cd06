"""What needs a Kubernetes: takes the keywords of dask-kubernetes, and starts workers here instead of pods."""

from typing import Any

from distributed import LocalCluster
from distributed.cli import dask_worker


class KubeCluster(LocalCluster):
    """Refuses what the real one would, and a worker's command that Dask does not know."""

    def __init__(
        self,
        *,
        name: str,
        n_workers: int,
        worker_command: list[str],
        namespace: str | None = None,
        image: str | None = None,
        resources: dict[str, dict[str, str]] | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        words = [*worker_command, "--name", f"{name}-worker", "tcp://scheduler:8786"]  # as the operator goes on
        assert words[:2] == ["dask", "worker"]
        found: dict[str, Any] = dask_worker.main.make_context("worker", words[2:]).params
        assert set(resources or {}) <= {"limits", "requests"}
        super().__init__(n_workers=min(2, n_workers), threads_per_worker=found["nthreads"], dashboard_address=":0")
