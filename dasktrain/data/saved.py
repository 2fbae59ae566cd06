"""Encodings out of what was saved of them.

Those that are for training alone are imported where they are needed: their sources need Dask.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from dasktrain.data.encoders import Categorical, Numeric
from dasktrain.data.encodings import ArrayEncoding, LabelledEncoding, TableEncoding
from dasktrain.data.plain import from_json
from dasktrain.data.source import Encoding
from dasktrain.data.target import Indicators, Labels, Numbers, Standardised, Target
from dasktrain.data.tokens import Vocabulary
from dasktrain.errors import BadInput


def encoding_from_json(plain: dict[str, Any]) -> Encoding:
    """Return the encoding whose ``to_json`` gave `plain`.

    Raises
    ------
    BadInput
        No encoding gave it.
    """
    try:
        encoding = _READERS[plain["source"]](plain)
        _ = encoding.schema
    except Exception as error:  # of whatever reads dtypes, zones, decimals and tokenizers
        raise BadInput(
            f"An encoding must be as it was saved, however {type(error).__name__}: {error}; save the model again"
        ) from error
    return encoding


def with_function(encoding: Encoding, function: Callable[[str], Sequence[int]]) -> Encoding:
    """Return an encoding of texts with the function that tokenises them, which is not saved with a model."""
    vocabularies = {name: getattr(encoding, name, None) for name in ("vocabulary", "written")}
    known = {name: each for name, each in vocabularies.items() if isinstance(each, Vocabulary)}
    if not known:
        raise BadInput("A tokenizer must belong to a model of texts, however this one was trained on others")
    return replace(encoding, **{name: each.with_function(function) for name, each in known.items()})  # type: ignore[type-var]


def _target(plain: dict[str, Any]) -> Target:
    kinds: dict[str, type[Target]] = {"values": Labels, "means": Standardised, "dtype": Indicators}
    return from_json(next((kind for field, kind in kinds.items() if field in plain), Numbers), plain)


def _arrays(plain: dict[str, Any]) -> Encoding:
    return ArrayEncoding(tuple(plain["shape"]), plain["least"], plain["bound"], _target(plain["target"]))


def _table(plain: dict[str, Any]) -> Encoding:
    return TableEncoding(
        tuple(from_json(Numeric, column) for column in plain["numeric"]),
        tuple(from_json(Categorical, column) for column in plain["categorical"]),
        _target(plain["target"]),
    )


def _packed(plain: dict[str, Any]) -> Encoding:
    from dasktrain.data.packed import PackedEncoding

    return PackedEncoding(Vocabulary.from_json(plain["vocabulary"]), plain["context"])


def _labelled(plain: dict[str, Any]) -> Encoding:
    vocabulary = Vocabulary.from_json(plain["vocabulary"])
    return LabelledEncoding(vocabulary, plain["context"], plain["text"], _target(plain["target"]))


def _paired(plain: dict[str, Any]) -> Encoding:
    from dasktrain.data.paired import PairedEncoding

    vocabulary, written = (Vocabulary.from_json(plain[name]) for name in ("vocabulary", "written"))
    return PairedEncoding(vocabulary, written, plain["context"], plain["text"])


def _records(plain: dict[str, Any]) -> Encoding:
    from dasktrain.data.records import ByFunction, NotSaved, RecordsEncoding

    return RecordsEncoding(ByFunction(NotSaved(plain["collate"])))


_READERS = {
    "arrays": _arrays,
    "table": _table,
    "packed": _packed,
    "labelled": _labelled,
    "paired": _paired,
    "records": _records,
}
