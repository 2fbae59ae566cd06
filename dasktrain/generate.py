"""Texts written by a trained model, over Dask collections, lazily."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import dask
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import torch
from dask.delayed import Delayed
from torch import Tensor, nn

from dasktrain.data.block import batches, unlabelled
from dasktrain.data.fields import strings, texts_of
from dasktrain.data.packed import PackedEncoding
from dasktrain.data.paired import PairedEncoding
from dasktrain.data.source import Encoding
from dasktrain.data.table import from_pandas
from dasktrain.errors import BadInput
from dasktrain.shipping import pack, run_packed

#: texts that are written at once
ROWS = 64


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn.

    Attributes
    ----------
    max_tokens : int
        To write for each text, at most.
    temperature, top_k
        See :func:`dasktrain.models.sampling.choose`.
    seed : int
        Of all random numbers; those of a partition come from it and from the partition's number.
    """

    max_tokens: int
    temperature: float
    top_k: int | None
    seed: int


def generate(
    module: nn.Module,
    encoding: Encoding,
    texts: Any,
    max_tokens: int = 200,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
) -> Any:
    """Write a text for each of `texts`: what follows it, or what it is to be turned into.

    Parameters
    ----------
    module, encoding
        Of a run on Text without labels. The module has ``generate`` as :class:`dasktrain.models.Decoder` or
        :class:`dasktrain.models.EncoderDecoder` do.
    texts
        Dask Bag or Series, DataFrame with the column trained on, pandas of these, or a list.
    max_tokens
        To write for each, at most.
    temperature
        Scores are divided by it before a token is drawn; 0: the most probable token.
    top_k
        Draw from so many most probable tokens; None: from all.
    seed
        The same texts in the same partitions are continued the same way again.

    Returns
    -------
    dask.bag.Bag, dask.dataframe.Series or list of str
        A list for a list, at once.
    """
    if not isinstance(encoding, PackedEncoding | PairedEncoding) or not hasattr(module, "generate"):
        raise BadInput(
            "Texts must be written by a model that can, trained on dt.Text without labels, however this is a "
            f"{type(module).__name__} trained on {type(encoding).__name__}"
        )
    if "max_tokens" not in inspect.signature(module.generate).parameters:  # type: ignore[arg-type]
        raise BadInput(
            "A model must have the generate of dasktrain.models.Decoder or EncoderDecoder, however that of "
            f"{type(module).__name__}, of {type(module).__module__.partition('.')[0]}, takes other arguments; "
            "call result.model.generate with tokens"
        )
    text = encoding.text if isinstance(encoding, PairedEncoding) else None
    if isinstance(texts, pd.DataFrame | dd.DataFrame) and (text is None or text not in texts.columns):
        raise BadInput(
            "Texts must be in the column that the model was trained on, however the DataFrame has "
            f"{list(texts.columns)}; pass the column itself, as a Series"
        )
    drawing = Drawing(max_tokens, temperature, top_k, seed)
    if isinstance(texts, list | tuple):
        return _Writer(module, encoding, drawing)(list(texts), 0)
    shipped = dask.delayed(pack(_Writer, module, encoding, drawing), pure=True)
    write = pack(_write)
    if isinstance(texts, pd.DataFrame | pd.Series):
        texts = from_pandas(texts)
    run = dask.delayed(run_packed, name="dasktrain-generate", pure=True)
    if not isinstance(texts, db.Bag | dd.DataFrame | dd.Series):
        raise BadInput(f"Texts must come as a Bag, a DataFrame, a Series or a list, however they are {type(texts)}")
    parts: list[Delayed] = [run(write, shipped, part, number) for number, part in enumerate(texts.to_delayed())]
    if isinstance(texts, db.Bag):
        return db.from_delayed(parts)
    meta = pd.Series([], dtype=object, index=texts._meta.index[:0], name="generated")
    return dd.from_delayed(parts, meta=meta, divisions=texts.divisions, verify_meta=False)


def _write(shipped: bytes, partition: Any, number: int) -> Any:
    writer = _unpacked(shipped)
    if isinstance(partition, pd.DataFrame | pd.Series):
        texts = texts_of(partition, writer.text)
        return pd.Series(writer(texts, number), index=partition.index, name="generated", dtype=object)
    return writer(list(partition), number)


@lru_cache(maxsize=4)
def _unpacked(shipped: bytes) -> "_Writer":
    """Unpack a model once a process."""
    writer: _Writer = run_packed(shipped)
    return writer


class _Writer:
    """Module and vocabulary on a worker."""

    def __init__(self, module: Any, encoding: PackedEncoding | PairedEncoding, drawing: Drawing) -> None:
        self._module, self._encoding, self._drawing = module.eval(), encoding, drawing
        self.text = encoding.text if isinstance(encoding, PairedEncoding) else None

    def __call__(self, texts: Sequence[Any], number: int) -> list[str]:
        """Return what is written for each text of partition `number`."""
        if not len(texts):
            return []
        # Seeded by both: partitions must not repeat each other.
        seed = int(np.random.SeedSequence((self._drawing.seed, number)).generate_state(1, np.uint64)[0] >> 1)
        generator = torch.Generator().manual_seed(seed)
        if isinstance(self._encoding, PairedEncoding):
            return self._turned(self._encoding, texts, generator)
        return self._continued(self._encoding, texts, generator)

    def _turned(self, encoding: PairedEncoding, texts: Sequence[Any], generator: torch.Generator) -> list[str]:
        vocabulary = encoding.written
        written: list[str] = []
        for batch in batches(unlabelled(encoding.inputs(texts)), encoding.collate, ROWS):
            tokens = self._module.generate(
                *batch.inputs.values(),  # type: ignore[union-attr]  # of texts they are named
                start=vocabulary.start,
                end=vocabulary.end,
                **self._settings(generator),
            )
            written += [vocabulary.decode(row) for row in tokens.tolist()]
        return written

    def _continued(self, encoding: PackedEncoding, texts: Sequence[Any], generator: torch.Generator) -> list[str]:
        """Go on with texts, those of as many tokens at once: all of a batch are at the same place."""
        vocabulary = encoding.vocabulary
        tokens, _ = vocabulary.encode(strings(texts, "the texts to go on with"), None)
        tokens = tokens.filled(vocabulary.end)  # nothing at all: begin a document
        written = [""] * len(texts)
        for length in np.unique(tokens.lengths).tolist():
            places = np.flatnonzero(tokens.lengths == length)
            for start in range(0, len(places), ROWS):
                chosen = places[start : start + ROWS]
                prompt: Tensor = tokens.take(chosen).padded(vocabulary.pad)
                found = self._module.generate(prompt, end=vocabulary.end, **self._settings(generator))
                for place, row in zip(chosen.tolist(), found.tolist(), strict=True):
                    written[place] = vocabulary.decode(row)
        return written

    def _settings(self, generator: torch.Generator) -> dict[str, Any]:
        drawing = self._drawing
        return {
            "max_tokens": drawing.max_tokens,
            "temperature": drawing.temperature,
            "top_k": drawing.top_k,
            "generator": generator,
        }
