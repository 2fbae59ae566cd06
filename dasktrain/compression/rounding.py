"""Narrower numbers."""

from dataclasses import dataclass
from typing import Literal

from dasktrain.codes import BFloat16, Code, Scaled
from dasktrain.compression import Form, check_count
from dasktrain.compression.whole import AsItIs
from dasktrain.errors import BadInput
from dasktrain.vector import Layout


@dataclass(frozen=True)
class Rounding:
    """Round what is sent to a narrower type: sums of gradients at every node of the tree, and changes of parameters.

    Parameters
    ----------
    dtype
        ``"bfloat16"``, ``"float16"`` or ``"int8"``: 2 bytes a number, or 1. Of the latter two, 256 numbers share a
        power of two as their scale, so that neither small nor large gradients are lost.
    every
        Sums from one that is whole to the next.
    """

    dtype: Literal["bfloat16", "float16", "int8"] = "bfloat16"
    every: int = 100

    def __post_init__(self) -> None:
        if self.dtype not in ("bfloat16", "float16", "int8"):
            raise BadInput(f'dtype must be "bfloat16", "float16" or "int8", however it is {self.dtype!r}')
        check_count("every", self.every)

    @property
    def remembers(self) -> bool:
        """What is rounded away is forgotten."""
        return False

    @property
    def code(self) -> Code:
        """Of the type."""
        return BFloat16() if self.dtype == "bfloat16" else Scaled(self.dtype)

    @property
    def change(self) -> Code:
        """Of the type."""
        return self.code

    def form(self, layout: Layout) -> Form:
        """Return what leaves gradients to be rounded."""
        return AsItIs(layout.size)
