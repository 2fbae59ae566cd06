"""The canonical tree: the same additions whoever makes them."""

import importlib
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasktrain import coordinator
from dasktrain.coordinator import Coordinator
from dasktrain.errors import NonFinite, ReductionError
from dasktrain.fleet import Fleet
from dasktrain.messages import Partial
from dasktrain.reduce import Each, fold, reduce, split, subtrees
from dasktrain.wire.local import LocalWire

Vector = np.ndarray
quick = settings(max_examples=100, deadline=None)
ranges = st.integers(1, 70).flatmap(
    lambda shards: st.tuples(
        st.just(shards), st.lists(st.integers(0, shards), min_size=2, max_size=2, unique=True).map(sorted)
    )
)


def halves(start: int, stop: int) -> int:
    """Return where a node splits, by the definition: after the largest power of two below its length."""
    power = 1
    while power * 2 < stop - start:
        power *= 2
    return start + power


def nodes(start: int, stop: int) -> Iterator[tuple[int, int]]:
    yield start, stop
    if stop - start > 1:
        yield from nodes(start, halves(start, stop))
        yield from nodes(halves(start, stop), stop)


def plus(left: Vector | None, right: Vector | None) -> Vector | None:
    return right if left is None else left if right is None else left + right


def tree_sum(leaves: list[Vector | None], start: int, stop: int) -> Vector | None:
    """Sum recursively, which is what any division of labour must give to the last bit."""
    if stop - start == 1:
        return leaves[start]
    middle = halves(start, stop)
    return plus(tree_sum(leaves, start, middle), tree_sum(leaves, middle, stop))


def leaf_vectors(shards: int, seed: int, dtype: Any, empty: float) -> list[Vector | None]:
    """Make vectors of magnitudes from 1e-20 to 1e20, and some shards without rows."""
    rng = np.random.default_rng(seed)
    wild = rng.normal(size=(shards, 5)) * 10.0 ** rng.integers(-20, 20, size=(shards, 5))
    return [None if rng.random() < empty else vector.astype(dtype) for vector in wild]


def folded(leaves: list[Vector | None], start: int, stop: int) -> Vector | None:
    """Sum a node as a worker does, in memory of its own."""

    def leaf(shard: int, into: Vector | None) -> Vector | None:
        value = leaves[shard]
        if value is None:
            return into
        if into is None:
            return value.copy()
        into += value
        return into

    def add(left: Vector, right: Vector) -> Vector:
        left += right
        right[:] = np.nan  # it may be reused, so nothing may read it again
        return left

    return fold(start, stop, leaf, add)


def partials(*ends: tuple[int, int], value: float = 1.0) -> list[Partial]:
    return [Partial(start, stop, np.full(2, value, np.float32), np.full(1, value)) for start, stop in ends]


# -- the tree ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.integers(2, 10_000))
def test_split_is_after_the_largest_power_of_two_below_the_length(start: int, length: int) -> None:
    assert split(start, start + length) == halves(start, start + length)


@quick
@given(ranges)
def test_subtrees_are_nodes_that_cover_the_range_once_in_order(given_: tuple[int, list[int]]) -> None:
    shards, (start, stop) = given_
    found = list(subtrees(start, stop, shards))
    assert [shard for node in found for shard in range(*node)] == list(range(start, stop))
    assert set(found) <= set(nodes(0, shards))


@quick
@given(ranges)
def test_subtrees_are_the_fewest(given_: tuple[int, list[int]]) -> None:
    shards, (start, stop) = given_
    inside = [node for node in nodes(0, shards) if start <= node[0] and node[1] <= stop]
    # Nodes nest or are disjoint, so a cover by those that no other inside contains cannot be beaten.
    largest = [a for a in inside if not any(b != a and b[0] <= a[0] and a[1] <= b[1] for b in inside)]
    assert list(subtrees(start, stop, shards)) == sorted(largest)


@quick
@given(st.integers(0, 6), st.integers(0, 20), st.integers(0, 70))
def test_aligned_power_of_two_is_one_node(power: int, place: int, beyond: int) -> None:
    start, stop = place << power, (place + 1) << power
    assert list(subtrees(start, stop, stop + beyond)) == [(start, stop)]


def test_nothing_has_no_subtrees() -> None:
    assert list(subtrees(3, 3, 8)) == []


