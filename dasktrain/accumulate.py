"""Sums of gradients under way, with as few passes over memory as the tree allows.

A lone shard's gradients stay as autograd returned them; flat memory is first written with the sum of two, and used
again once an answer is sent.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dasktrain.touched import Touched, plus_each
from dasktrain.vector import Layout, Memory, plain_memory, tensor_in

Gradients = list[Tensor | None]


@dataclass(slots=True)
class Flat:
    """Memory to sum in, each parameter's part of it, and memory on the CPU, which is the same unless it is on a GPU."""

    vector: Tensor
    views: list[Tensor]
    host: Tensor

    def on_host(self) -> Tensor:
        """Return the sum on the CPU."""
        return self.host if self.host is self.vector else self.host.copy_(self.vector)


@dataclass(slots=True)
class Sum:
    """The sum over some shards: gradients, None if there are none, (scalars,) float64, and the rows of tables."""

    gradients: Flat | Gradients | None
    scalars: np.ndarray
    touched: tuple[Touched, ...] = ()


class Accumulator:
    """Adds what shards contribute.

    Parameters
    ----------
    layout
        Of the gradients.
    like
        A flat vector, whose dtype and device those have that are summed in.
    memory
        Where sums lie that leave this process.
    """

    def __init__(self, layout: Layout, like: Tensor, memory: Memory = plain_memory) -> None:
        self._layout, self._like, self._new = layout, like, memory
        self._free: list[Flat] = []
        self._lent: list[Flat] = []

    def leaf(self, gradients: Gradients | None, scalars: np.ndarray, into: Sum | None) -> Sum:
        """Add one shard to `into`, which is used up."""
        return self.plus(into, Sum(gradients, scalars))

    def plus(self, into: Sum | None, right: Sum) -> Sum:
        """Return into + right, using both up; None is the sum of nothing."""
        return right if into is None else self.add(into, right)

    def add(self, left: Sum, right: Sum) -> Sum:
        """Return left + right, using both up."""
        left.scalars += right.scalars
        left.touched = plus_each(left.touched, right.touched)
        if left.gradients is not None and right.gradients is not None:
            left.gradients = self._plus(left.gradients, right.gradients)
        return left

    def _plus(self, left: Flat | Gradients, right: Flat | Gradients) -> Flat:
        if isinstance(left, Flat) and isinstance(right, Flat):
            left.vector.add_(right.vector)
            self._free.append(right)
            return left
        into = left if isinstance(left, Flat) else right if isinstance(right, Flat) else self._memory()
        for out, one, other in zip(into.views, parts(left), parts(right), strict=True):
            add(out, one, other)
        return into

    def flat(self, total: Sum) -> Tensor | None:
        """Return the sum of gradients as one vector on the CPU, good until `reclaim`."""
        if total.gradients is None:
            return None
        if not isinstance(total.gradients, Flat):
            memory = self._memory()
            for out, gradient in zip(memory.views, total.gradients, strict=True):
                put(out, gradient)
            total.gradients = memory
        self._lent.append(total.gradients)
        return total.gradients.on_host()

    def lend(self) -> Flat:
        """Return memory for a sum, good until `reclaim`."""
        self._lent.append(self._memory())
        return self._lent[-1]

    def free(self, total: Sum) -> None:
        """Take back the memory of a sum that nobody needs."""
        if isinstance(total.gradients, Flat):
            self._free.append(total.gradients)

    def reclaim(self) -> None:
        """Take back all memory that `flat` and `lend` returned."""
        self._free += self._lent
        self._lent = []

    def _memory(self) -> Flat:
        if self._free:
            return self._free.pop()
        host = tensor_in(self._new, self._layout.size, self._like.dtype)
        vector = host if self._like.device.type == "cpu" else torch.empty_like(host, device=self._like.device)
        return Flat(vector, list(self._layout.views(vector).values()), host)


def parts(gradients: Flat | Gradients) -> Gradients:
    """Return each parameter's gradient."""
    return list(gradients.views) if isinstance(gradients, Flat) else gradients


def put(out: Tensor, gradient: Tensor | None) -> None:
    """Write a lone gradient, None for zeros, in the dtype of `out`."""
    out.zero_() if gradient is None else out.copy_(gradient)


def add(out: Tensor, one: Tensor | None, other: Tensor | None) -> None:
    """Write one + other, either of which may be `out`.

    No gradient is a gradient of zeros, and adding one matters: -0.0 + 0.0 is +0.0. Narrow ones are widened before they
    are added, not after.
    """
    one, other = (other, one) if one is None else (one, other)
    if one is None:
        out.zero_()
    else:
        torch.add(one.to(out.dtype), 0.0 if other is None else other.to(out.dtype), out=out)
