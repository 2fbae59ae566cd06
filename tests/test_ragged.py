"""Rows of different lengths: every operation is that on lists of lists."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dasktrain.data.ragged import Ragged, joined

rows = st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=8)


def made(lists: list[list[int]]) -> Ragged:
    return Ragged.of(lists, np.int32)


def lists(ragged: Ragged) -> list[list[int]]:
    return [ragged.row(number).tolist() for number in range(ragged.num_rows)]


@given(rows)
def test_rows_come_back(given_rows: list[list[int]]) -> None:
    assert lists(made(given_rows)) == given_rows
    assert made(given_rows).lengths.tolist() == [len(row) for row in given_rows]


@given(rows, st.data())
def test_take_is_indexing(given_rows: list[list[int]], data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(given_rows) - 1))) if given_rows else []
    taken = made(given_rows).take(np.array(places, dtype=np.int64))
    assert lists(taken) == [given_rows[place] for place in places]


@given(rows, st.integers(1, 6))
def test_cut_is_a_slice(given_rows: list[list[int]], longest: int) -> None:
    assert lists(made(given_rows).cut(longest)) == [row[:longest] for row in given_rows]


@given(rows)
def test_filled_and_followed(given_rows: list[list[int]]) -> None:
    assert lists(made(given_rows).filled(7)) == [row or [7] for row in given_rows]
    assert lists(made(given_rows).followed_by(7)) == [[*row, 7] for row in given_rows]


@given(rows, rows)
def test_joined_is_one_after_the_other(one: list[list[int]], other: list[list[int]]) -> None:
    assert lists(joined([made(one), made(other)])) == one + other


@given(rows)
def test_padded_and_mask_say_where_rows_end(given_rows: list[list[int]]) -> None:
    longest = max(map(len, given_rows), default=0)
    padded, mask = made(given_rows).padded(-1), made(given_rows).mask()
    assert padded.dtype == mask.dtype == torch.int64
    assert padded.tolist() == [row + [-1] * (longest - len(row)) for row in given_rows]
    assert mask.tolist() == [[1] * len(row) + [0] * (longest - len(row)) for row in given_rows]


@given(st.lists(st.binary(max_size=5)))
def test_bytes_come_back(given_rows: list[Any]) -> None:
    ragged = Ragged.of_bytes(given_rows)
    assert [ragged.row(number).tobytes() for number in range(ragged.num_rows)] == given_rows