@quick
@given(st.integers(1, 300))
def test_fold_holds_few_sums_at_once(shards: int) -> None:
    held = most = 0

    def leaf(shard: int, into: int | None) -> int:
        nonlocal held, most
        held += into is None
        most = max(most, held)
        return (into or 0) + shard

    def add(left: int, right: int) -> int:
        nonlocal held
        held -= 1
        return left + right

    assert fold(0, shards, leaf, add) == sum(range(shards))
    assert held == 1
    assert most <= shards.bit_length()


# -- sums -------------------------------------------------------------------------------------------------------


@quick
@given(
    shards=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([np.float32, np.float64]),
    empty=st.sampled_from([0.0, 0.4, 1.0]),
    data=st.data(),
)
def test_reduced_sum_is_that_of_the_tree_to_the_bit_whoever_summed_what(
    shards: int, seed: int, dtype: Any, empty: float, data: st.DataObject
) -> None:
    vectors, sums = leaf_vectors(shards, seed, dtype, empty), leaf_vectors(shards, seed + 1, np.float64, empty)
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, shards), max_size=6))), shards]
    sent = [
        Partial(first, last, folded(vectors, first, last), folded(sums, first, last))
        for start, stop in pairwise(cuts)
        for first, last in subtrees(start, stop, shards)
    ]
    total = reduce(data.draw(st.permutations(sent)), shards)
    assert (total.start, total.stop) == (0, shards)
    for found, leaves in ((total.vector, vectors), (total.sums, sums)):
        expected = tree_sum(leaves, 0, shards)
        if expected is None:
            assert found is None
        else:
            assert found is not None
            assert (found.dtype, found.tobytes()) == (expected.dtype, expected.tobytes())


def test_reduced_sum_is_not_a_left_fold() -> None:
    values = np.array([1e8, 1.0, -1e8, 1.0], dtype=np.float32)
    total = reduce([Partial(place, place + 1, values[place : place + 1].copy(), None) for place in range(4)], 4)
    assert total.vector is not None
    assert total.vector.tolist() == [0.0]
    assert ((values[0] + values[1]) + values[2]) + values[3] == 1.0


def test_read_only_arrays_are_summed_and_left_alone() -> None:
    frames = [np.full(3, value, np.float32).tobytes() for value in (1.0, 2.0, 4.0)]
    arrays = [np.frombuffer(frame, np.float32) for frame in frames]
    total = reduce([Partial(place, place + 1, array, None) for place, array in enumerate(arrays)], 3)
    assert total.vector is not None
    assert total.vector.tolist() == [7.0] * 3
    assert [array[0] for array in arrays] == [1.0, 2.0, 4.0]


# -- block by block -----------------------------------------------------------------------------------------------


def blocks_of(size: int) -> Any:
    """Have vectors be summed so many numbers at once."""
    return patch.object(importlib.import_module("dasktrain.reduce"), "BLOCK", size)


@contextmanager
def cores(count: int) -> Iterator[Each]:
    """Return how a coordinator calls a function on each block with so many cores."""
    with patch.object(coordinator, "CORES", count), patch.object(coordinator, "PARALLEL", 1):
        adds = Coordinator(LocalWire(), Fleet(1), print, threading.Event())
        try:
            yield adds._each
        finally:
            adds.close()


@contextmanager
def several_threads() -> Iterator[Each]:
    """Return how to call a function on each block at once, whatever the machine has."""
    with ThreadPoolExecutor(3) as pool:
        yield pool.map


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_block_is_summed_once_however_many_cores_there_are(count: int) -> None:
    with cores(count) as each:
        for blocks in range(12):
            called: list[int] = []
            list(each(called.append, range(blocks)))
            assert Counter(called) == Counter(range(blocks))


