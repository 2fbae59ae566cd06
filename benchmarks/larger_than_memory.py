"""A table of four times the workers' memory: rows a second of its second epoch, and of the same with memory enough.

2 workers of one thread. `LIMIT` is the memory limit of each; a worker that has done nothing but import torch, pandas
and dasktrain takes 370 MB of it, and Dask begins to put data on the disk at 70 %. Rows are wide, so that the table is
large and an epoch short: float32 columns in uncompressed Parquet, an MLP 512-128-128-2, AdamW, batches of 1024 rows,
`shards=2`. What counts is the second epoch. That no worker was restarted shows by its process being the same.
"""

import os
import tempfile
from argparse import ArgumentParser
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import psutil
import torch
from dask.distributed import Client, LocalCluster
from dask.utils import parse_bytes
from torch import nn

import dasktrain as dt
from benchmarks.measure import write
from benchmarks.memory import peak, resident
from benchmarks.problems import mlp

WORKERS, LIMIT, TIMES = 2, "1GB", 4
COLUMNS, WIDTH, BATCH = 512, 128, 1024
#: rows of a partition, 8 MB, and those that are shuffled among each other: what a replica reads from in a round
PARTITION, WINDOW = 4096, 16_384
#: other workers' partitions that a replica may keep; what it may by default is more than such a worker has
CACHE = "64MiB"


def write_wide(folder: Path, size: int) -> int:
    """Write a table that takes so many bytes in memory; return its rows."""
    folder.mkdir()
    partitions = max(WORKERS, size // (PARTITION * COLUMNS * 4))
    for number in range(partitions):
        rng = np.random.default_rng(number)
        columns = rng.standard_normal((COLUMNS, PARTITION), dtype=np.float32)
        frame = pd.DataFrame({f"x{place}": column for place, column in enumerate(columns)})
        frame["label"] = (columns[0] * columns[1] > 0).astype("int8")
        frame.to_parquet(folder / f"part-{number:04d}.parquet", compression=None, use_dictionary=False)
    return partitions * PARTITION


def disk_of(dask_worker: Any) -> tuple[int, int]:
    """Return the bytes that a worker has on the disk, and has read of files and sockets so far."""
    data, counters = dask_worker.data, psutil.Process().io_counters()
    held = int(data.spilled_total.disk) if hasattr(data, "spilled_total") else 0
    return held, int(counters.read_chars)


class Disk(dt.Observer):
    """Asks workers at the end of each epoch what they have on the disk, and have read from it."""

    def __init__(self, client: Client) -> None:
        self.most, self.read = 0, [0]
        self._client = client

    def epoch(self, record: dict[str, Any]) -> None:
        held, read = map(sum, zip(*self._client.run(disk_of).values(), strict=True))
        self.most = max(self.most, held)
        self.read.append(read)


def trained(table: Path, limit: str) -> dict[str, Any]:
    """Train for two epochs on workers with a memory limit, "0" for none, and return what was seen."""
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set({"dasktrain.cache": CACHE}),
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, memory_limit=limit, local_directory=folder, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        client.run(resident)
        processes, disk = client.run(os.getpid), Disk(client)
        adamw = partial(torch.optim.AdamW, lr=1e-3)
        trainer = dt.Trainer(lambda _: mlp(COLUMNS, WIDTH, 2), nn.CrossEntropyLoss(), adamw, observers=[disk])
        data = dt.Table(dd.read_parquet(table), target="label")
        result = trainer.fit(data, epochs=2, batch_size=BATCH, shards=WORKERS, window=WINDOW, client=client)
        return {
            "rows/s, by epoch": [round(record["rows_per_second"]) for record in result.history],
            "largest resident sizes, MB": [round(size / 1e6) for size in client.run(peak).values()],
            "on the disk, MB": round(disk.most / 1e6),
            "read of files and sockets, MB, by epoch": [round(size / 1e6) for size in np.diff(disk.read)],
            "workers restarted": len(processes.items() - client.run(os.getpid).items()),
            "digest": result.digest,
        }


def run(limit: str, times: float) -> None:
    """Measure and write."""
    size = int(times * WORKERS * parse_bytes(limit))
    with tempfile.TemporaryDirectory() as folder:
        rows = write_wide(Path(folder) / "table", size)
        found = {"limited": trained(Path(folder) / "table", limit), "unlimited": trained(Path(folder) / "table", "0")}
    rates = {name: each["rows/s, by epoch"][1] for name, each in found.items()}
    write(
        "larger_than_memory",
        {
            "rows": rows,
            "table, MB": round(rows * COLUMNS * 4 / 1e6),
            "memory limit of each worker": limit,
            **found,
            "digests": "equal" if len({each["digest"] for each in found.values()}) == 1 else "NOT EQUAL",
            "second epoch, limited / unlimited": round(rates["limited"] / rates["unlimited"], 3),
            "goal": ">= 0.7; no worker restarted",
        },
    )


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--limit", default=LIMIT, help="memory limit of a worker")
    parser.add_argument("--times", type=float, default=TIMES, help="the table, in memory limits of all workers")
    run(**vars(parser.parse_args()))
