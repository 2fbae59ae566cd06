"""What a user calls: one name for the three kinds of text data."""

from numbers import Integral
from typing import Any

import dask.dataframe as dd
import pandas as pd

from dasktrain.data.fields import Field
from dasktrain.data.labelled import LabelledText
from dasktrain.data.packed import PackedText
from dasktrain.data.paired import PairedText
from dasktrain.data.target import is_float
from dasktrain.data.tokenised import Reader, TextSource, opened, partitions_of
from dasktrain.data.tokens import as_tokenizer
from dasktrain.errors import BadInput, known_keywords


@known_keywords
def Text(  # noqa: N802 - beside Table and Arrays, and it may become a class
    source: Any,
    text: Field | None = None,
    label: Field | None = None,
    into: Field | None = None,
    tokenizer: Any = "bytes",
    into_tokenizer: Any = None,
    context: int = 256,
    vocab_size: int | None = None,
    classes: bool | None = None,
) -> TextSource:
    """Texts as training data, for one of three tasks.

    ================  =================================================================================================
    neither given     **language model**: documents, each followed by the token `end`, are one stream that is cut into
                      rows of `context` tokens, across documents and partitions; ``model(input_ids)`` foretells every
                      token but the first
    ``label=``        **classification**, or regression: ``model(input_ids, attention_mask)``, texts padded to the
                      longest of a shard's rows in a round; texts of like length are read together
    ``into=``         **sequence to sequence**: ``model(input_ids, attention_mask, decoder_input_ids)``, texts and what
                      is to be written padded likewise; the decoder reads what it should have written (teacher forcing)
    ================  =================================================================================================

    Targets of the first and the last are (rows, tokens), -100 where nothing is to be foretold; use
    :func:`dasktrain.text.cross_entropy`, whose denominator is the tokens of the whole round. Inputs are passed by name
    to a module whose ``forward`` has these names, as Hugging Face's do, and in this order to any other.

    Parameters
    ----------
    source
        Dask Bag (``db.read_text(...)``), DataFrame or Series of Dask or pandas, a list, or the URL of a Parquet data
        set. Tokenised once, on the workers; Dask spills what does not fit in memory.
    text
        Column that holds the texts; of a Bag's records the key or place. None: the records are texts.
    label
        Column, key or place of what is to be said of a text.
    into
        Column, key or place of the text to be written.
    tokenizer
        ``"bytes"`` (256 tokens), a ``tokenizers.Tokenizer`` or a fast tokenizer of transformers, or a function that
        returns the tokens of a text. Special tokens it lacks are added behind its own.
    into_tokenizer
        Of what is written; None: the same.
    context
        Tokens of a row. Longer labelled or paired texts are cut to it, which is counted and told.
    vocab_size
        Tokens that a tokenizer which is a function may return; None: as many as the data has.
    classes
        Whether the label is a class. None: unless it is a floating-point column.

    Raises
    ------
    DataError
        Now: a column that is not there. Before the first round: texts that are missing or not UTF-8, tokens that a
        tokenizer should not return, a label of the validation data that training does not have.
    """
    if label is not None and into is not None:
        raise BadInput("Text must have a label or be turned into another text, however both are given")
    if not isinstance(context, Integral) or context < 2:
        raise BadInput(f"context must be a whole number of at least 2 tokens, however it is {context}")
    source = opened(source)
    for name, field in (("label", label), ("into", into)):
        _check_column(source, name, field)
    partitions, text = partitions_of(source, text, label, into)
    read = as_tokenizer(tokenizer, vocab_size)
    written = read if into_tokenizer is None else as_tokenizer(into_tokenizer)
    longest = None if label is None and into is None else context
    reader = Reader((text, label, into), (read, written), longest)
    if label is not None:
        dtype = source.dtypes[str(label)] if isinstance(source, pd.DataFrame | dd.DataFrame) else None
        as_labels = classes if classes is not None else dtype is None or not is_float(dtype)
        return LabelledText(partitions, reader, context, as_labels, dtype)
    return PackedText(partitions, reader, context) if into is None else PairedText(partitions, reader, context)


def _check_column(source: Any, name: str, field: Field | None) -> None:
    if isinstance(source, pd.Series | dd.Series):
        source = source.to_frame()
    if field is not None and isinstance(source, pd.DataFrame | dd.DataFrame) and field not in list(source.columns):
        raise BadInput(f"{name} must be a column, one of {list(source.columns)}, however it is {field!r}")
