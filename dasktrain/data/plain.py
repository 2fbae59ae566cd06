"""Encodings as JSON: labels, categories and dtypes in, the same labels, categories and dtypes out."""

import base64
import datetime
import decimal
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from dasktrain.errors import DataError

T = TypeVar("T")


def to_json(encoder: Any) -> dict[str, Any]:
    """Return a dataclass of values, tuples of values and dtypes as plain JSON values."""
    return {each.name: _plain(getattr(encoder, each.name)) for each in fields(encoder)}


def from_json(kind: type[T], plain: dict[str, Any]) -> T:
    """Return the dataclass of which `to_json` made `plain`."""
    return kind(**{each.name: _value(plain[each.name]) for each in fields(kind)})  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.dtype | pd.api.extensions.ExtensionDtype):
        return {"dtype": _plain_dtype(value)}
    if isinstance(value, pd.Timestamp):
        utc = value if value.tz is None else value.tz_convert("UTC")
        return {"timestamp": utc.isoformat(), "zone": None if value.tz is None else str(value.tz)}
    if isinstance(value, pd.Interval):
        return {"interval": [_plain(value.left), _plain(value.right)], "closed": value.closed}
    if isinstance(value, pd.Timedelta):
        return {"timedelta": value.isoformat()}
    for name, (kind, write, _) in _BY_TEXT.items():
        if isinstance(value, kind):
            return {name: write(value)}
    raise DataError(f"Categories and labels must be of a kind JSON can hold, however {value!r} is a {type(value)}")


def _value(plain: Any) -> Any:
    if isinstance(plain, list):
        return tuple(_value(part) for part in plain)
    if not isinstance(plain, dict):
        return plain
    if "dtype" in plain:
        return _dtype(plain["dtype"])
    if "timestamp" in plain:
        naive = pd.Timestamp(plain["timestamp"])
        return naive if plain["zone"] is None else naive.tz_convert(plain["zone"])
    if "interval" in plain:
        left, right = map(_value, plain["interval"])
        return pd.Interval(left, right, closed=plain["closed"])
    if "timedelta" in plain:
        return pd.Timedelta(plain["timedelta"])
    (name, text), *_ = plain.items()
    return _BY_TEXT[name][2](text)


def require_json(name: str, values: Iterable[Any]) -> None:
    """Raise DataError naming column `name` if one of its values could not be saved with a model."""
    for value in values:
        try:
            _plain(value)
        except DataError as error:
            raise DataError(
                f"Column {name!r} must hold values that JSON can, however {value!r} is a {type(value).__name__}; "
                "convert it to strings"
            ) from error


_BY_TEXT: dict[str, tuple[type, Any, Any]] = {
    "datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),  # a date as well
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "decimal": (decimal.Decimal, str, decimal.Decimal),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
}


def _plain_dtype(dtype: Any) -> Any:
    if isinstance(dtype, pd.CategoricalDtype):
        categories = dtype.categories
        return {
            "categories": [_plain(value) for value in categories],
            "of": _plain_dtype(categories.dtype),
            "ordered": dtype.ordered,
        }
    if isinstance(dtype, pd.StringDtype):
        return {"string": dtype.storage, "missing": "NA" if dtype.na_value is pd.NA else "nan"}
    if isinstance(dtype, pd.ArrowDtype):
        schema = pa.schema([("column", dtype.pyarrow_dtype)])
        return {"arrow": base64.b64encode(schema.serialize().to_pybytes()).decode()}
    return str(dtype)


def _dtype(plain: Any) -> Any:
    if isinstance(plain, str):
        return pd.api.types.pandas_dtype(plain)
    if "categories" in plain:
        values = pd.Index([_value(value) for value in plain["categories"]], dtype=_dtype(plain["of"]))
        return pd.CategoricalDtype(values, plain["ordered"])
    if "string" in plain:
        return pd.StringDtype(plain["string"], na_value=pd.NA if plain["missing"] == "NA" else np.nan)
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(plain["arrow"])))
    return pd.ArrowDtype(schema.field("column").type)
