"""Sums under way: the bits of a plain sum, in memory of the owner's that is used again."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dasktrain.accumulate import Accumulator, Gradients, Sum
from dasktrain.reduce import fold, subtrees
from dasktrain.vector import Layout

LAYOUT = Layout({"weight": (2, 3), "unused": (), "narrow": (4,)})
SHARDS = 9


class Memory:
    """Hands out memory, and keeps it."""

    def __init__(self) -> None:
        self.taken: list[np.ndarray] = []

    def __call__(self, size: int) -> np.ndarray:
        self.taken.append(np.full(size, 255, dtype=np.uint8))
        return self.taken[-1]


def gradients(shard: int) -> Gradients:
    """Return what autograd might: other magnitudes, nothing, negative zeros, a narrow dtype."""
    random = torch.Generator().manual_seed(shard)
    weight = torch.randn(2, 3, generator=random) * 10.0 ** (shard % 5 * 4 - 8)
    unused = None if shard % 3 else torch.tensor(-0.0)
    return [weight, unused, torch.randn(4, generator=random).bfloat16()]


def flat(shard: int) -> Tensor:
    """Return a shard's gradients as one vector."""
    shapes = zip(LAYOUT.shapes.values(), gradients(shard), strict=True)
    return torch.cat(
        [torch.zeros(shape).flatten() if part is None else part.float().flatten() for shape, part in shapes]
    )


def answered(accumulator: Accumulator, start: int, stop: int) -> np.ndarray:
    """Sum the shards of a node as a replica does."""

    def leaf(shard: int, into: Sum | None) -> Sum:
        return accumulator.leaf(gradients(shard), np.array([float(shard)]), into)

    total = fold(start, stop, leaf, accumulator.add)
    assert total is not None
    assert total.scalars.tolist() == [sum(range(start, stop))]
    vector = accumulator.flat(total)
    assert vector is not None
    return vector.numpy()


def plain(start: int, stop: int) -> bytes:
    """Sum the shards of a node as the tree says, each in memory of its own."""
    total = fold(start, stop, lambda shard, into: flat(shard) if into is None else into + flat(shard), torch.add)
    assert total is not None
    return total.numpy().tobytes()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, SHARDS), max_size=4).map(sorted), min_size=1, max_size=4))
def test_sums_have_the_bits_of_the_tree_and_stay_until_they_are_reclaimed(rounds: list[list[int]]) -> None:
    memory = Memory()
    accumulator = Accumulator(LAYOUT, torch.empty(LAYOUT.size), memory)
    for cuts in rounds:
        nodes = [node for start, stop in pairwise(cuts) for node in subtrees(start, stop, SHARDS)]
        answers = [answered(accumulator, *node) for node in nodes]
        assert [answer.tobytes() for answer in answers] == [plain(*node) for node in nodes]
        lent = {taken.ctypes.data for taken in memory.taken}
        assert len({answer.ctypes.data for answer in answers} & lent) == len(answers)
        accumulator.reclaim()


def test_memory_is_used_again_once_it_is_reclaimed() -> None:
    memory = Memory()
    accumulator = Accumulator(LAYOUT, torch.empty(LAYOUT.size), memory)
    for _ in range(5):
        answered(accumulator, 0, SHARDS)
        accumulator.reclaim()
        assert len(memory.taken) <= SHARDS.bit_length()
    most = len(memory.taken)
    answered(accumulator, 0, SHARDS)
    assert len(memory.taken) == most


@pytest.mark.parametrize("shards", [1, 2])
def test_a_sum_without_gradients_takes_no_memory(shards: int) -> None:
    memory = Memory()
    accumulator = Accumulator(LAYOUT, torch.empty(LAYOUT.size), memory)
    total = fold(0, shards, lambda shard, into: accumulator.leaf(None, np.ones(1), into), accumulator.add)
    assert total is not None
    assert accumulator.flat(total) is None
    assert total.scalars.tolist() == [shards]
    assert memory.taken == []
