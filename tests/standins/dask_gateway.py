"""Stands in for dask-gateway 2026.3.0, which needs a server: a cluster of this machine, in its words."""

from typing import Any

from distributed import Client, LocalCluster


class GatewayCluster(LocalCluster):
    """Has no worker until it is scaled."""

    def __init__(self) -> None:
        super().__init__(n_workers=0, threads_per_worker=1, dashboard_address=":0")

    def get_client(self, set_as_default: bool = True) -> Client:
        """Return a client of it."""
        return Client(self, set_as_default=set_as_default)


class Gateway:
    """Has clusters to give."""

    def __init__(self, address: str | None = None, proxy_address: str | None = None, auth: Any = None) -> None:
        assert address is None or address.startswith(("http://", "https://"))

    def new_cluster(self, cluster_options: Any = None, shutdown_on_close: bool = True) -> GatewayCluster:
        """Start one."""
        return GatewayCluster()
