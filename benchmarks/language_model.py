"""A language model of 4 layers x 256, context 256, bytes: tokens a second on 2 workers, on 1, and by PyTorch DDP.

DDP runs on gloo with 2 processes of one thread each and a packed loader written by hand: same rows, model, optimizer
and global batch. All three take turns.
"""

import os
import socket
import sysconfig
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import dask.bag as db
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from dask.distributed import Client, LocalCluster
from torch.nn.parallel import DistributedDataParallel

import dasktrain as dt
from benchmarks.measure import spread, write
from dasktrain.models import Decoder

CONTEXT, BATCH, VOCABULARY = 256, 16, 259
ROUNDS, WARM, TURNS = 8, 2, 5
TOKENS = CONTEXT * BATCH
adamw = partial(torch.optim.AdamW, lr=1e-3)


def documents() -> list[str]:
    """Return some of the standard library's sources."""
    folder = Path(sysconfig.get_path("stdlib"))
    return [path.read_text(errors="replace") for path in sorted(folder.glob("*.py"))[:60]]


def model() -> Decoder:
    """Return the model, the same each time."""
    torch.manual_seed(0)
    return Decoder(VOCABULARY, layers=4, width=256, heads=4, context=CONTEXT)


def ours(client: Client, workers: int) -> tuple[list[float], str]:
    """Return the seconds of rounds, and the digest."""
    names = sorted(client.nthreads())
    data = dt.Text(db.from_sequence(documents(), npartitions=8), context=CONTEXT)
    trainer = dt.Trainer(model(), dt.text.cross_entropy, adamw, observers=[])
    assert len(names) == workers
    result = trainer.fit(data, batch_size=BATCH, max_rounds=ROUNDS + WARM, client=client)
    return [record["seconds"] for record in result.history.rounds[WARM:]], result.digest


def _rank(rank: int, port: int, queue: Any) -> None:
    """Be one of DDP's processes."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    stream = np.array([token for text in documents() for token in [*text.encode(), 258]], dtype=np.int16)
    rows = np.lib.stride_tricks.sliding_window_view(stream, CONTEXT + 1)[::CONTEXT]
    order = np.random.default_rng(0).permutation(len(rows))
    module = DistributedDataParallel(model())
    optimizer = adamw(module.parameters())
    seconds = []
    for round in range(ROUNDS + WARM):
        started = perf_counter()
        chosen = order[round * BATCH : (round + 1) * BATCH][rank::2]
        tokens = torch.from_numpy(rows[chosen].astype(np.int64))
        optimizer.zero_grad()
        scores = module(tokens[:, :-1])
        torch.nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        seconds.append(perf_counter() - started)
    if rank == 0:
        queue.put(seconds[WARM:])
    dist.destroy_process_group()


def ddp() -> list[float]:
    """Return the seconds of DDP's rounds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = processes.get_context("spawn").SimpleQueue()
    processes.spawn(_rank, (port, queue), nprocs=2)
    found: list[float] = queue.get()
    return found


def run() -> None:
    """Measure and write."""
    seconds: dict[str, list[list[float]]] = {"2 workers": [], "1 worker": [], "DDP": []}
    digests = set()
    for _ in range(TURNS):
        for workers, name in ((2, "2 workers"), (1, "1 worker")):
            with (
                LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
                Client(cluster) as client,
            ):
                found, digest = ours(client, workers)
                seconds[name].append(found)
                digests.add(digest)
        seconds["DDP"].append(ddp())
    medians = {name: np.array([np.median(turn) for turn in turns]) for name, turns in seconds.items()}
    write(
        "language_model",
        {
            "parameters": sum(parameter.numel() for parameter in model().parameters()),
            "tokens a round": TOKENS,
            **{
                f"{name}, tokens/s": spread([TOKENS / second for turn in turns for second in turn])
                for name, turns in seconds.items()
            },
            "2 workers / 1 worker": spread((medians["1 worker"] / medians["2 workers"]).tolist()),
            "2 workers / DDP": spread((medians["DDP"] / medians["2 workers"]).tolist()),
            "digests on 1 and 2 workers": "equal" if len(digests) == 1 else "NOT EQUAL",
            "goal": "2 workers / 1 worker >= 1.6; 2 workers / DDP >= 1",
        },
    )


if __name__ == "__main__":
    run()
