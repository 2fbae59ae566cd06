"""A cluster's processes are forked off one that has done the imports that take them most of their time."""

import multiprocessing

import dask
from distributed.utils import get_mp_context

#: the first optimizer of a process loads dynamo
FIRST = ("dasktrain.trainer", "pandas", "torch._dynamo")


def fork_with(*modules: str) -> None:
    """Have processes of clusters forked off one that has imported these modules and Dask's own."""
    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    get_mp_context()  # the first call states what to import, and forgets what was stated before
    multiprocessing.set_forkserver_preload(["distributed.nanny", *modules, "tests.frozen"])
