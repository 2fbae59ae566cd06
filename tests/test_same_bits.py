"""The promise, in this process: the digest is the reference's on any number of workers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dasktrain as dt
from tests.problems import PROBLEMS, Problem, expected


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: f"{problem.model}-{problem.optimizer}")
def test_digest_equals_the_reference(problem: Problem, workers: int) -> None:
    assert problem.fit(dt.LocalWire(workers)).digest == expected(problem)


def test_digest_differs_by_seed_and_by_shards() -> None:
    problem = PROBLEMS[2]
    digests = {problem.fit(dt.LocalWire(), **other).digest for other in ({}, {"seed": 8}, {"shards": 5})}
    assert len(digests) == 3


@settings(max_examples=15, deadline=None)
@given(shards=st.integers(1, 13), workers=st.integers(2, 6), batch_size=st.integers(60, 500), shuffle=st.booleans())
def test_digest_is_that_of_one_worker_for_any_shards(shards: int, workers: int, batch_size: int, shuffle: bool) -> None:
    problem = PROBLEMS[0]
    settings_ = {"shards": shards, "batch_size": batch_size, "epochs": 1, "shuffle": "epoch" if shuffle else False}
    assert problem.fit(dt.LocalWire(workers), **settings_).digest == problem.fit(dt.LocalWire(1), **settings_).digest


def test_history_is_the_same_on_any_number_of_workers() -> None:
    problem = PROBLEMS[3]
    one, five = (problem.fit(dt.LocalWire(workers)).history for workers in (1, 5))
    for column in ("loss", "learning_rate", "rows"):
        np.testing.assert_array_equal(one.to_frame("rounds")[column], five.to_frame("rounds")[column])
