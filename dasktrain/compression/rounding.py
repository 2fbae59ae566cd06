"""Narrower numbers."""

from dataclasses import dataclass
from typing import Literal

from dasktrain.codes import INT8, BFloat16, Code, Plain, Scaled
from dasktrain.compression import Form
from dasktrain.compression.whole import AsItIs
from dasktrain.errors import BadInput
from dasktrain.vector import Layout

DTYPES: dict[str, Code] = {"bfloat16": BFloat16(), "float16": Scaled("float16"), "int8": INT8, "float32": Plain()}


@dataclass(frozen=True)
class Rounding:
    """Round what is sent to a narrower type: sums of gradients at every node of the tree, and changes of parameters.

    Parameters
    ----------
    dtype
        ``"bfloat16"``, ``"float16"`` or ``"int8"``: 2 bytes a number, or 1. Of the latter two, 256 numbers share a
        power of two as their scale, so that neither small nor large gradients are lost. ``"float32"``, which rounds
        nothing, is there to compare with.
    """

    dtype: Literal["bfloat16", "float16", "int8", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise BadInput(f"dtype must be one of {list(DTYPES)}, however it is {self.dtype!r}")

    @property
    def every(self) -> int:
        """What is rounded away is forgotten."""
        return 1

    @property
    def code(self) -> Code:
        """Of the type."""
        return DTYPES[self.dtype]

    @property
    def last(self) -> Code:
        """Of the type."""
        return self.code

    @property
    def change(self) -> Code:
        """Of the type."""
        return self.code

    def form(self, layout: Layout) -> Form:
        """Return what leaves gradients to be rounded."""
        return AsItIs(layout.size)
