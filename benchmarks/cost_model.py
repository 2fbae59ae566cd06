"""What dt.plan_cluster predicts of a round, and what it takes: 1 to 8 workers on hosts of their own, each way.

Hosts are network namespaces whose links are shaped, see benchmarks/network.py. All workers compute on the cores of this
machine, so that the model is given what as many workers take to compute that share the driver's memory, and what the
step takes there; what it predicts is the wire. Links are slow, so that the wire is most of a round, and that the cores,
which send and receive for all hosts, keep up: on two cores they do not at 400 Mbit/s, with 8 workers that shard.

*error* is (predicted - measured) / measured, of the median round.
"""

import json
import os
import sys
import tempfile
from argparse import ArgumentParser
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dask.distributed import Client, LocalCluster
from torch import nn

import dasktrain as dt
from benchmarks.measure import spread, write
from benchmarks.network import CLASSES, DRIVER, INPUTS, PATIENCE, said, started
from benchmarks.problems import mlp
from dasktrain.topology import AMONG, FEWEST
from tests.network.hosts import Network, connected, missing

WORKERS = ("amy", "bob", "cat", "dan", "eve", "fay", "gus", "hal")
#: 10 million parameters
WIDTH = 3100
ROUNDS, WARM, MBIT = 3, 1, 200
#: what a round's seconds are spent on after the last answer
AFTER = ("reduce", "step")
GOAL = 0.25


def model(width: int) -> nn.Module:
    """Return the model."""
    return mlp(INPUTS, width, CLASSES)


# -- on the driver's host ---------------------------------------------------------------------------------------


def drive(scheduler: str, rounds: int, width: int) -> list[dict[str, Any]]:
    """Be the driver's host: train on all workers, on one less, and so on; each time with as many here as well."""
    found = []
    here = LocalCluster(n_workers=len(WORKERS), threads_per_worker=1, dashboard_address=":0")
    with here as cluster, Client(cluster) as near, Client(scheduler, timeout=PATIENCE) as far:
        for client in (near, far):
            client.wait_for_workers(len(WORKERS), timeout=PATIENCE)
        for workers in range(len(WORKERS), 0, -1):
            found.append(
                {
                    "workers": workers,
                    "local": train(near, workers, rounds, width, "auto"),
                    "flat": train(far, workers, rounds, width, "flat"),
                    **{way: train(far, workers, rounds, width, way) for way in AMONG if workers >= FEWEST},
                }
            )
            for client in (near, far):
                client.retire_workers(list(client.nthreads())[:1])
    return found[::-1]


def train(client: Client, workers: int, rounds: int, width: int, way: str) -> list[dict[str, Any]]:
    """Return what is recorded of rounds in which each worker has a row."""
    assert len(client.nthreads()) == workers
    rng = np.random.default_rng(0)
    data = dt.Arrays(rng.normal(size=(8 * len(WORKERS), INPUTS)).astype(np.float32), rng.integers(0, CLASSES, 64))
    trainer = dt.Trainer(model(width), nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=0.01), observers=[])
    settings: dict[str, Any] = {"batch_size": workers, "shards": workers, "max_rounds": rounds + WARM}
    result = trainer.fit(data, client=client, driver="client", reduction=way, **settings)  # type: ignore[arg-type]
    return result.history.rounds[WARM:]


# -- around the hosts -------------------------------------------------------------------------------------------


def measured(network: Network, folder: Path, rounds: int, width: int, mbit: int) -> list[dict[str, Any]]:
    """Start everything on its host, and return what the driver says."""
    with (folder / "log").open("w") as log:
        scheduler, _ = started(network, folder, log, WORKERS, mbit)
        found: Any = said(network, folder, __spec__.name, "drive", scheduler, str(rounds), str(width))
    return list(found)


def predicted(workers: int, local: list[dict[str, Any]], width: int, mbit: int, reduction: Any) -> dt.ClusterPlan:
    """Return what is predicted, from what as many workers take that share the driver's memory."""
    after = median([sum(record[part] for part in AFTER) for record in local])
    compute = median([record["seconds"] for record in local]) - after
    settings = {"shards": workers, "reduction": reduction, "step_seconds": after}
    return dt.plan_cluster(model(width), 1 / compute, workers, mbit * 1e6, workers, **settings)


def compared(found: list[dict[str, Any]], width: int, mbit: int) -> list[dict[str, Any]]:
    """Compare what was predicted with what was measured, by workers and ways."""
    rows = []
    for measured in found:
        for way in ("flat", *AMONG):
            if way in measured:
                plan = predicted(measured["workers"], measured["local"], width, mbit, way)
                seconds = [record["seconds"] for record in measured[way]]
                rows.append(
                    {
                        "workers": plan.workers,
                        "way": way,
                        "predicted, s": round(plan.seconds, 3),
                        "of that, wire": round(plan.wire, 3),
                        "of that, as measured where memory is shared": round(plan.compute + plan.step, 3),
                        "measured, s": spread(seconds),
                        "error": round(plan.seconds / median(seconds) - 1, 3),
                    }
                )
    return rows


def median(values: list[float]) -> float:
    """Return the median."""
    return float(np.median(values))


def run(rounds: int, width: int, mbit: int) -> None:
    """Measure and write; without namespaces, say why there is nothing to measure."""
    if (reason := missing()) is not None:
        print(f"cost_model: not measured. {reason}")
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, connected(DRIVER, *WORKERS) as network:
        found = measured(network, Path(folder), rounds, width, mbit)
    rows = compared(found, width, mbit)
    parameters = sum(parameter.numel() for parameter in model(width).parameters())
    write(
        f"cost_model-{round(parameters / 1e6)}M-{mbit}-mbit",
        {
            "rounds": rounds,
            "parameters": parameters,
            "link, Mbit/s": mbit,
            "load of the machine before": round(load, 2),
            "rows": rows,
            "largest error": max(abs(row["error"]) for row in rows),
            "goal": f"largest error <= {GOAL}",
        },
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["drive"]:
        print(json.dumps(drive(sys.argv[2], *map(int, sys.argv[3:]))), flush=True)
    else:
        parser = ArgumentParser(description=__doc__)
        parser.add_argument("--rounds", type=int, default=ROUNDS)
        parser.add_argument("--width", type=int, default=WIDTH, help="of the model's two hidden layers")
        parser.add_argument("--mbit", type=int, default=MBIT)
        run(**vars(parser.parse_args()))
