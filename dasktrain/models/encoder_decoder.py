"""A transformer that reads one text and writes another."""

import torch
from torch import Tensor, nn

from dasktrain.models.attention import Embedding, KeysValues, Layers, as_mask, initialise
from dasktrain.models.sampling import Continuation, choose, evaluating


class EncoderDecoder(nn.Module):
    """An encoder, and a decoder that attends to it.

    Parameters
    ----------
    vocab_size, num_outputs
        Tokens of the texts read and of those written: ``schema.vocab_size`` and ``schema.num_outputs``.
    layers, width, heads
        How many layers each of the two has, the width of vectors, and into how many heads attention is split.
    context
        Longest text in tokens, of either kind.
    dropout
        Everywhere.

    Notes
    -----
    Shape: (rows, length) int64, a mask of the same shape, 1 for tokens and 0 for padding (None: all are tokens), and
    (rows, written) int64, to (rows, written, num_outputs), scores of the token that follows each.
    """

    def __init__(
        self,
        vocab_size: int,
        num_outputs: int,
        layers: int = 2,
        width: int = 128,
        heads: int = 4,
        context: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.context = context
        self.embed_read = Embedding(vocab_size, context, width, dropout)
        self.embed_written = Embedding(num_outputs, context, width, dropout)
        self.encoder = Layers(layers, width, heads, dropout)
        self.decoder = Layers(layers, width, heads, dropout, crossed=True)
        self.norm_read, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.head = nn.Linear(width, num_outputs, bias=False)
        initialise(self, layers)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, decoder_input_ids: Tensor) -> Tensor:
        """Return scores of the next token at every place of what is written."""
        memory, mask = self._read(input_ids, attention_mask), as_mask(attention_mask)
        scores: Tensor = self.head(self.norm(self._write(decoder_input_ids, memory, mask, None)[0]))
        return scores

    def _read(self, input_ids: Tensor, attention_mask: Tensor | None) -> list[KeysValues]:
        """Encode a text; return what each layer of the decoder attends to."""
        x, mask = self.embed_read(input_ids), as_mask(attention_mask)
        for layer in self.encoder:
            x = layer(x, mask)
        x = self.norm_read(x)
        return [layer.attend_other.keys_values(x) for layer in self.decoder]

    def _write(
        self, tokens: Tensor, memory: list[KeysValues], mask: Tensor | None, past: list[KeysValues] | None
    ) -> tuple[Tensor, list[KeysValues]]:
        """Go through the decoder with what follows the `past`."""
        x = self.embed_written(tokens, start=past[0][0].shape[2] if past else 0)
        seen = []
        for number, layer in enumerate(self.decoder):
            x, present = layer.forward_causal(x, past[number] if past else None, memory[number], mask)
            seen.append(present)
        return x, seen

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        start: int,
        end: int | None,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Write a text for each text read.

        Parameters
        ----------
        start, end
            Tokens before and after a written text.
        max_tokens
            To write at most; None, and at most: `context`.
        temperature, top_k, generator
            How to draw; temperature 0 takes the most probable token. See :func:`dasktrain.models.sampling.choose`.

        Returns
        -------
        Tensor
            (rows, at most `max_tokens`), without `start`; `end` after a row's end.
        """
        limit = self.context if max_tokens is None else min(max_tokens, self.context)
        made, past = Continuation(len(input_ids), end), None
        window = torch.full((len(input_ids), 1), start)
        with evaluating(self):
            memory, mask = self._read(input_ids, attention_mask), as_mask(attention_mask)
            while made.tokens.shape[1] < limit and not made.ended:
                x, past = self._write(window, memory, mask, past)
                window = made.add(choose(self.head(self.norm(x[:, -1])), temperature, top_k, generator))
        return made.tokens
