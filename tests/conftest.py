"""The harness is hostile: a test that leaks a thread, a child process or a changed torch setting fails."""

import multiprocessing
import threading
from collections.abc import Iterator
from importlib import import_module
from time import monotonic

import dask
import hypothesis
import pytest
import torch
from distributed import Client, LocalCluster

from tests.forking import FIRST, fork_with
from tests.leftovers import assert_left, left_on

# A cluster's processes are forked off one that has imported all this: importing it anew took half of all tests' time.
# Processes that import it themselves are tested in cluster/test_processes.py.
fork_with(*FIRST)

# A test does not fail for being slow: that is what benchmarks are for.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

PATIENCE = 10.0  # seconds for what a test started to end
#: threads that libraries start once a process and never end
LASTING = (
    "Dask-Offload",
    "Dask-Callback",
    "Profile",
    "IO loop",
    "QueueFeeder",
    "AsyncProcess",
    "asyncio",
    "ThreadPoolExecutor",
    "TCP-Executor",
)


def pytest_collection_finish() -> None:
    """Keep what is imported by now out of every search for garbage."""
    import_module("tests.frozen")


@pytest.fixture(autouse=True)
def nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that leaves a thread of ours, a process, or another torch state behind."""
    shared = {"cluster", "contract"} & set(request.path.parts)
    threads = set(threading.enumerate())
    children = set(multiprocessing.active_children())
    settings = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    scheduler = dask.config.get("scheduler", None)
    yield
    assert settings == (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
    assert scheduler == dask.config.get("scheduler", None)
    deadline = monotonic() + PATIENCE
    for thread in set(threading.enumerate()) - threads:
        if thread.name.startswith("dasktrain") or not (shared or thread.name.startswith(LASTING)):
            thread.join(max(0.0, deadline - monotonic()))
            assert not thread.is_alive(), f"leaked thread {thread.name}"
    if not shared:
        for child in set(multiprocessing.active_children()) - children:
            child.join(max(0.0, deadline - monotonic()))
            assert not child.is_alive(), f"leaked process {child}"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Client]:
    """Two workers that tests must leave as they found them."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def clean(cluster: Client) -> Iterator[Client]:
    """Assert that the test leaves no task, handler, topic or thread of ours on the shared cluster."""
    before = left_on(cluster)
    yield cluster
    assert_left(cluster, before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Have torch use one thread in this process, as the workers of tests do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
