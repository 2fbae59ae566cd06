"""Where rows come from."""

from dataclasses import fields
from typing import Any

import pandas as pd

from dasktrain.data.arrays import ArrayEncoding, Arrays
from dasktrain.data.encoders import Categorical, Numeric
from dasktrain.data.source import Encoding
from dasktrain.data.table import Table, TableEncoding
from dasktrain.data.target import Labels, Numbers, Target

__all__ = ["Arrays", "Table", "encoding_from_json"]


def encoding_from_json(plain: dict[str, Any]) -> Encoding:
    """Return the encoding whose ``to_json`` gave `plain`."""
    target: Target = _made({"Labels": Labels, "Numbers": Numbers}[plain["target_kind"]], plain["target"])
    if plain["source"] == "arrays":
        return ArrayEncoding(tuple(plain["shape"]), plain["bound"], target)
    return TableEncoding(
        tuple(_made(Numeric, column) for column in plain["numeric"]),
        tuple(_made(Categorical, column) for column in plain["categorical"]),
        target,
    )


def _made(kind: Any, plain: dict[str, Any]) -> Any:
    values = {
        name: tuple(_value(part) for part in value) if isinstance(value, list) else value
        for name, value in plain.items()
    }
    return kind(**{each.name: values[each.name] for each in fields(kind)})


def _value(plain: Any) -> Any:
    return pd.Timestamp(plain["timestamp"]) if isinstance(plain, dict) else plain
