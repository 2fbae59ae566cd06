"""A transformer that reads a text and classifies it."""

from torch import Tensor, nn

from dasktrain.models.attention import Embedding, Layers, as_mask, initialise


class Encoder(nn.Module):
    """A transformer encoder with the mean of its last layer under a linear one.

    Parameters
    ----------
    vocab_size, num_outputs
        ``schema.vocab_size`` and ``schema.num_outputs``.
    layers, width, heads
        How many layers, the width of their vectors, and into how many heads attention is split.
    context
        Longest text in tokens.
    dropout
        Everywhere.

    Notes
    -----
    Shape: (rows, length) int64 and a mask of the same shape, 1 for tokens and 0 for padding (None: all are tokens),
    to (rows, num_outputs).

    Examples
    --------
    >>> import torch
    >>> Encoder(100, 3, layers=1, width=16, heads=2)(torch.zeros(5, 7, dtype=torch.int64)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        vocab_size: int,
        num_outputs: int,
        layers: int = 2,
        width: int = 128,
        heads: int = 4,
        context: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(vocab_size, context, width, dropout)
        self.layers = Layers(layers, width, heads, dropout)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_outputs)
        initialise(self, layers)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return a vector a token, (rows, length, width)."""
        x, mask = self.embedding(input_ids), as_mask(attention_mask)
        for layer in self.layers:
            x = layer(x, mask)
        out: Tensor = self.norm(x)
        return out

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return (rows, num_outputs)."""
        encoded = self.encode(input_ids, attention_mask)
        if attention_mask is None:
            pooled = encoded.mean(dim=1)
        else:
            seen = attention_mask.to(encoded.dtype)[:, :, None]
            pooled = (encoded * seen).sum(dim=1) / seen.sum(dim=1)
        out: Tensor = self.head(pooled)
        return out
