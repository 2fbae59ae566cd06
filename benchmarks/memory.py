"""Memory of ingesting a table, on the workers and on the driver.

Workers: the peak resident size from before the run (torch and pandas already imported by a tiny run) to ready
replicas, over the worker's share of the tensors. Driver: its peak over numbers of rows, in a process each.
"""

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import dask.dataframe as dd
import torch
from dask.distributed import Client, LocalCluster
from torch import nn

import dasktrain as dt
from benchmarks.measure import write
from benchmarks.problems import COLUMNS, mlp, write_table

PARTITIONS, WORKERS = 32, 2


def fit(folder: Path, client: Client) -> None:
    """Go from Parquet to ready replicas and one round."""
    trainer = dt.Trainer(mlp(COLUMNS, 64, 2), nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=0.01), observers=[])
    trainer.fit(dt.Table(dd.read_parquet(folder), target="label"), batch_size=1024, max_rounds=1, client=client)


def resident() -> int:
    """Return this process's resident size in bytes, and start measuring its peak anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def peak() -> int:
    """Return this process's largest resident size since `resident`, or since it started, in bytes.

    Not ru_maxrss: that begins with the size of the process that started this one.
    """
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def one_run(rows: int, folder: str) -> dict[str, object]:
    """Return the figures of a run in this process."""
    with LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as c:
        fit(write_table(Path(folder) / "tiny", 1000, 4), c)
        # by value: workers do not have this module
        before = list(c.run(resident).values())
        fit(Path(folder) / "table", c)
        after = list(c.run(peak).values())
    share = rows * (COLUMNS * 4 + 4) / WORKERS
    return {
        "rows": rows,
        "share of the tensors, MB": round(share / 1e6, 1),
        "worker peak over share": [round((high - low) / share, 2) for high, low in zip(after, before, strict=True)],
        "driver peak, MB": round(peak() / 1e6, 1),
    }


def run() -> None:
    """Measure and write."""
    runs = []
    for rows in (100_000, 1_000_000, 4_000_000):
        with tempfile.TemporaryDirectory() as folder:
            write_table(Path(folder) / "table", rows, PARTITIONS)
            command = [sys.executable, "-m", "benchmarks.memory", str(rows), folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    write("memory", {"runs": runs, "goal": "worker peak over share <= 2.5 at 1M rows; driver peak does not grow"})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(one_run(int(sys.argv[1]), sys.argv[2])))
    else:
        run()
