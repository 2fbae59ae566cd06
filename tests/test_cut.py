"""cut.py: all of a vector is in buckets, which owners share out evenly however many they are."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasktrain import cut
from dasktrain.cut import LEAST, SIZE, Cut, sizes


@given(st.integers(0, 200), st.integers(1, 50))
def test_each_number_is_in_one_bucket(numbers: int, bucket: int) -> None:
    cut = Cut(numbers, bucket)
    places = [cut.place(offset) for offset in cut.offsets]
    assert [number for place in places for number in range(place.start, place.stop)] == list(range(numbers))
    assert {place.stop - place.start for place in places[:-1]} <= {bucket}


@given(st.integers(0, 200), st.integers(1, 50), st.integers(1, 9))
def test_each_bucket_has_one_owner(numbers: int, bucket: int, peers: int) -> None:
    cut = Cut(numbers, bucket)
    owned = {offset: place for place in range(peers) for offset in cut.owned(place, peers)}
    assert owned == {offset: cut.owner(offset, peers) for offset in cut.offsets}


def test_a_bucket_has_half_as_many_numbers_as_another_between_the_most_and_what_is_worth_a_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (sizes()[0], sizes()[-1]) == (SIZE, LEAST)
    assert all(more == 2 * fewer for more, fewer in pairwise(sizes()))
    monkeypatch.setattr(cut, "SIZE", 5)
    assert sizes() == [5]
