"""The layers transformers are made of."""

import math
from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: keys and values of what is attended to, both (rows, heads, length, width / heads)
KeysValues = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., "Attention Is All You Need", 2017).

    Keys and values are computed by `keys_values` and given to `forward`: what a cache keeps is these.

    Parameters
    ----------
    width, heads
        Of the vectors, and how many parts of them attend on their own; `heads` divides `width`.
    dropout
        Chance of each weight of attention to be left out.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide width, however they are {heads} and {width}")
        self.heads, self.dropout = heads, dropout
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def keys_values(self, x: Tensor) -> KeysValues:
        """Return what `x`, (rows, length, width), is attended to by."""
        key, value = self.key_value(x).chunk(2, dim=-1)
        return self._split(key), self._split(value)

    def forward(self, x: Tensor, attended: KeysValues, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Attend from (rows, length, width) wherever `mask`, (rows, 1, 1, attended length), is true."""
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            self._split(self.query(x)), *attended, attn_mask=mask, dropout_p=dropout, is_causal=causal
        )
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """(rows, length, width) -> (rows, heads, length, width / heads)."""
        rows, length, width = x.shape
        return x.view(rows, length, self.heads, width // self.heads).transpose(1, 2)


class Layer(nn.Module):
    """Attention to the sequence itself, if asked for to another one, and two linear layers; each normalised first.

    Parameters
    ----------
    width, heads, dropout
        As of `Attention`; the linear layers are 4 x `width` wide inside.
    crossed
        Whether it attends to another sequence, too.
    """

    def __init__(self, width: int, heads: int, dropout: float, crossed: bool = False) -> None:
        super().__init__()
        self.norm_self, self.attend_self = nn.LayerNorm(width), Attention(width, heads, dropout)
        if crossed:
            self.norm_other, self.attend_other = nn.LayerNorm(width), Attention(width, heads, dropout)
        self.norm_linear = nn.LayerNorm(width)
        self.linear = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (rows, length, width), every place seeing every other one that `mask` shows."""
        normed = self.norm_self(x)
        x = x + self.drop(self.attend_self(normed, self.attend_self.keys_values(normed), mask))
        return self._linear(x)

    def forward_causal(
        self,
        x: Tensor,
        past: KeysValues | None = None,
        other: KeysValues | None = None,
        other_mask: Tensor | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """Let every place see itself and those before it; return keys and values of all of them, too.

        `x` is what follows the `past`: all of a sequence, or one place of it.
        """
        normed = self.norm_self(x)
        seen = self.attend_self.keys_values(normed)
        if past is not None:
            seen = torch.cat([past[0], seen[0]], dim=2), torch.cat([past[1], seen[1]], dim=2)
        x = x + self.drop(self.attend_self(normed, seen, causal=past is None))
        if other is not None:
            x = x + self.drop(self.attend_other(self.norm_other(x), other, other_mask))
        return self._linear(x), seen

    def _linear(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.drop(self.linear(self.norm_linear(x)))
        return out


class Layers(nn.ModuleList):
    """Layers, one after another."""

    def __init__(self, layers: int, width: int, heads: int, dropout: float, crossed: bool = False) -> None:
        super().__init__(Layer(width, heads, dropout, crossed) for _ in range(layers))

    def __iter__(self) -> Iterator[Layer]:
        """Go through them in their order."""
        return cast(Iterator[Layer], super().__iter__())


class Embedding(nn.Module):
    """A vector a token plus one a position, (rows, length) int64 -> (rows, length, width).

    Parameters
    ----------
    vocab_size
        Tokens are 0 to `vocab_size` - 1.
    context
        Longest sequence.
    """

    def __init__(self, vocab_size: int, context: int, width: int, dropout: float) -> None:
        super().__init__()
        self.context = context
        self.token, self.position = nn.Embedding(vocab_size, width), nn.Embedding(context, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, start: int = 0) -> Tensor:
        """Embed tokens of which the first is at place `start`."""
        stop = start + tokens.shape[1]
        if stop > self.context:
            raise ValueError(f"A sequence must have at most {self.context} tokens, however it has {stop}")
        embedded: Tensor = self.drop(self.token(tokens) + self.position.weight[start:stop])
        return embedded


def initialise(module: nn.Module, layers: int) -> None:
    """Draw weights as GPT-2 does (Radford et al., 2019): what is added to the main path shrinks with its length."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            added = name.endswith(("out", "linear.2"))
            nn.init.normal_(part.weight, std=0.02 / math.sqrt(2 * layers) if added else 0.02)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


def as_mask(attention_mask: Tensor | None) -> Tensor | None:
    """(rows, length), 1 for what may be seen -> (rows, 1, 1, length) bool; None stays None."""
    return None if attention_mask is None else attention_mask.bool()[:, None, None, :]
