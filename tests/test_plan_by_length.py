"""Rows of like length read together: as fair as any plan, and with little padding."""

from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasktrain.plan import Plan, Rows, rows_only
from tests.test_plan import in_order, pairs, plans, quick

some_plans = plans(partitionings=("block", "random"))
LONGEST, ENDLESS = 6, 10**9


def read(plan: Plan, rows: Rows) -> np.ndarray:
    """Return made-up lengths, the same for a row whoever asks."""
    return (rows.partition * 7 + rows.row * 5) % 11 % LONGEST


def epoch_of(plan: Plan, epoch: int = 0) -> list[list[Rows]]:
    """Read an epoch in order: [round][shard] -> rows."""
    return [
        [plan.rows(epoch, round, shard, lambda rows: read(plan, rows)) for shard in range(plan.shards)]
        for round in range(plan.rounds)
    ]


@quick
@given(some_plans, st.integers(0, 3))
def test_every_row_is_read_exactly_once_an_epoch(plan: Plan, epoch: int) -> None:
    rounds = epoch_of(replace(plan, by_length=True), epoch)
    assert sorted(row for round in rounds for rows in round for row in pairs(rows)) == in_order(plan)


@quick
@given(some_plans)
def test_shards_read_as_many_rows_in_every_round_as_without_lengths(plan: Plan) -> None:
    sizes = [[len(rows) for rows in round] for round in epoch_of(replace(plan, by_length=True))]
    assert sizes == [[len(rows) for rows in round] for round in epoch_of(plan)]


@quick
@given(some_plans)
def test_windows_hold_the_rows_they_hold_without_lengths(plan: Plan) -> None:
    epochs = [epoch_of(plan), epoch_of(replace(plan, by_length=True))]
    for shard in range(plan.shards):
        whole, sorted_ = ([row for round in epoch for row in pairs(round[shard])] for epoch in epochs)
        for window in np.array_split(np.arange(len(whole)), max(1, -(-len(whole) // plan.window))):
            assert {whole[place] for place in window} == {sorted_[place] for place in window}


@quick
@given(some_plans)
def test_what_a_round_reads_of_a_window_is_sorted_and_beside_the_rest(plan: Plan) -> None:
    """With one window a shard's pieces do not overlap in length, whichever round each is given to."""
    plan = replace(plan, by_length=True, window=10_000)
    rounds = epoch_of(plan)
    for shard in range(plan.shards):
        pieces = [read(plan, round[shard]).tolist() for round in rounds if len(round[shard])]
        assert all(piece == sorted(piece) for piece in pieces)
        from_short_to_long = sorted(pieces, key=lambda piece: (piece[0], piece[-1]))
        assert list(chain(*from_short_to_long)) == sorted(chain(*pieces))


@quick
@given(some_plans, st.integers(0, 3), st.data())
def test_any_round_is_read_without_those_before_it(plan: Plan, epoch: int, data: st.DataObject) -> None:
    plan = replace(plan, by_length=True)
    round = data.draw(st.integers(0, plan.rounds - 1))
    expected = [pairs(rows) for rows in epoch_of(plan, epoch)[round]]
    fresh = replace(plan)
    found = [fresh.rows(epoch, round, shard, lambda rows: read(fresh, rows)) for shard in range(plan.shards)]
    assert [pairs(rows) for rows in found] == expected


def test_rounds_get_pieces_of_any_length_and_others_in_every_epoch() -> None:
    plan = Plan(rows_only([400]), 2, 40, by_length=True)
    epochs = [[read(plan, round[0]).mean() for round in epoch_of(plan, epoch)] for epoch in range(2)]
    assert all(means != sorted(means) for means in epochs)
    assert epochs[0] != epochs[1]
    in_order = [read(plan, round[0]).mean() for round in epoch_of(replace(plan, shuffle=False))]
    assert in_order == sorted(in_order)
    assert in_order[0] < in_order[-1]


def test_lengths_are_asked_for_once_a_window() -> None:
    asked: list[int] = []
    plan = Plan(rows_only([500, 300]), 2, 40, by_length=True, window=100)

    def lengths(rows: Rows) -> Any:
        asked.append(len(rows))
        return read(plan, rows)

    for round in range(plan.rounds):
        for shard in range(plan.shards):
            plan.rows(0, round, shard, lengths)
    assert asked == [100] * 8


# -- padding ----------------------------------------------------------------------------------------------------


def waste(plan: Plan, lengths: np.ndarray) -> float:
    """Return the share of padding among all tokens of an epoch."""
    starts = np.concatenate([[0], np.cumsum(plan.strata.sum(axis=1))])

    def of(rows: Rows) -> np.ndarray:
        found: np.ndarray = lengths[starts[rows.partition] + rows.row]
        return found

    pieces = [of(plan.rows(0, round, shard, of)) for round in range(plan.rounds) for shard in range(plan.shards)]
    return 1 - sum(piece.sum() for piece in pieces) / sum(piece.max() * len(piece) for piece in pieces if len(piece))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("spread", "context", "padding"),
    [
        (0.5, ENDLESS, 0.05),
        (1.0, 512, 0.05),
        (1.0, ENDLESS, 0.20),  # of which the few longest have most: texts of 600 beside one of 3,000
    ],
)
def test_little_of_log_normal_texts_is_padding(seed: int, spread: float, context: int, padding: float) -> None:
    lengths = np.random.default_rng(seed).lognormal(4, spread, 20_000).astype(int) + 1
    lengths = np.minimum(lengths, context)
    plan = Plan(rows_only([2500] * 8), 8, 256, seed, window=4096)
    assert waste(replace(plan, by_length=True), lengths) <= padding
    assert waste(plan, lengths) >= 0.60
