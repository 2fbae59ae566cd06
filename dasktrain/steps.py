"""An optimizer's steps in plain numbers, so that whoever has a part of the parameters takes them there, too.

That is what ZeRO does with the state of an optimizer, in its first stage (Rajbhandari et al., 2020, arXiv 1910.02054,
section 5.1). Here the state of record stays on the driver, which steps as well.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

#: numbers that a processor steps together at most: a cache line of float32
TOGETHER = 16


class Mean(NamedTuple):
    """How a sum of gradients became the gradient of a step: divided, and then multiplied.

    `used`: numbers of the parameters that have a gradient.
    """

    divisor: float
    factor: float
    used: Collection[int]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of all parameters.

    Attributes
    ----------
    optimizer : str
        Name of its class in ``torch.optim``.
    groups : tuple of dict
        Of each parameter group all but its parameters.
    mean : Mean
    """

    optimizer: str
    groups: tuple[dict[str, Any], ...]
    mean: Mean


@dataclass(frozen=True, slots=True)
class Piece:
    """Numbers of one parameter that lie in a bucket.

    The numbers before and after it that a processor steps together with them are not there, but count: those that are
    left over at a parameter's end are stepped one by one, which may round differently.

    Attributes
    ----------
    parameter, group : int
        Which parameter it is of, and which group steps that.
    place : slice
        Where they lie in the bucket.
    before, after : int
        How many of them are missing.
    kept : mapping
        What the optimizer keeps, by name: (numbers,) of the piece's, a number for all of it, or None.
    """

    parameter: int
    group: int
    place: slice
    before: int
    after: int
    kept: Mapping[str, "NDArray[Any] | float | None"]

    @property
    def inner(self) -> slice:
        """Where it lies among all that are stepped together."""
        return slice(self.before, self.before + self.place.stop - self.place.start)

    @property
    def arrays(self) -> "list[NDArray[Any]]":
        """What the optimizer keeps of each number."""
        return [part for part in self.kept.values() if isinstance(part, np.ndarray)]


class Steps(Protocol):
    """The steps of an optimizer.

    Attributes
    ----------
    count : int
        How many there have been.
    """

    count: int

    def latest(self) -> Step | None:
        """Return the last one; None if nobody else can take it."""

    def pieces(self, place: slice) -> list[Piece]:
        """Return what a bucket at some place of the parameters consists of, as far as the optimizer steps it."""
