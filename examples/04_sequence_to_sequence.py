"""Turn texts into others: numbers in words into digits, and docstrings into names of functions.

The numbers can be learnt without a fault: the script fails if fewer than 98 of 100 held-out ones are right. The names
can only be guessed; they are read from the Python standard library, or another folder.
"""

import argparse
import ast
import random
import re
import sysconfig
from pathlib import Path
from typing import Any

import dask.bag as db
from dask.distributed import Client, LocalCluster

import dasktrain as dt

STDLIB = Path(sysconfig.get_path("stdlib"))
GOAL = 0.98
NOT_READ = {"site-packages", "test", "tests", "idle_test", "lib2to3", "encodings", "pydoc_data"}
ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(number: int) -> str:
    """Return a number below 10,000 in words, such as four thousand two hundred and seven."""
    if number < 20:
        return (ONES + TEENS)[number]
    if number < 100:
        return TENS[number // 10 - 2] + (f" {ONES[number % 10]}" if number % 10 else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    many, rest = divmod(number, size)
    joined = "" if not rest else " and " + in_words(rest) if rest < 100 else " " + in_words(rest)
    return f"{in_words(many)} {name}{joined}"


def number_pairs() -> list[dict[str, str]]:
    """Return all numbers below 10,000, in words and in digits, shuffled."""
    pairs = [{"read": in_words(number), "written": str(number)} for number in range(10_000)]
    random.Random(0).shuffle(pairs)
    return pairs


def name_pairs(path: Path) -> list[dict[str, str]]:
    """Return pairs of a docstring's first line and the words of its function's name, all in lower case."""
    pairs = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
            first_line = (ast.get_docstring(node) or "").partition("\n")[0]
            words = re.findall("[A-Z]?[a-z]+|[A-Z]+(?![a-z])", node.name)
            if first_line and words:
                pairs.append({"read": first_line.lower(), "written": " ".join(words).lower()})
    return pairs


def fit(train: db.Bag, validation: db.Bag, vocabulary: int, **settings: Any) -> dt.Seq2Seq:
    """Train a small model until validation no longer improves."""
    texts = train.map(lambda pair: f"{pair['read']} {pair['written']}")
    model = dt.Seq2Seq(
        layers=1,
        width=64,
        context=64,
        dropout=0.0,
        tokenizer=dt.text.train_bpe(texts, vocabulary),
        observers=[dt.Progress(), dt.EarlyStopping(patience=4)],  # ends with the best epoch
        shards=2,  # as many as workers: larger pieces of a small batch
        **settings,
    )
    return model.fit(train, "written", "read", eval_set=validation)


def learn_numbers(rounds: int) -> float:
    """Learn nine numbers of ten; return the share of held-out ones that are written without a fault."""
    pairs = number_pairs()
    held_out, validation = pairs[:500], db.from_sequence(pairs[500:1000], npartitions=2)
    train = db.from_sequence(pairs[1000:], npartitions=4)
    model = fit(train, validation, 300, learning_rate=1.5e-3, warmup=30, batch_size=128, max_rounds=rounds)
    show(model, held_out[:3])
    exact = model.score([pair["read"] for pair in held_out], [pair["written"] for pair in held_out])
    print(f"held-out numbers written without a fault: {exact:.3f}")
    return exact


def learn_names(folder: Path, rounds: int) -> None:
    """Learn names of functions; print what the model makes of docstrings in held-out files."""
    files = [path for path in sorted(folder.rglob("*.py")) if not NOT_READ & set(path.relative_to(folder).parts)]
    seen = [path for number, path in enumerate(files) if number % 10 > 1]
    held_out, validation, train = (
        db.from_sequence(part, npartitions=4).map(name_pairs).flatten() for part in (files[::10], files[1::10], seen)
    )
    model = fit(train, validation, 512, learning_rate=4e-3, warmup=100, batch_size=64, max_rounds=rounds)
    show(model, random.Random(0).sample(held_out.compute(), 8))
    data = dt.Text(held_out, "read", into="written", tokenizer=model.tokenizer, context=model.context)
    accuracy = model.result_.evaluate(data, {"accuracy": dt.text.token_accuracy})["accuracy"]
    print(f"tokens of held-out names that are foretold: {accuracy:.3f}")


def show(model: dt.Seq2Seq, pairs: list[dict[str, str]]) -> None:
    """Print what is read, written and wanted."""
    for pair, written in zip(pairs, model.predict([pair["read"] for pair in pairs], max_tokens=20), strict=True):
        print(f"read     {pair['read']}\n  written  {written}\n  wanted   {pair['written']}")


def main() -> None:
    """Learn numbers, then names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=850, help="for the numbers")
    parser.add_argument("--name-rounds", type=int, default=600, help="for the names of functions")
    parser.add_argument("--names-from", type=Path, default=STDLIB, help="a folder of Python files to learn names from")
    arguments = parser.parse_args()
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster):
        exact = learn_numbers(arguments.rounds)
        learn_names(arguments.names_from, arguments.name_rounds)
    if exact < GOAL:
        raise SystemExit(f"at least {GOAL} of the numbers should be right")


if __name__ == "__main__":
    main()
