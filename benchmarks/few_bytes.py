"""A language model trained with fewer bytes: sums once in a hundred rounds, and payloads made small.

Bytes that cross, and loss on held-out text, beside averaging's. The same model, rows, optimizer and number of tokens;
of the learning rates 3e-3 and 6e-3, that which suits averaging better. Bytes are those of the loopback interface while
rounds go on, by two workers of one shard each that share no memory with the driver. What an idle cluster says in as
many seconds, Dask's heartbeats, is among them, and taken off in figures of their own: a stretch of a hundred rounds
lasts a hundred times as long as a round, and so hears as many.
"""

import sysconfig
from argparse import ArgumentParser
from functools import partial
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import dask
import dask.bag as db
import psutil
import torch
from dask.distributed import Client, LocalCluster
from torch import nn

import dasktrain as dt
from benchmarks.measure import write
from dasktrain.compression import Compression
from dasktrain.models import Decoder
from dasktrain.strategies import Strategy

CONTEXT, BATCH, VOCABULARY, WORKERS, ROUNDS, STEPS = 64, 32, 259, 2, 3942, 100
WARMUP, LISTEN = 100, 10.0
#: rounds of averaging before DiLoCo: four stretches, and as many as leave whole ones to the end of two epochs
FIRST = 272
#: how to train for so many rounds, or for all that are left
Part = tuple[Strategy, Compression | None, int | None]
AVERAGING_FIRST: Part = dt.GradientAveraging(), dt.PowerSGD(every=FIRST // 4), FIRST
#: the two epochs that ROUNDS are, in one of several ways; averaging is what others are measured by
WAYS: dict[str, list[Part]] = {
    "averaging": [(dt.GradientAveraging(), None, None)],
    "PowerSGD": [(dt.GradientAveraging(), dt.PowerSGD(), None)],
    "DiLoCo after averaging, int8": [AVERAGING_FIRST, (dt.DiLoCo(STEPS), dt.Rounding("int8"), None)],
    "DiLoCo after averaging, bfloat16": [AVERAGING_FIRST, (dt.DiLoCo(STEPS), dt.Rounding("bfloat16"), None)],
    "DiLoCo, bfloat16": [(dt.DiLoCo(STEPS), dt.Rounding("bfloat16"), None)],
    "DiLoCo": [(dt.DiLoCo(STEPS), None, None)],
    "TopK": [(dt.GradientAveraging(), dt.TopK(), None)],
    "int8": [(dt.GradientAveraging(), dt.Rounding("int8"), None)],
    "bfloat16": [(dt.GradientAveraging(), dt.Rounding("bfloat16"), None)],
    "LocalSGD": [(dt.LocalSGD(STEPS), None, None)],
}
GOALS = "bytes and loss: DiLoCo 1/100 and 1.02, PowerSGD or TopK 1/20 and 1.02"
adamw = partial(torch.optim.AdamW, lr=3e-3)


def rate(rounds: int, before: int, round: int) -> float:
    """Return the learning rate's factor: it rises for some rounds and falls to a tenth, over all parts together."""
    return min(1.0, (before + round + 1) / WARMUP) * (1 - 0.9 * (before + round) / rounds)


class Meter(dt.Observer):
    """Reads what has crossed the loopback interface when rounds begin and when they are over, and adds runs up."""

    def __init__(self) -> None:
        self.bytes, self.seconds, self.records = 0, 0.0, list[dict[str, Any]]()

    def start(self, run: Any) -> None:
        self.began, self.first = perf_counter() - self.seconds, crossed() - self.bytes

    def round(self, record: dict[str, Any]) -> None:
        self.bytes, self.seconds = crossed() - self.first, perf_counter() - self.began
        self.records.append(record)

    def sum(self, name: str, otherwise: int = 0) -> Any:
        """Return the sum of a figure over all rounds."""
        return sum(record.get(name, otherwise) for record in self.records)


def crossed() -> int:
    """Return the bytes that ever crossed the loopback interface."""
    return int(psutil.net_io_counters(pernic=True)["lo"].bytes_sent)


def idle() -> float:
    """Return the bytes a second of a cluster that does nothing."""
    began, first = perf_counter(), crossed()
    sleep(LISTEN)
    return (crossed() - first) / (perf_counter() - began)


def documents(held_out: bool) -> list[str]:
    """Return some of the standard library's sources."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return [path.read_text(errors="replace") for number, path in enumerate(files) if (number % 10 == 0) == held_out]


def trained(client: Client, parts: list[Part], rounds: int, silence: float) -> dict[str, float]:
    """Train, each part from where the one before it ended, and return figures."""
    torch.manual_seed(0)
    meter = Meter()
    module: nn.Module = Decoder(VOCABULARY, layers=2, width=128, heads=4, context=CONTEXT)
    data, valid = (dt.Text(db.from_sequence(documents(held), npartitions=4), context=CONTEXT) for held in (False, True))
    for seed, (strategy, compression, most) in enumerate(parts):
        before = meter.sum("rounds", 1)
        trainer = dt.Trainer(
            module,
            dt.text.cross_entropy,
            adamw,
            scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=partial(rate, rounds, before)),
            schedule_every="round",
            strategy=strategy,
            compression=compression,
            observers=[meter],
        )
        most = most or rounds - before
        result = trainer.fit(data, batch_size=BATCH, shards=WORKERS, max_rounds=most, seed=seed, client=client)
        module = result.model
    return {
        "bytes a row": round(meter.bytes / meter.sum("rows"), 1),
        "bytes a row, without the idle cluster's": round(
            (meter.bytes - silence * meter.seconds) / meter.sum("rows"), 1
        ),
        "loss": round(result.evaluate(valid, {"loss": dt.text.cross_entropy})["loss"], 4),
        "rounds": meter.sum("rounds", 1),
        "seconds": round(meter.sum("seconds"), 1),
    }


def run(rounds: int, ways: list[str]) -> None:
    """Measure and write."""
    figures: dict[str, Any] = {}
    with (
        dask.config.set({"dasktrain.shared-memory": False}),
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        silence = idle()
        for name in dict.fromkeys(["averaging", *ways]):
            figures[name] = trained(client, WAYS[name], rounds, silence)
            print(name, figures[name], flush=True)
    plain = figures["averaging"]
    for found in figures.values():
        for bytes in ("bytes a row", "bytes a row, without the idle cluster's"):
            found[f"times fewer {bytes}"] = round(plain[bytes] / found[bytes], 1)
        found["loss, of averaging's"] = round(found["loss"] / plain["loss"], 4)
    given = {"rounds": rounds, "bytes a second of the idle cluster": round(silence)}
    write("few_bytes", {**given, **figures, "goal": GOALS})


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="beside averaging")
    given = parser.parse_args()
    run(given.rounds, given.ways)
