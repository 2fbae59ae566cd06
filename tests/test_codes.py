"""Numbers on coarser grids: rounding twice is rounding once, and what is packed comes out to the bit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dasktrain.codes import BLOCK, CODES, BFloat16, Code, Plain, Scaled, Sparse, Ternary, pack, rounded, unpack
from dasktrain.errors import WireError

HEAD = 16
#: largest error of a number, of the largest of its block
ERRORS = {BFloat16(): 2.0**-8, Scaled("float16"): 2.0**-11, Scaled("int8"): 2.0**-7, Plain(): 0.0, Sparse(): 0.0}
BYTES = {BFloat16(): 2.0, Scaled("float16"): 2.0, Scaled("int8"): 1.0, Plain(): 4.0, Ternary(): 1 / 5}
finite = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)
vectors = st.integers(0, 3 * BLOCK).flatmap(
    lambda size: arrays(np.float32, size, elements=st.one_of(st.just(0.0), st.just(-0.0), finite))
)
every_code = pytest.mark.parametrize("code", CODES, ids=str)


def bits(vector: np.ndarray) -> Any:
    return vector.view(np.uint32).tolist()


@every_code
@given(vector=vectors)
def test_rounding_twice_is_rounding_once(code: Code, vector: np.ndarray) -> None:
    once = code.nearest(vector)
    assert once.dtype == np.float32
    assert bits(code.nearest(once)) == bits(once)


@every_code
@given(vector=vectors)
def test_what_is_packed_comes_out_to_the_bit(code: Code, vector: np.ndarray) -> None:
    on_grid = code.nearest(vector)
    found = unpack(pack(code, on_grid), len(vector))
    assert bits(found) == bits(on_grid)
    assert found.flags.writeable


@pytest.mark.parametrize("code", ERRORS, ids=str)
@given(vector=vectors)
def test_the_error_is_that_of_the_type(code: Code, vector: np.ndarray) -> None:
    found = code.nearest(vector)
    for start in range(0, len(vector), BLOCK):
        block, near = (each[start : start + BLOCK].astype(np.float64) for each in (vector, found))
        assert np.abs(block - near).max() <= ERRORS[code] * np.abs(block).max() + 2.0**-100


@pytest.mark.parametrize("code", BYTES, ids=str)
def test_bytes_are_those_of_the_type(code: Code) -> None:
    size = 1000 * BLOCK
    vector = np.random.default_rng(0).normal(size=size).astype(np.float32)
    scales = 4 * 1000 if code == Ternary() else 2 * 1000
    assert HEAD <= len(pack(code, code.nearest(vector))) - BYTES[code] * size <= HEAD + scales


@pytest.mark.parametrize(("gap", "bytes_each"), [(100, 6), (70_000, 8)])
def test_few_numbers_take_few_bytes_wherever_they_lie(gap: int, bytes_each: int) -> None:
    vector = np.zeros(10 * gap, dtype=np.float32)
    vector[gap - 1 :: gap] = np.arange(1, 11)
    packed = pack(Sparse(), vector)
    assert len(packed) == HEAD + 8 + 10 * bytes_each
    assert bits(unpack(packed, len(vector))) == bits(vector)


def test_signs_are_kept_of_numbers_above_three_quarters_of_the_mean() -> None:
    found = Ternary().nearest(np.array([1.0, -2.0, 3.0, -6.0, 0.0], dtype=np.float32))  # the mean of what is above 1.8
    assert found.tolist() == pytest.approx([0.0, -11 / 3, 11 / 3, -11 / 3, 0.0])
    assert not np.signbit(found[[0, 4]]).any()


def test_what_is_left_out_of_normal_numbers_is_the_least() -> None:
    """0.19 of their variance, as Max (1960) has it of three levels."""
    vector = np.random.default_rng(0).normal(size=1000 * BLOCK).astype(np.float32)
    assert np.var(vector - Ternary().nearest(vector)) == pytest.approx(0.19, abs=0.005)


@pytest.mark.parametrize("others", [1e-3, 1.0], ids=["one among small ones", "all alike"])
def test_few_that_are_large_are_not_held_back(others: float) -> None:
    vector = np.full(BLOCK, others, dtype=np.float32)
    vector[7] = -1.0
    np.testing.assert_allclose(Ternary().nearest(vector)[7], -1.0, rtol=0.01)


@pytest.mark.parametrize(
    ("code", "place", "wrong"),
    [
        (Ternary(), -1, np.uint8([243])),
        (Ternary(), HEAD, np.float32([np.nan])),
        (Ternary(), HEAD, np.float32([-1.0])),
        (Scaled("int8"), HEAD, np.int16([32_000])),
        (Scaled("float16"), HEAD, np.int16([-101])),
    ],
)
def test_numbers_that_no_code_writes_are_refused(code: Code, place: int, wrong: np.ndarray) -> None:
    packed = pack(code, np.ones(10, dtype=np.float32))
    place %= len(packed)
    packed[place : place + wrong.nbytes] = wrong.view(np.uint8)
    with pytest.raises(WireError, match="must be what a code makes"):
        unpack(packed, 10)


def test_each_block_has_a_scale_of_its_own() -> None:
    vector = np.concatenate([np.full(BLOCK, 1e-20), np.full(BLOCK, 1e20)]).astype(np.float32)
    for code in (Scaled("int8"), Scaled("float16"), Ternary()):
        np.testing.assert_allclose(code.nearest(vector), vector, rtol=0.01)


def test_ties_of_bfloat16_go_to_even() -> None:
    tie = np.array([0x3F808000, 0x3F818000], dtype=np.uint32).view(np.float32)
    assert BFloat16().nearest(tie).view(np.uint32).tolist() == [0x3F800000, 0x3F820000]


@every_code
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so_until_it_is_refused(code: Code, bad: float) -> None:
    vector = np.ones(BLOCK + 1, dtype=np.float32)
    vector[7] = bad
    found = unpack(pack(code, rounded(code, vector)), len(vector))
    assert not np.isfinite(found).all()


@every_code
@given(cut=st.integers(0, 400), number=st.integers(0, 255))
def test_bytes_that_are_none_of_ours_are_refused(code: Code, cut: int, number: int) -> None:
    vector = code.nearest(np.arange(1, 300, dtype=np.float32))
    packed = pack(code, vector)
    for wrong in (packed[:cut][: len(packed) - 1], np.append(packed, np.uint8(0))):
        with pytest.raises(WireError, match="must be what a code makes"):
            unpack(wrong, len(vector))
    with pytest.raises(WireError, match="299 numbers in place of 300"):
        unpack(packed, 300)
    if number >= len(CODES):
        packed = packed.copy()
        packed[0] = number
        with pytest.raises(WireError):
            unpack(packed, len(vector))


def test_places_outside_of_a_vector_are_refused() -> None:
    vector = np.zeros(100, dtype=np.float32)
    vector[99] = 1.0
    packed = pack(Sparse(), vector)
    packed[-2:] = np.array([100], dtype=np.uint16).view(np.uint8)
    with pytest.raises(WireError, match="must be what a code makes"):
        unpack(packed, 100)
