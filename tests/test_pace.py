"""When an answer is late."""

from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasktrain.pace import LEAST, TIMES, WINDOW, Pace

seconds = st.floats(0, 1e6)
rounds = st.lists(seconds, min_size=1, max_size=3 * WINDOW)


def after(took: list[float]) -> Pace:
    pace = Pace()
    for each in took:
        pace.add(each)
    return pace


@given(rounds, st.none() | seconds)
def test_patience_is_so_many_medians_of_the_latest_rounds_whatever_came_first(
    took: list[float], first: float | None
) -> None:
    assert after(took).patience(first) == max(LEAST, TIMES * median(took[-WINDOW:]))


@given(rounds)
def test_patience_is_never_less_than_the_least(took: list[float]) -> None:
    assert (after(took).patience(None) or 0) >= LEAST > 0


@given(rounds, seconds)
def test_one_long_round_among_many_changes_little(took: list[float], long: float) -> None:
    usual = [1.0] * (len(took) + 1)
    assert after([*usual, *took, *usual, long]).patience(None) == max(LEAST, TIMES)


@given(seconds)
def test_in_the_very_first_round_the_first_answer_is_the_measure(first: float) -> None:
    assert Pace().patience(first) == max(LEAST, TIMES * first)


def test_before_the_first_answer_of_all_nobody_is_late() -> None:
    assert Pace().patience(None) is None


@given(st.lists(seconds, min_size=WINDOW, max_size=WINDOW), st.lists(seconds, max_size=WINDOW))
def test_rounds_of_long_ago_are_forgotten(recent: list[float], old: list[float]) -> None:
    assert after([*old, *recent]).patience(None) == after(recent).patience(None)


@pytest.mark.parametrize("took", [0.01, 1.0, 30.0])
def test_a_worker_as_fast_as_ever_is_not_late(took: float) -> None:
    assert took < (after([took] * 5).patience(None) or 0)
