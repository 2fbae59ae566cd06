"""Checkpoints, saved results and encodings that hold nonsense; in memory, and sealed as ours are."""

import hashlib
import json
from decimal import Decimal
from functools import cache
from random import Random
from types import SimpleNamespace
from typing import Any

import dask
import dask.bag as db
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
from tokenizers import Tokenizer, models, pre_tokenizers

import dasktrain as dt
from dasktrain.checkpoint import MANIFEST, _seal
from dasktrain.data.saved import encoding_from_json
from dasktrain.data.source import Encoding, Source
from dasktrain.observe import History
from dasktrain.recipe import read_yaml
from dasktrain.resume import Saved
from dasktrain.state import Cursor, TrainState
from tests.malformed.mutations import changed_bytes, changed_json, changed_value
from tests.small import SGD, fit, linear, table

ROOT = "/dasktrain-malformed"
URL = f"memory:/{ROOT}"
Files = dict[str, bytes]


def checkpoint(random: Random) -> None:
    """Go on from a checkpoint."""
    _write("run/round-000000000003", _changed(_checkpoint(), random))
    saved = Saved.read(f"{URL}/run")
    state = TrainState(linear(table_schema()), SGD)
    run: Any = SimpleNamespace(cursor=Cursor(), history=History())
    saved.restore(run, state, dt.GradientAveraging(), None)


def result(random: Random) -> None:
    """Load a saved result."""
    _write("result", _changed(_result(), random))
    dt.load(f"{URL}/result", linear)


def encoding(random: Random) -> None:
    """Read an encoding."""
    encoding_from_json(changed_value(random.choice(_encodings()), random))


def recipe(random: Random) -> None:
    """Read a job's text; what it names is imported on purpose, and later."""
    read_yaml(changed_bytes(RECIPE, random), "recipe.yaml")


RECIPE = b"""
data: {parquet: rows.parquet, table: {target: label}}
model: {MLP: {widths: [16, 16]}}
loss: CrossEntropyLoss
optimizer: {AdamW: {lr: 1e-3}}
x: &x !!python/object/apply:os.putenv [DASKTRAIN_TEST_CANARY, ran]
y: [*x, *x, 2026-01-01, !!binary aGVsbG8=, 0x1f, .nan]
"""

# -- files -----------------------------------------------------------------------------------------------------------


def _changed(files: Files, random: Random) -> Files:
    """Damage one of two files, in half of the cases so that digest and seal do not tell."""
    manifest = json.loads(files[MANIFEST])
    payload = files[manifest["tensors"]]
    change = random.randrange(4)
    if change == 0:
        return files | {MANIFEST: changed_bytes(files[MANIFEST], random)}
    if change == 1:
        payload = changed_bytes(payload, random)
        manifest |= {"sha256": hashlib.sha256(payload).hexdigest()} if random.random() < 0.8 else {}
    if change == 2:
        return files | {MANIFEST: changed_json(manifest, random)}
    if change == 3:
        inside = {name: value for name, value in manifest.items() if name not in ("format", "tensors", "sha256")}
        changed = changed_value(inside, random)
        manifest |= changed if isinstance(changed, dict) else {"tree": changed}
    return {MANIFEST: json.dumps(manifest | {"seal": _seal(manifest)}).encode(), manifest["tensors"]: payload}


def _write(folder: str, files: Files) -> None:
    fs = fsspec.filesystem("memory")
    if fs.exists(f"{ROOT}/{folder}"):
        fs.rm(f"{ROOT}/{folder}", recursive=True)
    for name, content in files.items():
        fs.pipe_file(f"{ROOT}/{folder}/{name}", content)


def _read(folder: str) -> Files:
    fs = fsspec.filesystem("memory")
    return {path.rsplit("/", 1)[1]: fs.cat_file(path) for path in fs.ls(f"{ROOT}/{folder}", detail=False)}


def cleaned() -> None:
    """Have the memory hold nothing of this."""
    fs = fsspec.filesystem("memory")
    if fs.exists(ROOT):
        fs.rm(ROOT, recursive=True)


# -- what is valid ---------------------------------------------------------------------------------------------------


@cache
def made() -> None:
    """Make all that is valid."""
    _checkpoint(), _encodings(), table_schema()


@cache
def _checkpoint() -> Files:
    fit(table(), observers=[dt.Checkpoint(f"{URL}/valid", "1 rounds", keep=1)], max_rounds=3)
    return _read("valid/round-000000000003")


@cache
def _result() -> Files:
    fit(table()).save(f"{URL}/saved")
    return _read("saved")


@cache
def table_schema() -> dt.Schema:
    """Return what a model for the small table is built from."""
    schema: dt.Schema = encoding_from_json(json.loads(_result()[MANIFEST])["encoding"]).schema
    return schema


@cache
def _encodings() -> list[Any]:
    """Return the JSON of an encoding of every kind, with dtypes and labels of many."""
    days = pd.Series(pd.date_range("2026-01-01", periods=4, tz="Europe/Paris"))
    columns = pd.DataFrame(
        {
            "number": [1.0, 2.0, 3.0, 4.0],
            "other": [1.0, 2.0, 3.0, 4.0],
            "day": days.astype("category"),
            "span": pd.cut(pd.Series(np.arange(4)), 2),
            "price": pd.Series([Decimal("0.10"), Decimal("2")] * 2, dtype=object),
            "raw": pd.Series([b"\xff", b""] * 2, dtype=object),
            "label": pd.Series([1, 2, 1, 2], dtype=pd.ArrowDtype(pa.int32())),
            "line": ["to be", "or", "not", "to be"],
        }
    )
    tokens = Tokenizer(models.WordLevel({"to": 0, "be": 1, "or": 2, "not": 3, "?": 4}, unk_token="?"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    lines = db.from_sequence(list(columns["line"]), npartitions=1)
    sources: list[Source] = [
        dt.Table(columns, "label", numeric=["number"], categorical=["day", "span", "price", "raw"]),
        dt.Table(columns, ["other"], numeric=["number"], categorical=[]),
        dt.Arrays(np.ones((4, 2), np.float32), np.array([0, 1, 0, 1])),
        dt.Text(lines, context=4),
        dt.Text(columns, text="line", label="label", tokenizer=tokens),
        dt.Text(columns, text="line", into="line"),
        dt.Records([{"x": 1.0}], collate=list),
    ]
    return [json.loads(json.dumps(_fitted(source).to_json())) for source in sources]


def _fitted(source: Source) -> Encoding:
    return source.fit(dask.compute(*source.survey(), scheduler="sync"))
