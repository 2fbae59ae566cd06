"""Gradients sent whole, as the trivial baseline of all that is made small."""

from torch import Tensor


class AsItIs:
    """Send gradients of a size as they are."""

    adds = True

    def __init__(self, size: int) -> None:
        self.size = size

    def sent(self, gradient: Tensor) -> Tensor:
        """Return the gradient."""
        return gradient

    def whole(self, sent: Tensor) -> Tensor:
        """Return what was sent."""
        return sent
