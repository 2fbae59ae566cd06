"""Which token comes next, given scores."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def choose(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Return one token a row, (rows,).

    Parameters
    ----------
    logits
        (rows, vocabulary).
    temperature
        Logits are divided by it; 0: the most probable token.
    top_k
        Draw from so many most probable tokens; None: from all.
    generator
        Where random numbers come from; None: torch's own.
    """
    if temperature < 0 or (top_k is not None and top_k < 1):
        raise ValueError(
            f"temperature must be at least 0 and top_k at least 1, however they are {temperature} and {top_k}"
        )
    if temperature == 0:
        return logits.argmax(dim=-1)
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and back into the one it was in."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


class Continuation:
    """Tokens as they are drawn, and which rows have come to their end.

    Parameters
    ----------
    rows
        How many.
    end
        Token after which a row gets no other; None: there is none.
    """

    def __init__(self, rows: int, end: int | None) -> None:
        self._end, self._ended = end, torch.zeros(rows, dtype=torch.bool)
        self.tokens = torch.empty(rows, 0, dtype=torch.int64)

    def add(self, token: Tensor) -> Tensor:
        """Append (rows,) tokens, `end` where a row had ended, and return what was appended, (rows, 1)."""
        if self._end is not None:
            token = token.masked_fill(self._ended, self._end)
            self._ended = self._ended | (token == self._end)
        self.tokens = torch.cat([self.tokens, token[:, None]], dim=1)
        return token[:, None]

    @property
    def ended(self) -> bool:
        """Whether all rows have."""
        return bool(self._ended.all())
