"""A transformer that goes on with a text: a language model."""

import torch
from torch import Tensor, nn

from dasktrain.models.attention import Embedding, KeysValues, Layers, initialise
from dasktrain.models.sampling import Continuation, choose, evaluating


class Decoder(nn.Module):
    """A decoder-only transformer.

    Parameters
    ----------
    vocab_size
        ``schema.vocab_size``.
    layers, width, heads
        How many layers, the width of their vectors, and into how many heads attention is split.
    context
        Longest sequence in tokens.
    dropout
        Everywhere.

    Notes
    -----
    Shape: (rows, length) int64 to (rows, length, vocab_size), scores of the token that follows each.

    Examples
    --------
    >>> model = Decoder(100, layers=1, width=16, heads=2, context=8)
    >>> model.generate(torch.zeros(2, 3, dtype=torch.int64), max_tokens=20).shape
    torch.Size([2, 20])
    """

    def __init__(
        self,
        vocab_size: int,
        layers: int = 4,
        width: int = 256,
        heads: int = 4,
        context: int = 256,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.context = context
        self.embedding = Embedding(vocab_size, context, width, dropout)
        self.layers = Layers(layers, width, heads, dropout)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        initialise(self, layers)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return scores of the next token at every place."""
        scores: Tensor = self.head(self.norm(self._through(input_ids, None)[0]))
        return scores

    def _through(self, input_ids: Tensor, past: list[KeysValues] | None) -> tuple[Tensor, list[KeysValues]]:
        """Go through all layers with what follows the `past`."""
        x = self.embedding(input_ids, start=past[0][0].shape[2] if past else 0)
        seen = []
        for number, layer in enumerate(self.layers):
            x, present = layer.forward_causal(x, past[number] if past else None)
            seen.append(present)
        return x, seen

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        end: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Go on with (rows, length) tokens, of which the last `context` are seen.

        Keys and values of what was seen are kept. Once `context` tokens have been, it goes on from the later half of
        them.

        Parameters
        ----------
        max_tokens
            To add at most.
        temperature, top_k, generator
            How to draw; temperature 0 takes the most probable token. See :func:`dasktrain.models.sampling.choose`.
        end
            Token that ends a row; None: there is none.

        Returns
        -------
        Tensor
            (rows, at most `max_tokens`), the added tokens only; `end` after a row's end.
        """
        made, window, past = Continuation(len(input_ids), end), input_ids[:, -self.context :], None
        with evaluating(self):
            while made.tokens.shape[1] < max_tokens and not made.ended:
                x, past = self._through(window, past)
                window = made.add(choose(self.head(self.norm(x[:, -1])), temperature, top_k, generator))
                if past[0][0].shape[2] == self.context:
                    window, past = torch.cat([input_ids, made.tokens], dim=1)[:, -max(1, self.context // 2) :], None
        return made.tokens
