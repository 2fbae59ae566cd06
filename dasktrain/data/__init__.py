"""Where rows come from."""

from typing import Any

from dasktrain.data.arrays import ArrayEncoding, Arrays
from dasktrain.data.encoders import Categorical, Numeric
from dasktrain.data.plain import from_json
from dasktrain.data.source import Encoding
from dasktrain.data.table import Table, TableEncoding
from dasktrain.data.target import Labels, Numbers, Target

__all__ = ["Arrays", "Table", "encoding_from_json"]


def encoding_from_json(plain: dict[str, Any]) -> Encoding:
    """Return the encoding whose ``to_json`` gave `plain`."""
    labels = "dtype" in plain["target"]
    target: Target = from_json(Labels, plain["target"]) if labels else from_json(Numbers, plain["target"])
    if plain["source"] == "arrays":
        return ArrayEncoding(tuple(plain["shape"]), plain["least"], plain["bound"], target)
    return TableEncoding(
        tuple(from_json(Numeric, column) for column in plain["numeric"]),
        tuple(from_json(Categorical, column) for column in plain["categorical"]),
        target,
    )
