"""Rounds of four workers on hosts of their own, each way by turns: every link 1 Gbit/s, 25M parameters.

Hosts are network namespaces, see benchmarks/network.py. *wire time* is what a round takes longer than the same round of
as many workers that share the driver's memory, on the same cores. *bytes of a link* are those of an interface in both
directions: of the driver's, and of the worker's that carries most.

With ``--hosts`` and ``--workers-per-host`` there are as many: of several workers on a host one takes part for all.
"""

import json
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import torch
from dask.distributed import Client, LocalCluster
from torch import nn

import dasktrain as dt
from benchmarks.measure import spread, write
from benchmarks.network import CLASSES, DRIVER, INPUTS, MBIT, PATIENCE, model, said, started
from dasktrain.topology import AMONG
from tests.network.hosts import Network, connected, missing

HOSTS = ("amy", "bob", "cat", "dan", "eve", "fay", "gus", "hal")
USUAL = 4
WAYS = ("flat", *AMONG)
ROUNDS, WARM, TURNS = 5, 2, 2


class Chosen(dt.Observer):
    """Keeps what is told of the way that was chosen."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def stage(self, text: str) -> None:
        self.told += [text] * ("on the wire" in text)


def carried() -> int:
    """Return the bytes that this host's interface has carried, in and out."""
    lines = [line.split() for line in Path("/proc/net/dev").read_text().splitlines()]
    return sum(int(line[1]) + int(line[9]) for line in lines if line[0] == "eth0:")


def drive(scheduler: str, given: str, there: str) -> dict[str, Any]:
    """Be the driver's host: train there and back, and with as many workers here, by turns; then in this process."""
    rounds, workers = int(given), int(there)
    found: dict[str, Any] = {way: {"seconds": [], "driver": [], "worker": []} for way in WAYS}
    chosen, digests, local = Chosen(), set[str](), list[float]()
    here = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")
    with here, Client(here) as near, Client(scheduler, timeout=PATIENCE) as client:
        client.wait_for_workers(workers, timeout=PATIENCE)
        for _ in range(TURNS):
            for way in WAYS:
                result, bytes_driver, bytes_worker = metered(client, rounds, way, workers)
                digests.add(result.digest)
                found[way]["seconds"] += seconds(result)
                found[way]["driver"].append(bytes_driver)
                found[way]["worker"].append(bytes_worker)
            result = train(near, rounds, "auto", workers)
            digests.add(result.digest)
            local += seconds(result)
        digests.add(train(client, rounds, "auto", workers, chosen).digest)
    with dask.config.set({"dasktrain.threads": 1}):
        digests.add(train(dt.LocalWire(), rounds, "auto", workers).digest)
    return found | {"local": local, "digests": sorted(digests), "told": chosen.told}


def seconds(result: dt.Result) -> list[float]:
    """Return the seconds of each round but the first."""
    return [record["seconds"] for record in result.history.rounds[WARM:]]


def metered(client: Client, rounds: int, way: str, workers: int) -> tuple[dt.Result, float, float]:
    """Train; return the result, and the bytes a round that the driver's link carried, and a worker's."""
    before = carried(), client.run(carried)
    result = train(client, rounds, way, workers)
    after = carried(), client.run(carried)
    most = max(after[1][worker] - before[1][worker] for worker in before[1])
    return result, (after[0] - before[0]) / (rounds + WARM), most / (rounds + WARM)


def train(client: object, rounds: int, way: str, workers: int, *observers: dt.Observer) -> dt.Result:
    """Train some rounds."""
    rng = np.random.default_rng(0)
    data = dt.Arrays(rng.normal(size=(64, INPUTS)).astype(np.float32), rng.integers(0, CLASSES, 64))
    torch.manual_seed(0)
    optimizer = partial(torch.optim.SGD, lr=0.1)
    trainer = dt.Trainer(model(), nn.CrossEntropyLoss(), optimizer, observers=list(observers))
    settings: dict[str, Any] = {"batch_size": workers, "shards": workers, "max_rounds": rounds + WARM}
    return trainer.fit(data, client=client, driver="client", reduction=way, **settings)  # type: ignore[arg-type]


def measured(network: Network, folder: Path, rounds: int, hosts: Sequence[str], mbit: int, each: int) -> dict[str, Any]:
    """Start everything on its host, and return what the driver says."""
    with (folder / "log").open("w") as log:
        scheduler, workers = started(network, folder, log, hosts, mbit, each)
        return said(network, folder, __spec__.name, "drive", scheduler, str(rounds), str(workers))


def figures(found: dict[str, Any], hosts: int, each: int, mbit: int) -> dict[str, Any]:
    """Compare the ways."""
    with torch.device("meta"):
        size = 4 * sum(parameter.numel() for parameter in model().parameters())
    local = float(np.median(found["local"]))
    wire = {way: float(np.median(found[way]["seconds"])) - local for way in WAYS}
    return {
        "hosts": hosts,
        "workers of each": each,
        "parameters": size // 4,
        "link, Mbit/s": mbit,
        "a round of workers that share memory, s": spread(found["local"]),
        **{f"a round, {way}, s": spread(found[way]["seconds"]) for way in WAYS},
        **{f"wire time, {way}, s": round(wire[way], 3) for way in WAYS},
        **{f"bytes of the driver's link / parameters, {way}": mean(found[way]["driver"], size) for way in WAYS},
        **{f"bytes of a worker's link / parameters, {way}": mean(found[way]["worker"], size) for way in WAYS},
        **{
            f"a round, {way} / flat": round(np.median(found[way]["seconds"]) / np.median(found["flat"]["seconds"]), 3)
            for way in AMONG
        },
        **{f"wire time, {way} / flat": round(wire[way] / wire["flat"], 3) for way in AMONG},
        "digests of all, one process among them": len(found["digests"]),
        "auto": found["told"],
        "goal": "wire time, sharded / flat <= 0.5; one digest",
    }


def mean(bytes: Sequence[float], size: int) -> float:
    """Return bytes of a link as a multiple of the parameters, of which the first have come with the data."""
    return round(float(np.mean(bytes)) / size, 2)


def run(rounds: int, mbit: int, hosts: int, workers_per_host: int) -> None:
    """Measure and write; without namespaces, say why there is nothing to measure."""
    if (reason := missing()) is not None:
        print(f"sharded: not measured. {reason}")
        return
    names = HOSTS[:hosts]
    with tempfile.TemporaryDirectory() as folder, connected(DRIVER, *names) as network:
        found = measured(network, Path(folder), rounds, names, mbit, workers_per_host)
    usual = (hosts, workers_per_host, mbit) == (USUAL, 1, MBIT)
    name = "sharded" if usual else f"sharded-{hosts}-hosts-of-{workers_per_host}-{mbit}-mbit"
    write(name, {"rounds": rounds, "turns": TURNS, **figures(found, hosts, workers_per_host, mbit)})


if __name__ == "__main__":
    if sys.argv[1:2] == ["drive"]:
        print(json.dumps(drive(*sys.argv[2:])), flush=True)
    else:
        parser = ArgumentParser(description=__doc__)
        parser.add_argument("--rounds", type=int, default=ROUNDS)
        parser.add_argument("--mbit", type=int, default=MBIT)
        parser.add_argument("--hosts", type=int, choices=range(2, len(HOSTS) + 1), default=USUAL)
        parser.add_argument("--workers-per-host", type=int, default=1)
        run(**vars(parser.parse_args()))
