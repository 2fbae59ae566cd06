"""cut.py: all of a vector is in buckets, which owners share out evenly however many they are."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dasktrain.cut import LEAST, SIZE, TURNS, Cut, small_for


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


@given(st.integers(1, 1 << 34), st.integers(1, 1024))
def test_buckets_are_as_large_as_leaves_each_owner_its_turns(numbers: int, owners: int) -> None:
    bucket = small_for(numbers, owners)
    assert LEAST <= bucket <= SIZE
    assert bucket == LEAST or numbers >= TURNS * owners * bucket
    assert bucket == SIZE or numbers < TURNS * owners * 2 * bucket


@given(st.integers(3, 1024), st.data())
def test_no_owner_has_much_more_than_another(owners: int, data: st.DataObject) -> None:
    numbers = data.draw(st.integers(TURNS * owners * LEAST, 1 << 27))
    cut = Cut(numbers, small_for(numbers, owners))
    buckets = Counter(cut.owner(offset, owners) for offset in cut.offsets)
    assert len(buckets) == owners
    assert TURNS <= min(buckets.values()) <= max(buckets.values()) <= min(buckets.values()) + 1
