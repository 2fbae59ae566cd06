"""Losses and metrics that count tokens, and a tokenizer trained where the texts are."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import dask
import torch.nn.functional as F
from torch import Tensor

from dasktrain.data.block import scores
from dasktrain.data.bpe import count_words, merge_pairs
from dasktrain.data.fields import Field, column, strings
from dasktrain.data.packed import IGNORED
from dasktrain.data.tokenised import partitions_of, run_each
from dasktrain.errors import BadInput

__all__ = ["cross_entropy", "token_accuracy", "train_bpe"]

#: partitions whose word counts are merged by one task
MERGED = 16


def cross_entropy(output: Any, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of -log p(target) over tokens that count, and how many do.

    Parameters
    ----------
    output
        (rows, tokens, vocabulary) scores, or what a Hugging Face model returns.
    target
        (rows, tokens) int64, -100 for what does not count: padding, and what lies behind a stream's end.
    """
    logits = scores(output)
    total = F.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=IGNORED, reduction="sum")
    return total, (target != IGNORED).sum()


def token_accuracy(output: Any, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many tokens that count are the most probable ones, and how many count."""
    counted = target != IGNORED
    return ((scores(output).argmax(dim=-1) == target) & counted).sum(), counted.sum()


def train_bpe(source: Any, size: int, text: Field | None = None, specials: Sequence[str] = ("<|endoftext|>",)) -> Any:
    """Train a byte-level BPE tokenizer on a cluster's texts.

    Words are counted in each partition, and counts are merged in the partitions' order, so that it is the same on any
    cluster; merges are found here (Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units",
    2016). Splits texts as GPT-2 does.

    Parameters
    ----------
    source, text
        Texts, as :func:`dasktrain.Text` takes them.
    size
        Tokens it is to have, at least 256 and the special ones.
    specials
        Tokens that stand for nothing in a text; they come first.

    Returns
    -------
    tokenizers.Tokenizer
        Fewer tokens than `size` if the texts have no more pairs to merge.

    Raises
    ------
    BadInput
        `size` is too small, or there are no texts.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # an extra

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    least = len(alphabet) + len(specials)
    if size < least:
        raise BadInput(f"size must be at least {least}, the bytes and the special tokens, however it is {size}")
    counts = _word_counts(source, text)
    if not counts:
        raise BadInput("There must be texts to train a tokenizer on, however all of them are empty")
    vocabulary = {token: number for number, token in enumerate([*specials, *alphabet])}
    merges = merge_pairs(counts, vocabulary, size)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    return tokenizer


def _word_counts(source: Any, text: Field | None) -> Counter[str]:
    """Count words, pair after pair of partitions, on the cluster."""
    partitions, field = partitions_of(source, text)
    counts = run_each(_count, (field,), partitions, range(len(partitions)))
    while len(counts) > 1:
        counts = run_each(_merge, (), [counts[start : start + MERGED] for start in range(0, len(counts), MERGED)])
    (found,) = dask.compute(counts[0])
    merged: Counter[str] = found
    return merged


def _count(field: Field | None, partition: Any, number: int) -> Counter[str]:
    records = partition if hasattr(partition, "columns") else list(partition)
    return count_words(strings(column(records, field), f"partition {number}"))


def _merge(counts: Sequence[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total
