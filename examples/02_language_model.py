"""Train a language model on the Python standard library's sources, and look at what it writes as it learns.

The sources are on every machine that has Python. One file of ten is held out; the perplexity is that of these.
"""

import argparse
import copy
import sysconfig
from pathlib import Path
from typing import Any

import dask.bag as db
import torch
from dask.distributed import Client, LocalCluster
from tokenizers import Tokenizer

import dasktrain as dt

STDLIB = Path(sysconfig.get_path("stdlib"))
PROMPT = "    def"
VOCABULARY = 512


class Samples(dt.Observer):
    """Prints what the model writes, every so many rounds."""

    def __init__(self, tokenizer: Tokenizer, every: int) -> None:
        self.tokenizer, self.every = tokenizer, every

    def start(self, run: Any) -> None:
        """Remember the run."""
        self.run = run

    def round(self, record: dict[str, Any]) -> None:
        """Write a sample if it is time, with a copy of the model and random numbers of its own."""
        if self.run.cursor.done % self.every == 0:
            module = copy.deepcopy(self.run.state.module)
            prompt = torch.tensor([self.tokenizer.encode(PROMPT).ids])
            generator = torch.Generator().manual_seed(0)
            written = module.generate(prompt, 50, temperature=0.7, top_k=50, generator=generator)[0]
            print(f"--- after {self.run.cursor.done} rounds, loss {record['loss']:.3f}")
            print(PROMPT + self.tokenizer.decode(written.tolist()))


def read(path: str) -> str:
    """Return a file's text."""
    return Path(path).read_text(errors="replace")


def main() -> None:
    """Train a tokenizer, then a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=500, help="train longer and it writes better")
    rounds = parser.parse_args().rounds
    files = [str(path) for path in sorted(STDLIB.glob("*.py"))[::3]]  # every third one, to be quick
    held_out = files[::10]
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster):
        train = db.from_sequence([path for path in files if path not in held_out], npartitions=8).map(read)
        valid = db.from_sequence(held_out, npartitions=2).map(read)
        tokenizer = dt.text.train_bpe(train, VOCABULARY)
        model = dt.LanguageModel(
            layers=2,
            width=128,
            heads=4,
            context=64,
            dropout=0.0,
            tokenizer=tokenizer,
            learning_rate=3e-3,
            warmup=20,
            batch_size=16,
            max_rounds=rounds,
            shards=2,  # as many as workers: larger pieces of a small batch
            observers=[Samples(tokenizer, max(1, rounds // 5))],
        )
        model.fit(train)
        print(f"perplexity on {len(held_out)} held-out files: {model.perplexity(valid):.1f}, of {VOCABULARY} tokens")


if __name__ == "__main__":
    main()
