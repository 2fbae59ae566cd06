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

import dasktrain as dt
from benchmarks.measure import write
from dasktrain.compression import Compression
from dasktrain.models import Decoder
from dasktrain.strategies import Strategy

CONTEXT, BATCH, VOCABULARY, WORKERS, ROUNDS, STEPS = 64, 32, 259, 2, 3942, 100
WARMUP, LISTEN = 100, 10.0
#: the two epochs that ROUNDS are, in one of several ways; averaging is what others are measured by
WAYS: dict[str, tuple[Strategy, Compression | None]] = {
    "averaging": (dt.GradientAveraging(), None),
    "PowerSGD": (dt.GradientAveraging(), dt.PowerSGD()),
    "DiLoCo, bfloat16": (dt.DiLoCo(STEPS), dt.Rounding("bfloat16")),
    "DiLoCo": (dt.DiLoCo(STEPS), None),
    "TopK": (dt.GradientAveraging(), dt.TopK()),
    "int8": (dt.GradientAveraging(), dt.Rounding("int8")),
    "bfloat16": (dt.GradientAveraging(), dt.Rounding("bfloat16")),
    "LocalSGD": (dt.LocalSGD(STEPS), None),
}
GOALS = "bytes and loss: DiLoCo 1/100 and 1.02, PowerSGD or TopK 1/20 and 1.02"
adamw = partial(torch.optim.AdamW, lr=3e-3)


def rate(rounds: int, round: int) -> float:
    """Return the learning rate's factor: it rises for some rounds and falls to a tenth."""
    return min(1.0, (round + 1) / WARMUP) * (1 - 0.9 * round / rounds)


class Meter(dt.Observer):
    """Reads what has crossed the loopback interface when rounds begin and when they are over."""

    def start(self, run: Any) -> None:
        self.run, self.began, self.first = run, perf_counter(), crossed()

    def round(self, record: dict[str, Any]) -> None:
        self.bytes, self.seconds = crossed() - self.first, perf_counter() - self.began


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


def trained(
    client: Client, strategy: Strategy, compression: Compression | None, rounds: int, silence: float
) -> dict[str, float]:
    """Train, and return figures."""
    torch.manual_seed(0)
    meter = Meter()
    trainer = dt.Trainer(
        Decoder(VOCABULARY, layers=2, width=128, heads=4, context=CONTEXT),
        dt.text.cross_entropy,
        adamw,
        scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=partial(rate, rounds)),
        schedule_every="round",
        strategy=strategy,
        compression=compression,
        observers=[meter],
    )
    data, valid = (dt.Text(db.from_sequence(documents(held), npartitions=4), context=CONTEXT) for held in (False, True))
    result = trainer.fit(data, batch_size=BATCH, shards=WORKERS, max_rounds=rounds, client=client)
    rows = sum(record["rows"] for record in result.history.rounds)
    return {
        "bytes a row": round(meter.bytes / rows, 1),
        "bytes a row, without the idle cluster's": round((meter.bytes - silence * meter.seconds) / rows, 1),
        "loss": round(result.evaluate(valid, {"loss": dt.text.cross_entropy})["loss"], 4),
        "rounds": sum(record.get("rounds", 1) for record in result.history.rounds),
        "seconds": round(sum(record["seconds"] for record in result.history.rounds), 1),
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
            figures[name] = trained(client, *WAYS[name], rounds, silence)
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
