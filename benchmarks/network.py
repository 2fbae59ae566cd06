"""Rounds over a shaped network: the driver on one host, two workers on others, every link 1 Gbit/s, 25M parameters.

Hosts are network namespaces (root, ``ip`` and ``tc`` are needed). Each round the parameters go to each host, and a
gradient comes back from each: the payload, all of it through the driver's link, which carries both directions at once.

- *wire time* is what a round takes longer than the same round of two workers that share the driver's memory, on the
  same cores: what is computed, summed and stepped is the same. It is compared with payload / bandwidth, and with what
  a bare TCP connection on the same link needs for as many bytes, one direction after the other.
- *remote bytes* are those of the driver's interface in both directions, the scheduler's few among them.

With ``--workers-per-host``, workers of one host get parameters and send gradients together; the same rounds are
measured with that and without, which takes as many times the payload.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import IO, Any

import dask
import numpy as np
import torch
from dask.distributed import Client, LocalCluster
from torch import nn

import dasktrain as dt
from benchmarks.measure import spread, write
from benchmarks.problems import mlp
from tests.network.hosts import Network, connected, missing

ROUNDS, WARM, MBIT = 10, 2, 1000
#: width of two hidden layers; rows of a round, so few that there is little to compute
INPUTS, WIDTH, CLASSES, ROWS = 100, 4940, 10, 2
DRIVER, WORKERS = "driver", ("amy", "bob")
SCHEDULER_PORT, BARE_PORT = 8786, 8787
#: bytes of the bare transfer, and of each write
BARE, PIECE = 1 << 27, 1 << 20
PYTHON = (sys.executable, "-m")
ROOT = Path(__file__).parents[1]
#: seconds for a process on another host to be there
PATIENCE = 60


def model() -> nn.Module:
    """Return the model."""
    return mlp(INPUTS, WIDTH, CLASSES)


# -- on the hosts -----------------------------------------------------------------------------------------------


class Meter(dt.Observer):
    """Reads this host's interface at the end of each round: bytes, in and out."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def round(self, record: dict[str, Any]) -> None:
        lines = [line.split() for line in Path("/proc/net/dev").read_text().splitlines()]
        self.read.append(sum(int(line[1]) + int(line[9]) for line in lines if line[0] == "eth0:"))


def drive(scheduler: str, peer: str, rounds: str, workers: str) -> dict[str, Any]:
    """Be the driver's host: what crosses the network, what a round takes with workers elsewhere and here."""
    bare, count = bare_rate(peer), int(workers)
    with Client(scheduler, timeout=PATIENCE) as client:
        client.wait_for_workers(count, timeout=PATIENCE)
        remote, read = train(client, int(rounds), count)
        with dask.config.set({"dasktrain.shared-memory": False}):
            apart, read_apart = train(client, int(rounds), count) if count > len(WORKERS) else (remote, read)
    with (
        LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        local, _ = train(client, int(rounds), count)
    return {"bare": bare, "remote": remote, "local": local, "bytes": carried(read)} | (
        {"apart": apart, "bytes apart": carried(read_apart)} if count > len(WORKERS) else {}
    )


def carried(read: list[int]) -> list[int]:
    """Return the bytes of each round."""
    found: list[int] = np.diff(read)[WARM - 1 :].tolist()
    return found


def train(client: Client, rounds: int, workers: int) -> tuple[list[float], list[int]]:
    """Have the driver reduce; return the seconds of rounds, and what the link had carried after each, the first too."""
    rng, meter = np.random.default_rng(0), Meter()
    data = dt.Arrays(rng.normal(size=(64, INPUTS)).astype(np.float32), rng.integers(0, CLASSES, 64))
    trainer = dt.Trainer(model(), nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=0.01), observers=[meter])
    settings = {"batch_size": max(ROWS, workers), "shards": workers, "max_rounds": rounds + WARM}
    result = trainer.fit(data, client=client, driver="client", reduction="flat", **settings)
    return [record["seconds"] for record in result.history.rounds[WARM:]], meter.read


