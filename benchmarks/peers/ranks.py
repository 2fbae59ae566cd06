"""Processes of one thread each that form a gloo group, as ``torchrun`` would start them on one host."""

import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
import torch.distributed as dist

from benchmarks.peers.training import WORKERS


def on_ranks(function: Callable[..., float], *arguments: object) -> list[float]:
    """Call a function on every rank, all at once; return what they return."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(WORKERS, get_context("spawn")) as processes:
        meeting = f"file://{folder}/meeting"
        calls = [processes.submit(_call, meeting, rank, function, arguments) for rank in range(WORKERS)]
        return [call.result() for call in calls]


def _call(meeting: str, rank: int, function: Callable[..., float], arguments: tuple[object, ...]) -> float:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORKERS)
    try:
        return function(*arguments)
    finally:
        dist.destroy_process_group()
