"""Rows that sums touch: the same bits whoever adds what, and those of dense sums where all rows are touched."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasktrain.doubles import digests_of
from dasktrain.errors import NonFinite, ReductionError
from dasktrain.messages import Answer, Partial, Task
from dasktrain.reduce import fold, reduce, split, subtrees
from dasktrain.touched import Touched, plus, plus_each

ROWS, WIDTH = 7, 3
quick = settings(max_examples=80, deadline=None)


def wild(rng: np.random.Generator, share: float) -> Touched:
    """Touch a share of the rows, with numbers of all magnitudes and zeros of both signs."""
    rows = np.flatnonzero(rng.random(ROWS) < share)
    values = rng.normal(size=(len(rows), WIDTH)) * 10.0 ** rng.integers(-20, 20, size=(len(rows), WIDTH))
    values[rng.random(values.shape) < 0.2] *= 0.0
    return Touched(rows, values.astype(np.float32))


def by_row(left: dict[int, np.ndarray], right: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Add two sums a row at a time."""
    both = {row: left[row] + right[row] for row in left.keys() & right.keys()}
    return left | right | both


def tree_sum(leaves: list[Touched | None], start: int, stop: int) -> dict[int, np.ndarray] | None:
    """Sum by the definition of the tree."""
    if stop - start == 1:
        leaf = leaves[start]
        return None if leaf is None else dict(zip(leaf.rows.tolist(), leaf.values, strict=True))
    left, right = tree_sum(leaves, start, split(start, stop)), tree_sum(leaves, split(start, stop), stop)
    return right if left is None else left if right is None else by_row(left, right)


def partial(leaves: list[Touched | None], start: int, stop: int) -> Partial:
    """Sum a node as a worker does."""

    def leaf(shard: int, into: tuple[Touched, ...] | None) -> tuple[Touched, ...] | None:
        found = leaves[shard]
        return into if found is None else (found,) if into is None else plus_each(into, (found,))

    total = fold(start, stop, leaf, plus_each)
    return Partial(start, stop, None, None, total or ())


@quick
@given(
    shards=st.integers(1, 17),
    seed=st.integers(0, 2**32),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    empty=st.sampled_from([0.0, 0.4]),
    data=st.data(),
)
def test_sum_is_that_of_the_tree_to_the_bit_whoever_summed_what(
    shards: int, seed: int, share: float, empty: float, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    leaves = [None if rng.random() < empty else wild(rng, share) for _ in range(shards)]
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, shards), max_size=6))), shards]
    nodes = [node for start, stop in pairwise(cuts) for node in subtrees(start, stop, shards)]
    total = reduce(data.draw(st.permutations([partial(leaves, *node) for node in nodes])), shards)
    expected = tree_sum(leaves, 0, shards)
    if expected is None:
        assert total.touched == ()
        return
    (found,) = total.touched
    assert found.rows.tolist() == sorted(expected)
    assert found.values.tobytes() == b"".join(expected[row].tobytes() for row in sorted(expected))


@quick
@given(shards=st.integers(1, 17), seed=st.integers(0, 2**32))
def test_sum_is_that_of_dense_vectors_where_every_shard_touches_every_row(shards: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    leaves = [wild(rng, 1.0) for _ in range(shards)]
    dense = [Partial(place, place + 1, leaf.values.ravel().copy(), None) for place, leaf in enumerate(leaves)]
    total = reduce([partial([*leaves], place, place + 1) for place in range(shards)], shards)
    vector = reduce(dense, shards).vector
    assert vector is not None
    assert total.touched[0].values.tobytes() == vector.tobytes()


def test_row_that_one_side_touches_keeps_the_sign_of_its_zeros() -> None:
    negative = Touched(np.array([2]), np.array([[-0.0]], np.float32))
    other = Touched(np.array([1]), np.array([[0.0]], np.float32))
    assert np.signbit(plus(other, negative).values).tolist() == [[False], [True]]
    assert np.signbit(plus(negative, other).values).tolist() == [[False], [True]]


def test_read_only_arrays_are_added_and_left_alone() -> None:
    rows, values = np.array([0, 3]), np.ones((2, 2), np.float32)
    for array in (rows, values):
        array.setflags(write=False)
    total = plus(Touched(rows, values), Touched(rows, values))
    assert (total.values.tolist(), values.tolist()) == ([[2.0, 2.0]] * 2, [[1.0, 1.0]] * 2)


def test_other_tables_are_refused() -> None:
    table = Touched(np.array([1]), np.ones((1, 2), np.float32))
    wider = Touched(np.array([1]), np.ones((1, 3), np.float32))
    with pytest.raises(ReductionError, match="one table to be added, however they are of"):
        plus(table, wider)
    with pytest.raises(ReductionError, match="as many tables to be added, however they are of 1 and 2"):
        plus_each((table,), (table, table))


def test_sum_that_is_not_finite_is_refused() -> None:
    large = Touched(np.array([1]), np.full((1, 2), 3e38, np.float32))
    with pytest.raises(NonFinite):
        reduce([Partial(shard, shard + 1, None, None, (large,)) for shard in range(2)], 2)


@pytest.mark.parametrize("part", ["rows", "values"])
def test_answers_that_touch_other_rows_have_other_digests(part: str) -> None:
    task = Task("r", "train", 0, 0, 0, 1)
    table = Touched(np.array([1]), np.ones((1, 2), np.float32))
    other = replace(table, **{part: getattr(table, part) * 2})
    one, two = ([*digests_of(Answer(task, (Partial(0, 1, None, None, (each,)),), 0.0), 1)] for each in (table, other))
    assert one != two
