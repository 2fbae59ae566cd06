"""Texts out of records of any kind."""

from collections.abc import Hashable, Sequence
from typing import Any

import pandas as pd

from dasktrain.errors import DataError

Field = Hashable


def column(records: Any, field: Field | None, number: int = 0) -> list[Any]:
    """Return one field of all records of partition `number`, None: the records themselves."""
    if field is None:
        return list(records)
    try:
        return list(records[field]) if isinstance(records, pd.DataFrame) else [record[field] for record in records]
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"Every record must have {field!r}, however in partition {number} one has not: "
            f"{type(error).__name__}: {error}"
        ) from error


def texts_of(partition: Any, field: Field | None) -> list[Any]:
    """Return the texts of a partition that is to be read: of records as in training one field, of texts they."""
    records = partition if isinstance(partition, pd.DataFrame) else list(partition)
    whole = isinstance(records, pd.DataFrame) or any(isinstance(record, dict | list | tuple) for record in records)
    return column(records, field if whole else None)


def strings(values: Sequence[Any], where: str) -> list[str]:
    """Return texts as strings that are valid Unicode; bytes must be UTF-8."""
    kinds = set(map(type, values))
    if not kinds <= {str, bytes}:
        missing = [value for value in values if not isinstance(value, str | bytes)]
        if missing:
            raise DataError(
                f"Every text must be a string, however {len(missing)} of {len(values)} in {where} are not, such as "
                f"{missing[0]!r}; drop those rows or make them empty strings"
            )
    try:
        texts = (
            [value.decode() if isinstance(value, bytes) else value for value in values] if bytes in kinds else values
        )
        "".join(texts).encode()  # half a surrogate pair stands for a byte that was not UTF-8
    except UnicodeError as error:
        raise DataError(
            f"Every text must be UTF-8, however in {where} one is not: {error.reason}; read it with "  # type: ignore[attr-defined]
            'errors="replace" or drop it'
        ) from error
    return list(texts)