@pytest.mark.parametrize("adds", [several_threads, lambda: cores(2)], ids=["threads", "coordinator"])
def test_blocks_on_threads_have_the_bits_of_the_whole(adds: Any) -> None:
    @quick
    @given(
        st.integers(1, 20),
        st.integers(1, 7),
        st.sampled_from([0.0, 0.4, 1.0]),
        st.integers(0, 2**32),
        st.lists(st.booleans(), min_size=20, max_size=20),
    )
    def check(shards: int, block: int, empty: float, seed: int, read_only: list[bool]) -> None:
        leaves = leaf_vectors(shards, seed, np.float32, empty)
        sent = [Partial(place, place + 1, as_sent(leaf, read_only[place]), None) for place, leaf in enumerate(leaves)]
        before = [None if partial.vector is None else partial.vector.tobytes() for partial in sent]
        with blocks_of(block):
            total = reduce(sent[::-1], shards, each).vector
        expected = tree_sum(leaves, 0, shards)
        assert (total is None) == (expected is None)
        if total is not None and expected is not None:
            assert (total.flags.writeable, total.tobytes()) == (True, expected.tobytes())
        for partial, bits in zip(sent, before, strict=True):
            if partial.vector is not None and not partial.vector.flags.writeable:
                assert partial.vector.tobytes() == bits

    with adds() as each:
        check()


def as_sent(leaf: Vector | None, read_only: bool) -> Vector | None:
    """Return a copy, which may be of memory that must not be written to."""
    if leaf is None:
        return None
    return np.frombuffer(leaf.tobytes(), leaf.dtype) if read_only else leaf.copy()


def test_a_sum_lies_in_the_memory_of_the_first_that_has_any() -> None:
    """Where shards without rows sent nothing; no other memory of its size is taken."""
    vectors = [None, np.ones(10), np.ones(10), None]
    with blocks_of(3):
        total = reduce([Partial(place, place + 1, vector, None) for place, vector in enumerate(vectors)], 4)
    assert total.vector is vectors[1]


@pytest.mark.parametrize("place", range(10))
@pytest.mark.parametrize("values", [(1.0, np.nan), (np.inf, 1.0), (np.inf, -np.inf), (3e38, 3e38)])
def test_a_number_that_is_not_finite_is_refused_in_whichever_block_it_is(
    place: int, values: tuple[float, float]
) -> None:
    vectors = np.ones((2, 10), np.float32)
    vectors[:, place] = values
    with blocks_of(3), several_threads() as each, pytest.raises(NonFinite, match="must be finite"):
        reduce([Partial(shard, shard + 1, vector, None) for shard, vector in enumerate(vectors)], 2, each)


def test_vectors_of_other_lengths_are_refused_before_any_block_is_summed() -> None:
    first = np.ones(10)
    with blocks_of(2), pytest.raises(ReductionError, match=r"one length to be added, however they have \[9, 10\]"):
        reduce([Partial(0, 1, first, None), Partial(1, 2, np.ones(9), None)], 2)
    assert first.tolist() == [1.0] * 10


# -- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("came", "message"),
    [
        ([], "shard 0 is missing"),
        ([(0, 2), (3, 4)], "shard 2 is missing"),
        ([(0, 2), (2, 4), (0, 2)], r"\[0, 2\) came twice"),
        ([(0, 4), (1, 2)], r"\[1, 2\) came beside others"),
        ([(0, 2), (2, 4), (2, 3)], r"\[2, 3\) came beside others"),
        ([(0, 4), (4, 5)], r"\[4, 5\) came beside others"),
        ([(0, 1), (1, 3), (3, 4)], "shard 1 is missing"),
    ],
    ids=["nothing", "gap", "double", "leaf twice", "node twice", "beyond", "no node"],
)
def test_partials_that_do_not_cover_the_shards_once_are_refused(came: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ReductionError, match=message):
        reduce(partials(*came), 4)


@pytest.mark.parametrize("part", ["vector", "sums"])
def test_partials_of_other_lengths_are_refused_and_not_stretched(part: str) -> None:
    came = [Partial(0, 1, np.ones(5), np.ones(5)), replace(Partial(1, 2, np.ones(5), np.ones(5)), **{part: np.ones(1)})]
    with pytest.raises(ReductionError, match=r"one length to be added, however they have \[1, 5\]"):
        reduce(came, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["vector", "sums"])
def test_sum_that_is_not_finite_is_refused(value: float, part: str) -> None:
    fine, poisoned = partials((0, 1), (1, 2))
    getattr(poisoned, part)[-1] = value
    with pytest.raises(NonFinite, match="must be finite, however they hold NaN or infinity"):
        reduce([fine, poisoned], 2)


def test_finite_partials_whose_sum_overflows_are_refused() -> None:
    with pytest.raises(NonFinite):
        reduce(partials((0, 1), (1, 2), value=3e38), 2)
