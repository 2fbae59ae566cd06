"""Vectors of float32 in fewer bytes: numbers on a coarser grid, which are packed without loss.

Grids know a vector only in blocks of `BLOCK` numbers, and scales are the same for what was rounded as for what was not:
rounding twice is rounding once, and whoever unpacks has the bits of whoever packed.
"""

import struct
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from dasktrain.errors import WireError
from dasktrain.messages import Vector

#: numbers that share a scale
BLOCK = 256
#: of a packed vector: which of `CODES`, and how many numbers
_HEAD = struct.Struct("<B7xQ")
#: scales below are of no use to anybody, and would make numbers that float32 has not
_SMALLEST = -100
#: the exponent of the largest float32, and one more for what is rounded up
_LARGEST = 129


class Code(Protocol):
    """A grid, and how a vector on it is packed."""

    def nearest(self, vector: Vector) -> Vector:
        """Return the numbers of the grid that are nearest to a finite vector (size,) float32; perhaps itself."""

    def write(self, vector: Vector) -> list[Vector]:
        """Turn a vector (size,) float32 of the grid into arrays of this code alone; `pack` says which it is."""

    def read(self, body: Vector, size: int) -> Vector:
        """Turn what `write` made, as bytes, back into the vector; ValueError if it is nothing of the kind."""


@dataclass(frozen=True)
class Plain:
    """Every float32 as it is."""

    def nearest(self, vector: Vector) -> Vector:
        """Return the vector."""
        return vector

    def write(self, vector: Vector) -> list[Vector]:
        """Take 4 bytes a number."""
        return [vector]

    def read(self, body: Vector, size: int) -> Vector:
        """Read them where they lie."""
        (vector,) = _arrays(body, (np.float32, size))
        return vector


@dataclass(frozen=True)
class BFloat16:
    """The upper half of a float32: its range, and 8 bits of precision."""

    def nearest(self, vector: Vector) -> Vector:
        """Round to the nearest, ties to even."""
        return _widened(_halves(vector))

    def write(self, vector: Vector) -> list[Vector]:
        """Take 2 bytes a number."""
        return [_halves(vector)]

    def read(self, body: Vector, size: int) -> Vector:
        """Put the lower half back, which is zero."""
        (halves,) = _arrays(body, (np.uint16, size))
        return _widened(halves)


@dataclass(frozen=True)
class Scaled:
    """Numbers of a narrow type, those of a block times the power of two that makes the most of its range."""

    dtype: Literal["float16", "int8"]

    @property
    def _bits(self) -> int:
        """Of the integer that the largest number of a block is below."""
        return 7 if self.dtype == "int8" else 15

    def nearest(self, vector: Vector) -> Vector:
        """Round to the nearest, ties to even."""
        return self._wide(*self._narrow(vector))

    def write(self, vector: Vector) -> list[Vector]:
        """Take 2 bytes a number, or 1, and 2 a block."""
        exponents, numbers = self._narrow(vector)
        return [exponents, numbers]

    def read(self, body: Vector, size: int) -> Vector:
        """Scale them."""
        exponents, numbers = _arrays(body, (np.int16, _count(size)), (np.dtype(self.dtype), size))
        if not ((exponents >= _SMALLEST) & (exponents <= _LARGEST)).all():
            raise ValueError("some scales are out of range")
        return self._wide(exponents, numbers)

    def _narrow(self, vector: Vector) -> tuple[Vector, Vector]:
        """Return exponents (blocks,) int16, and numbers (size,) of the narrow type."""
        blocks = _blocks(vector)
        largest = np.abs(blocks).max(axis=1, initial=0.0)
        exponents = np.maximum(np.frexp(largest)[1], _SMALLEST)
        # What would be rounded up to the next power of two has the scale that it will have then.
        exponents += self._rounded(np.ldexp(largest, self._bits - exponents)) >= 1 << self._bits
        numbers = self._rounded(np.ldexp(blocks, self._bits - exponents[:, None]))
        return exponents.astype(np.int16), numbers.astype(self.dtype).reshape(-1)[: len(vector)]

    def _rounded(self, numbers: Vector) -> Vector:
        found: Vector = np.rint(numbers) if self.dtype == "int8" else numbers.astype(np.float16).astype(np.float32)
        return found

    def _wide(self, exponents: Vector, numbers: Vector) -> Vector:
        blocks = np.ldexp(_blocks(numbers.astype(np.float32)), exponents[:, None].astype(np.int32) - self._bits)
        vector: Vector = blocks.reshape(-1)[: len(numbers)]
        return vector


