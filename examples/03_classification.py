"""Learn which package of the Python standard library a piece of source text is from.

A piece is 20 lines. All pieces of a file are either trained on or held out, and the packages' sizes differ widely.
"""

import argparse
import sysconfig
from collections import Counter
from functools import partial
from pathlib import Path

import dask.bag as db
import pandas as pd
import torch
from dask.distributed import Client, LocalCluster
from torch import nn

import dasktrain as dt

STDLIB = Path(sysconfig.get_path("stdlib"))
PACKAGES = [
    "asyncio",
    "email",
    "idlelib",
    "importlib",
    "json",
    "multiprocessing",
    "tkinter",
    "unittest",
    "urllib",
    "xml",
]
LINES = 20
TEXTS = [
    "async def wait(loop, future):\n    await future\n    loop.call_soon(print, future.result())\n",
    "def test_sum(self):\n    self.assertEqual(sum([1, 2]), 3)\n",
    'button = Button(frame, text="OK", command=self.destroy)\nbutton.pack(side="left")\n',
    'message["Subject"] = Header("hello", charset="utf-8")\nmessage.set_payload(body)\n',
]


def list_files() -> tuple[list[Path], list[Path]]:
    """Return files to train on, and every fourth file of a package held out."""
    train, held_out = [], []
    for package in PACKAGES:
        paths = sorted((STDLIB / package).rglob("*.py"))
        paths = [path for path in paths if not {"test", "idle_test"} & set(path.parts)]
        held_out += paths[1::4]
        train += sorted(set(paths) - set(paths[1::4]))
    return train, held_out


def cut(path: Path) -> list[dict[str, str]]:
    """Return a file's pieces."""
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    package = path.relative_to(STDLIB).parts[0]
    pieces = ["".join(lines[start : start + LINES]) for start in range(0, len(lines), LINES)]
    return [{"text": piece, "package": package} for piece in pieces]


def pieces_of(files: list[Path]) -> db.Bag:
    """Return the pieces of many files, lazily."""
    return db.from_sequence(files, npartitions=8).map(cut).flatten()


def build(schema: dt.Schema) -> nn.Module:
    """Return a small network for the data's tokens and classes."""
    return dt.models.TextCNN(schema.vocab_size, schema.num_outputs, kernels=(1, 3))


def main() -> None:
    """Train, and compare with the answer that is right most often."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    files, held_out_files = list_files()
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster):
        train, held_out = pieces_of(files), pieces_of(held_out_files)
        text = partial(
            dt.Text, text="text", label="package", tokenizer=dt.text.train_bpe(train, 1024, "text"), context=384
        )
        trainer = dt.Trainer(
            build, nn.CrossEntropyLoss(), partial(torch.optim.AdamW, lr=2e-3), {"accuracy": dt.accuracy}
        )
        result = trainer.fit(text(train), batch_size=64, max_rounds=rounds)

        found = pd.DataFrame(held_out.compute())
        found["right"] = found["package"] == result.predict(held_out).compute()
        by_package = found.groupby("package")["right"].agg(["size", "mean"])
        by_package.insert(0, "trained on", pd.Series(Counter(train.pluck("package").compute())))
        by_package.columns = ["trained on", "held out", "share right"]
        print(by_package.sort_values("trained on", ascending=False).round(2).to_string())
        accuracy, majority = found["right"].mean(), by_package["held out"].max() / len(found)
        print(f"accuracy on held-out files {accuracy:.3f}; always the most frequent package {majority:.3f}")
        for package, piece in zip(result.predict(TEXTS), TEXTS, strict=True):
            print(f"{package:16}{piece.splitlines()[0]}")
    if accuracy < majority + 0.1:
        raise SystemExit("it learned too little")


if __name__ == "__main__":
    main()
