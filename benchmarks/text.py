"""What text costs: tokenising on a worker against calling `tokenizers` there, and padding with and without buckets."""

import os
import sysconfig
from pathlib import Path
from time import perf_counter
from typing import Any

import dask
import numpy as np
from dask.distributed import Client, LocalCluster, wait

import dasktrain as dt
from benchmarks.measure import spread, write
from dasktrain.data.tokenised import run_each
from dasktrain.plan import Plan, Rows, rows_only

PARTITIONS, TURNS, SIZE = 8, 10, 4096
ROWS, SHARDS, BATCH, WINDOW = 100_000, 8, 256, 8192


def documents() -> list[str]:
    """Return some of the standard library's sources, line by line."""
    folder = Path(sysconfig.get_path("stdlib"))
    return [line for path in sorted(folder.glob("*.py")) for line in path.read_text(errors="replace").splitlines()]


def _direct(json: str, texts: list[str]) -> int:
    """Call the library as one would without dasktrain, and keep the tokens."""
    from tokenizers import Tokenizer

    return len([encoding.ids for encoding in Tokenizer.from_str(json).encode_batch_fast(texts)])


def tokenising() -> dict[str, Any]:
    """Compare tasks that call the library with those of dt.Text, alternately on one worker of one thread."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # or one worker would use what belongs to all
    lines = documents()
    tokenizer = dt.text.train_bpe(lines, SIZE)
    json = tokenizer.to_str()
    ratios, speeds = [], []
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        parts = client.scatter([lines[number::PARTITIONS] for number in range(PARTITIONS)])  # each list is one value
        partitions = [dask.delayed(part) for part in parts]

        def seconds(tasks: list[Any]) -> float:
            started = perf_counter()
            wait(client.compute(tasks))
            return perf_counter() - started

        for turn in range(TURNS + 1):
            direct = seconds([dask.delayed(_direct, pure=False)(json, part) for part in partitions])
            text = dt.Text(["unused"], tokenizer=tokenizer, context=256)
            ours = seconds(run_each(text.reader, (), partitions, [turn * 100 + n for n in range(PARTITIONS)]))
            if turn:
                ratios.append(direct / ours)
                speeds.append(sum(map(len, lines)) / ours / 1e6)
    return {
        "megabytes of text": round(sum(map(len, lines)) / 1e6, 1),
        "million characters/s": spread(speeds),
        "throughput against calling tokenizers": spread(ratios),
        "goal": ">= 0.9",
    }


def padding() -> dict[str, Any]:
    """Count padding of log-normal lengths over an epoch, in each shard's part of each round."""
    lengths = np.maximum(1, np.random.default_rng(0).lognormal(4.5, 0.7, ROWS).astype(np.int64)).clip(max=512)
    found = {}
    for by_length in (True, False):
        plan = Plan(rows_only([ROWS // 10] * 10), SHARDS, BATCH, window=WINDOW, by_length=by_length)

        def of(rows: Rows) -> np.ndarray:
            return lengths[rows.partition * (ROWS // 10) + rows.row]

        padded = real = 0
        for round in range(plan.rounds):
            for shard in range(SHARDS):
                here = of(plan.rows(0, round, shard, of))
                padded, real = padded + len(here) * int(here.max()), real + int(here.sum())
        found[by_length] = round_share(padded, real)
    return {"with buckets": found[True], "without": found[False], "goal": "with buckets <= 0.10"}


def round_share(padded: int, real: int) -> float:
    """Return which share of what is computed is padding."""
    return round(1 - real / padded, 4)


if __name__ == "__main__":
    write("text", {"tokenising": tokenising(), "share of padding": padding()})
