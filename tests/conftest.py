"""The harness is hostile: a test that leaks a thread, a child process or a changed torch setting fails."""

import multiprocessing
import threading
from collections.abc import Iterator
from time import monotonic

import pytest
import torch

PATIENCE = 10.0  # seconds for what a test started to end
#: threads that libraries start once a process and never end
LASTING = ("Dask-Offload", "Dask-Callback", "Profile", "IO loop", "AsyncProcess", "asyncio", "ThreadPoolExecutor", "TCP-Executor")


@pytest.fixture(autouse=True)
def nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that leaves a thread of ours, a process, or another torch state behind."""
    shared = "cluster" in request.fixturenames or "clusters" in request.fixturenames
    threads = set(threading.enumerate())
    children = set(multiprocessing.active_children())
    settings = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    yield
    assert settings == (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
    deadline = monotonic() + PATIENCE
    for thread in set(threading.enumerate()) - threads:
        if thread.name.startswith("dasktrain") or not (shared or thread.name.startswith(LASTING)):
            thread.join(max(0.0, deadline - monotonic()))
            assert not thread.is_alive(), f"leaked thread {thread.name}"
    if not shared:
        for child in set(multiprocessing.active_children()) - children:
            child.join(max(0.0, deadline - monotonic()))
            assert not child.is_alive(), f"leaked process {child}"
