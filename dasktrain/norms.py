"""The norm of a gradient, the same bits for any number of threads, and gradients cut down to one."""

import math

import torch
from torch import Tensor

#: elements summed at a time in a norm; fixed, since another cut would round differently
NORM_BLOCK = 4096


def canonical_norm(*parts: Tensor) -> float:
    """Return the Euclidean norm of all numbers of some tensors, the same bits for any number of threads.

    Squares are summed in float64 over fixed blocks, and the blocks' sums are added exactly (math.fsum).
    """
    blocks = (block for part in parts for block in torch.split(part.flatten(), NORM_BLOCK))
    squares = [float(block.double().square().sum()) for block in blocks]
    return math.sqrt(math.fsum(squares))


def clip(most: float, *parts: Tensor) -> tuple[float, float]:
    """Scale a gradient in parts down to a norm, unless it is shorter; return the norm it had, and what by."""
    norm = canonical_norm(*parts)
    if not norm > most:
        return norm, 1.0
    factor = most / norm
    for part in parts:
        part.mul_(factor)
    return norm, factor
