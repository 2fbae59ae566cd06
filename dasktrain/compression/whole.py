"""Gradients sent whole, as the trivial baseline of all that is made small."""

import torch
from torch import Tensor


class AsItIs:
    """Send gradients of a size as they are."""

    def __init__(self, size: int) -> None:
        self._size = size

    def first(self) -> Tensor:
        """Return nothing."""
        return torch.empty(0)

    def size(self, place: int) -> int:
        """Return how many numbers a gradient has."""
        return self._size

    def common(self, place: int) -> int:
        """Return 0."""
        return 0

    def sent(self, gradient: Tensor, place: int, common: Tensor) -> Tensor:
        """Return the gradient."""
        return gradient

    def whole(self, sent: Tensor, place: int, common: Tensor) -> Tensor:
        """Return what was sent."""
        return sent

    def next(self, total: Tensor, place: int, common: Tensor) -> Tensor:
        """Return nothing."""
        return common