@dataclass(frozen=True)
class Sparse:
    """Every float32 as it is, for vectors that are zero but for a few numbers."""

    def nearest(self, vector: Vector) -> Vector:
        """Return the vector."""
        return vector

    def write(self, vector: Vector) -> list[Vector]:
        """Take 6 bytes a number that is not +0.0, 8 if some are far apart, and 8."""
        places = np.flatnonzero(vector.view(np.uint32))
        steps = np.diff(places, prepend=0)
        narrow = steps.astype(np.uint16 if steps.max(initial=0) < 1 << 16 else np.uint32)
        return [np.array([len(places)], dtype=np.int64), vector[places], narrow]

    def read(self, body: Vector, size: int) -> Vector:
        """Put them where they belong."""
        count = int(_arrays(body[:8], (np.int64, 1))[0][0])
        width = np.uint16 if len(body) == 8 + 6 * count else np.uint32
        _, values, steps = _arrays(body, (np.int64, 1), (np.float32, count), (width, count))
        places, vector = np.cumsum(steps, dtype=np.int64), np.zeros(size, dtype=np.float32)
        vector[places] = values  # an IndexError if they are none of the vector's
        return vector


@dataclass(frozen=True)
class Ternary:
    """Of each number of a block its sign times one magnitude, or 0: five numbers take a byte.

    Numbers below three quarters of the mean are 0, and the magnitude is the mean of all others, which is nearly nearest
    to numbers of a normal distribution, however few are large. (Max, 1960, "Quantizing for Minimum Distortion"; Li,
    Zhang, Liu, 2016, "Ternary Weight Networks", arXiv 1605.04711.)
    """

    def nearest(self, vector: Vector) -> Vector:
        """Keep signs of what is large."""
        return self._wide(*self._narrow(vector))

    def write(self, vector: Vector) -> list[Vector]:
        """Take 8 bits for five numbers, and 4 bytes a block."""
        signs, magnitudes = self._narrow(vector)
        digits = np.ones(-(-len(vector) // 5) * 5, dtype=np.uint8)
        digits[: len(vector)] += signs.view(np.uint8)  # -1 wraps around
        return [magnitudes, digits.reshape(-1, 5) @ _POWERS]

    def read(self, body: Vector, size: int) -> Vector:
        """Give each number its sign and magnitude."""
        magnitudes, packed = _arrays(body, (np.float32, _count(size)), (np.uint8, -(-size // 5)))
        if not (np.isfinite(magnitudes) & (magnitudes >= 0)).all():
            raise ValueError("some magnitudes are none")
        return self._wide(_SIGNS[packed].reshape(-1)[:size], magnitudes)

    @staticmethod
    def _narrow(vector: Vector) -> tuple[Vector, Vector]:
        """Return signs (size,) int8, -1, 0 or 1, and magnitudes (blocks,) float32."""
        blocks = _blocks(vector)
        sizes, counts = np.abs(blocks), np.full(len(blocks), BLOCK)
        counts[-1:] -= -len(vector) % BLOCK
        least = 0.75 * sizes.sum(axis=1, dtype=np.float64) / counts
        large = sizes > least.astype(np.float32)[:, None]
        # Sums in float64 of 256 equal float32 are exact, and so are their means: what is on a grid stays there.
        sums = (sizes * large).sum(axis=1, dtype=np.float64)
        magnitudes = sums / np.maximum(np.count_nonzero(large, axis=1), 1)
        signs = large.view(np.int8) - 2 * (large & (blocks < 0)).view(np.int8)
        return signs.reshape(-1)[: len(vector)], magnitudes.astype(np.float32)

    @staticmethod
    def _wide(signs: Vector, magnitudes: Vector) -> Vector:
        vector: Vector = (_blocks(signs) * magnitudes[:, None]).reshape(-1)[: len(signs)]
        return vector + np.float32(0.0)  # no number is -0.0


#: of the five digits of a byte, and the signs that each byte stands for
_POWERS = np.array([81, 27, 9, 3, 1], dtype=np.uint8)
_SIGNS = (np.arange(243)[:, None] // _POWERS % 3 - 1).astype(np.int8)
#: a byte a number
INT8 = Scaled("int8")
#: by number, as packed vectors say
CODES: tuple[Code, ...] = (Plain(), BFloat16(), Scaled("float16"), INT8, Sparse(), Ternary())


def rounded(code: Code, vector: Vector) -> Vector:
    """Return the numbers of a code's grid that are nearest; if some are not finite, all as they are, to be refused."""
    return code.nearest(vector) if np.isfinite(vector).all() else vector


def pack(code: Code, vector: Vector) -> Vector:
    """Turn a vector (size,) float32 of a code's grid into bytes (any,) uint8 that tell which code it is.

    A vector that is not finite is on no grid but the plain one.
    """
    code = code if np.isfinite(vector).all() else Plain()
    arrays = [np.frombuffer(_HEAD.pack(CODES.index(code), len(vector)), dtype=np.uint8)]
    arrays += [np.ascontiguousarray(array).view(np.uint8) for array in code.write(vector)]
    return np.concatenate(arrays)


def unpack(packed: Vector, size: int) -> Vector:
    """Turn bytes (any,) uint8 back into the vector (size,) that was packed.

    Raises
    ------
    WireError
        They are not what `pack` makes of so many numbers.
    """
    try:
        number, found = _HEAD.unpack_from(packed.data)
        if found != size:
            raise ValueError(f"there are {found} numbers in place of {size}")
        vector: Vector = CODES[number].read(packed[_HEAD.size :], size)
        return vector
    except (ValueError, IndexError, struct.error, OverflowError, MemoryError) as error:
        raise WireError(f"Packed numbers must be what a code makes, however {error}; report this") from error


def _count(size: int) -> int:
    """Return how many blocks so many numbers make."""
    return -(-size // BLOCK)


def _blocks(vector: Vector) -> Vector:
    """Return (blocks, BLOCK), the last filled up with zeros."""
    missing = -len(vector) % BLOCK
    return (np.pad(vector, (0, missing)) if missing else vector).reshape(-1, BLOCK)


def _arrays(body: Vector, *kinds: tuple[Any, int]) -> list[Vector]:
    """Return the arrays of given dtypes and lengths that bytes are made of."""
    ends = np.cumsum([0, *(np.dtype(dtype).itemsize * length for dtype, length in kinds)]).tolist()
    if len(body) != ends[-1]:
        raise ValueError(f"there are {len(body)} bytes in place of {ends[-1]}")
    found = zip(kinds, ends, ends[1:], strict=False)
    return [body[start:stop].copy().view(dtype) for (dtype, _), start, stop in found]


def _halves(vector: Vector) -> Vector:
    """Return the upper half of each float32, rounded to the nearest, ties to even: (size,) uint16."""
    bits = vector.view(np.uint32)
    rounded: Vector = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    return rounded.astype(np.uint16)


def _widened(halves: Vector) -> Vector:
    vector: Vector = (halves.astype(np.uint32) << 16).view(np.float32)
    return vector