def bare_rate(peer: str) -> float:
    """Return the bytes a second that a bare connection carries to a host that drains it."""
    with socket.create_connection((peer, BARE_PORT), timeout=PATIENCE) as connection:
        piece, started = bytes(PIECE), perf_counter()
        for _ in range(BARE // PIECE):
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # the end, when everything has been read
        return BARE / (perf_counter() - started)


def drain(address: str) -> None:
    """Be the other end of a bare connection."""
    with closing(socket.create_server((address, BARE_PORT))) as listener:
        print("listening", flush=True)
        with listener.accept()[0] as connection:
            while connection.recv(PIECE):
                pass


# -- around the hosts -------------------------------------------------------------------------------------------


def measured(network: Network, folder: Path, rounds: int, mbit: int, workers_per_host: int) -> dict[str, Any]:
    """Start everything on its host, and return what the driver says."""
    with (folder / "log").open("w") as log:
        scheduler, workers = started(network, folder, log, WORKERS, mbit, workers_per_host)
        peer = network.address(WORKERS[0])
        draining = start(network, WORKERS[0], *PYTHON, __spec__.name, "drain", peer, stdout=subprocess.PIPE)
        assert draining.stdout is not None
        draining.stdout.readline()
        return said(network, folder, __spec__.name, "drive", scheduler, peer, str(rounds), str(workers))


def started(
    network: Network, folder: Path, log: IO[str], hosts: Sequence[str], mbit: int, workers_per_host: int = 1
) -> tuple[str, int]:
    """Start a scheduler on the driver's host and workers on the others; return its address, and how many they are."""
    for host in (DRIVER, *hosts):
        network.shape(host, "tbf", "rate", f"{mbit}mbit", "burst", "1mb", "latency", "20ms")
    own, quiet = network.address(DRIVER), {"stdout": log, "stderr": log}
    place = ("--host", own, "--port", str(SCHEDULER_PORT))
    start(network, DRIVER, *PYTHON, "dask", "scheduler", *place, "--no-dashboard", **quiet)
    scheduler = f"tcp://{own}:{SCHEDULER_PORT}"
    workers = [(host, str(number)) for host in hosts for number in range(workers_per_host)]
    for host, number in workers:
        place = ("--host", network.address(host), "--local-directory", str(folder / (host + number)))
        plain = ("--nthreads", "1", "--no-nanny", "--no-dashboard")
        start(network, host, *PYTHON, "dask", "worker", scheduler, *place, *plain, **quiet)
    return scheduler, len(workers)


def start(network: Network, host: str, *command: str, **options: Any) -> "subprocess.Popen[str]":
    """Start a process on a host."""
    return network.start(host, *command, cwd=ROOT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **options)


def said(network: Network, folder: Path, module: str, *told: str) -> dict[str, Any]:
    """Have a part of a module be the driver, and return what it says."""
    driver = start(network, DRIVER, *PYTHON, module, *told, stdout=subprocess.PIPE)
    text, _ = driver.communicate()
    if driver.returncode:
        raise RuntimeError(f"The driver must say what it measured, however it failed; the others:\n{logged(folder)}")
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


def logged(folder: Path) -> str:
    """Return the end of what scheduler and workers logged."""
    return (folder / "log").read_text()[-3000:]


def figures(found: dict[str, Any], mbit: int) -> dict[str, Any]:
    """Compare what was measured with the payload: parameters to each host, and a gradient from each."""
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in model().parameters())
    payload = parameters * 4 * 2 * len(WORKERS)
    at_line_rate, local = payload / (mbit * 1e6 / 8), float(np.median(found["local"]))
    wire = [seconds - local for seconds in found["remote"]]
    return {
        "parameters": parameters,
        "link, Mbit/s": mbit,
        "a bare connection, Mbit/s": round(found["bare"] * 8 / 1e6, 1),
        "payload of a round, MB": round(payload / 1e6, 1),
        "payload / bandwidth, s": round(at_line_rate, 3),
        "a round, s": spread(found["remote"]),
        "a round of workers that share memory, s": spread(found["local"]),
        "wire time / (payload / bandwidth)": spread(wire, 1 / at_line_rate),
        "wire time / bare connection": spread(wire, found["bare"] / payload),
        "remote bytes / payload": spread(found["bytes"], 1 / payload),
        **({"a round of workers that send apart, s": spread(found["apart"])} if "apart" in found else {}),
        **({"remote bytes apart / payload": spread(found["bytes apart"], 1 / payload)} if "apart" in found else {}),
        "goal": "wire time <= 1.15 x payload / bandwidth; remote bytes <= 1.02 x payload",
    }


def run(rounds: int, mbit: int, workers_per_host: int) -> None:
    """Measure and write; without namespaces, say why there is nothing to measure."""
    if (reason := missing()) is not None:
        print(f"network: not measured. {reason}")
        return
    with tempfile.TemporaryDirectory() as folder, connected(DRIVER, *WORKERS) as network:
        found = measured(network, Path(folder), rounds, mbit, workers_per_host)
    name = "network" if workers_per_host == 1 else f"network-{workers_per_host}-workers-per-host"
    write(name if mbit == MBIT else f"{name}-{mbit}-mbit", {"rounds": rounds, **figures(found, mbit)})


PARTS = {"drive": drive, "drain": drain}

if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in PARTS:
        print(json.dumps(PARTS[sys.argv[1]](*sys.argv[2:])), flush=True)
    else:
        parser = ArgumentParser(description=__doc__)
        parser.add_argument("--rounds", type=int, default=ROUNDS)
        parser.add_argument("--mbit", type=int, default=MBIT)
        parser.add_argument("--workers-per-host", type=int, default=1)
        run(**vars(parser.parse_args()))
