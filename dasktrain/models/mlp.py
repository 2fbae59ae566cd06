"""Networks for tables: numbers and categories in, one row at a time."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class Columns(nn.Module):
    """Numbers beside one embedding a categorical column.

    Parameters
    ----------
    num_features
        Width of the numeric input; 0: there is none.
    cardinalities
        For each categorical column how many values it has; empty: there is no such input.

    Notes
    -----
    Shape: (rows, num_features) float and (rows, columns) int64, whichever there are, to (rows, `width`).
    An embedding of n values is min(50, (n + 1) // 2) wide, fastai's old rule.
    """

    def __init__(self, num_features: int, cardinalities: Sequence[int] = ()) -> None:
        super().__init__()
        widths = [min(50, (values + 1) // 2) for values in cardinalities]
        self.embeddings = nn.ModuleList(map(nn.Embedding, cardinalities, widths))
        self.width = num_features + sum(widths)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Join numbers and embedded categories."""
        parts = [part for part in inputs if part.is_floating_point()]
        if len(self.embeddings):
            columns = inputs[-1].unbind(dim=1)
            parts += [embedding(column) for embedding, column in zip(self.embeddings, columns, strict=True)]
        return torch.cat(parts, dim=1)


class MLP(nn.Module):
    """Layers of linear, ReLU and dropout.

    Parameters
    ----------
    num_features, num_outputs, cardinalities
        Of the table: ``schema.num_features``, ``schema.num_outputs``, ``schema.cardinalities``.
    widths
        Of the hidden layers.
    dropout
        Chance of each hidden unit to be left out.

    Notes
    -----
    Shape: (rows, num_features) float and (rows, columns) int64, whichever there are, to (rows, num_outputs).

    Examples
    --------
    >>> MLP(4, 2)(torch.zeros(3, 4)).shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        num_features: int,
        num_outputs: int,
        cardinalities: Sequence[int] = (),
        widths: Sequence[int] = (256, 256),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.columns = Columns(num_features, cardinalities)
        sizes = [self.columns.width, *widths]
        hidden: list[nn.Module] = []
        for before, after in pairwise(sizes):
            hidden += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], num_outputs))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return (rows, num_outputs)."""
        output: Tensor = self.layers(self.columns(*inputs))
        return output


class ResNetMLP(nn.Module):
    """Residual blocks of normalisation, linear, ReLU and linear.

    After Gorishniy et al., "Revisiting Deep Learning Models for Tabular Data", NeurIPS 2021. Layer normalisation takes
    the place of theirs by batch: it needs no second row in a shard.

    Parameters
    ----------
    num_features, num_outputs, cardinalities
        Of the table: ``schema.num_features``, ``schema.num_outputs``, ``schema.cardinalities``.
    width, blocks
        Of the main path, and how many.
    dropout
        Chance of each unit inside a block to be left out.

    Notes
    -----
    Shape: (rows, num_features) float and (rows, columns) int64, whichever there are, to (rows, num_outputs).
    """

    def __init__(
        self,
        num_features: int,
        num_outputs: int,
        cardinalities: Sequence[int] = (),
        width: int = 192,
        blocks: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.columns = Columns(num_features, cardinalities)
        self.first = nn.Linear(self.columns.width, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(2 * width, width),
            )
            for _ in range(blocks)
        )
        self.last = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, num_outputs))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return (rows, num_outputs)."""
        x = self.first(self.columns(*inputs))
        for block in self.blocks:
            x = x + block(x)
        output: Tensor = self.last(x)
        return output
