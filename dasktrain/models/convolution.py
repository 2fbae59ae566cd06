"""Convolutions over a text."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TextCNN(nn.Module):
    """The largest answer of convolutions of several widths, under a linear layer.

    Kim, "Convolutional Neural Networks for Sentence Classification", EMNLP 2014.

    Parameters
    ----------
    vocab_size, num_outputs
        ``schema.vocab_size`` and ``schema.num_outputs``.
    width
        Of a token's vector.
    channels
        Convolutions of each width.
    kernels
        Their widths in tokens, odd.
    dropout
        Of what is under the linear layer.

    Notes
    -----
    Shape: (rows, length) int64 and a mask of the same shape, 1 for tokens and 0 for padding (None: all are tokens),
    to (rows, num_outputs). Padding changes no output.
    """

    def __init__(
        self,
        vocab_size: int,
        num_outputs: int,
        width: int = 64,
        channels: int = 128,
        kernels: Sequence[int] = (3, 5, 7),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if not all(kernel % 2 for kernel in kernels):
            raise ValueError(f"kernels must be odd, however they are {tuple(kernels)}")
        self.embedding = nn.Embedding(vocab_size, width)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, channels, kernel, padding=kernel // 2) for kernel in kernels)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(channels * len(kernels), num_outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return (rows, num_outputs)."""
        seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        embedded = (self.embedding(input_ids) * seen[:, :, None]).transpose(1, 2)  # (rows, width, length)
        hidden = seen[:, None, :] == 0
        answers = [convolution(embedded).relu().masked_fill(hidden, 0.0) for convolution in self.convolutions]
        largest = torch.cat([answer.amax(dim=2) for answer in answers], dim=1)
        out: Tensor = self.head(self.drop(largest))
        return out
