"""PyTorch's DistributedDataParallel on gloo: two processes with one thread each, rows at hand in memory."""

import json
import os
import socket
import subprocess
import sys
from contextlib import closing
from functools import partial
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from benchmarks.problems import Step, rows_for


def steps(case: Step, optimizer: str, count: int, warm: int, workers: int = 2) -> list[float]:
    """Return the seconds of each step, of the process that took longest over all."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", __spec__.name, json.dumps([*case, optimizer, count + warm, workers])]
    processes = [
        subprocess.Popen([*command, str(rank)], env=environment, stdout=subprocess.PIPE, text=True)
        for rank in range(workers)
    ]
    try:
        seconds = [json.loads(process.communicate(timeout=900)[0])[warm:] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return max(seconds, key=sum)


def run(case: Step, optimizer: str, count: int, workers: int, rank: int) -> list[float]:
    """Be one of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=workers)
    X, y = map(torch.from_numpy, rows_for(case, workers, rank))
    model = DistributedDataParallel(case.model())
    stepper: Any = partial(getattr(torch.optim, optimizer), lr=1e-3)(model.parameters())
    seconds = []
    for step in range(count):
        started = perf_counter()
        rows = torch.arange(case.rows) + step * case.rows % (len(X) - case.rows)
        stepper.zero_grad()
        F.cross_entropy(model(X[rows]), y[rows]).backward()
        stepper.step()
        seconds.append(perf_counter() - started)
    dist.destroy_process_group()
    return seconds


if __name__ == "__main__":
    *named, optimizer, count, workers = json.loads(sys.argv[1])
    print(json.dumps(run(Step(*named), optimizer, count, workers, int(sys.argv[2]))))
