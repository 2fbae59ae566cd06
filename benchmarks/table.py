"""A table end to end: rows a second of dasktrain and of what others do, 2 workers of one thread each.

28 float columns and a label in Parquet, an MLP 28-256-256-2, AdamW, global batches of 1024 rows. All take turns, each
in processes of its own, on the same files. A rate is that of an epoch's rows, after `WARM` rounds that do not count;
reading Parquet and starting do not count either. dasktrain's is taken by the clock on the wall, from the end of a round
to the end of another, and leaves nothing out that happens between rounds.
"""

import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import dask.dataframe as dd
import torch
from dask.distributed import Client, LocalCluster
from torch import nn

import dasktrain as dt
from benchmarks.measure import spread, write
from benchmarks.peers.training import BATCH, WORKERS, model
from benchmarks.problems import write_table

PAIRS, ROWS, PARTITIONS, WARM = 10, 1_000_000, 16, 50
#: seconds for a peer to do its epoch
PATIENCE = 900


class Peer(NamedTuple):
    """A script of benchmarks/peers, and how much faster dasktrain is to be."""

    script: str
    goal: str


PEERS = {
    "DDP, vectorised by hand": Peer("ddp_vectorised", ">= 1.5"),
    "DDP, DataLoader": Peer("ddp_dataloader", ">= 2"),
    "dask-pytorch-ddp": Peer("dask_pytorch_ddp", ">= 2"),
    "Ray Train": Peer("ray_train", ">= 2"),
    "scatter, submit, gather": Peer("futures", ">= 10"),
    "one process, 2 threads": Peer("one_process", "towards 1"),
}
OURS, TAXED = "dasktrain, 2 shards", "dasktrain, 8 shards"
SHARDS = {OURS: 2, TAXED: 8}
#: rows a second by name, one for each turn; None where there is none
Rates = dict[str, list[float | None]]


class Clock(dt.Observer):
    """Notes when rounds end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def round(self, record: dict[str, Any]) -> None:
        self.ends.append(perf_counter())


def ours(folder: Path, shards: int) -> float:
    """Return rows a second of dasktrain."""
    clock, frame = Clock(), dd.read_parquet(folder)
    adamw = partial(torch.optim.AdamW, lr=1e-3)
    rounds = WARM + -(-len(frame) // BATCH)
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        trainer = dt.Trainer(model(), nn.CrossEntropyLoss(), adamw, observers=[clock])
        data = dt.Table(frame, target="label")
        result = trainer.fit(data, batch_size=BATCH, shards=shards, max_rounds=rounds, client=client)
    rows = sum(record["rows"] for record in result.history.rounds[WARM:])
    return float(rows / (clock.ends[-1] - clock.ends[WARM - 1]))


def theirs(folder: Path, rows: int, script: str) -> float | None:
    """Return rows a second of a peer; None if it is not installed, or fails, which is printed."""
    command = [sys.executable, "-m", "benchmarks.peers", script, str(folder), str(WARM)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        print(f"{script} failed:\n{done.stderr[-3000:]}", file=sys.stderr)
        return None
    seconds = json.loads(done.stdout.splitlines()[-1])
    return None if seconds is None else rows / seconds


def compared(folder: Path, rows: int, pairs: int, names: list[str]) -> Rates:
    """Have all take turns."""
    rates: Rates = {name: [] for name in (*SHARDS, *names)}
    for turn in range(pairs):
        for name, shards in SHARDS.items():
            rates[name].append(ours(folder, shards))
        for name in names:
            rates[name].append(theirs(folder, rows, PEERS[name].script))
        print(f"turn {turn + 1} of {pairs}:", {name: each[-1] for name, each in rates.items()}, flush=True)
    return rates


def figures(rates: Rates) -> dict[str, Any]:
    """Summarise the rates, and those of dasktrain over the others'."""
    found: dict[str, Any] = {}
    for name, each in rates.items():
        pairs = [(one, other) for one, other in zip(rates[OURS], each, strict=True) if one and other]
        if not pairs:
            found[name] = "not installed, or failed"
            continue
        found[name] = {"rows/s": spread([other for _, other in pairs]), "turns": len(pairs)}
        if name != OURS:
            found[name][f"{OURS} / this"] = spread([one / other for one, other in pairs])
        if name in PEERS:
            found[name]["goal"] = PEERS[name].goal
    return found


def run(pairs: int, rows: int, names: list[str]) -> None:
    """Measure and write."""
    rows = rows // PARTITIONS * PARTITIONS  # DDP hangs if its ranks have different numbers of rounds
    with tempfile.TemporaryDirectory() as folder:
        table = write_table(Path(folder) / "table", rows, PARTITIONS)
        rates = compared(table, rows, pairs, names)
    write("table", {"pairs": pairs, "rows": rows, "rounds that do not count": WARM, **figures(rates)})


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS), metavar="NAME")
    given = parser.parse_args()
    run(given.pairs, given.rows, given.peers)
