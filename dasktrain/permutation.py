"""A random permutation that is computed where it is asked for, however large it is."""

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


def permuted(index: Integers, size: int, rng: np.random.Generator) -> Integers:
    """Send each of `index` to its place in a random permutation of ``range(size)``, in O(len(index)).

    A balanced Feistel network on the next even number of bits, walked along its cycles until inside the
    range (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002).
    """
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = rng.integers(0, 2**63, size=6, dtype=np.uint64)

    def network(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = value >> half, value & mask
        for key in keys:
            mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        return (left << half) | right

    value = network(index.astype(np.uint64))
    while (outside := value >= size).any():
        value[outside] = network(value[outside])
    return value.astype(np.int64)
