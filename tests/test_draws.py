"""Plans that read rows of a class more or less often than once, and plans that keep rows together."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasktrain.draws import Draws
from dasktrain.errors import PlanError
from dasktrain.plan import SHUFFLES, Plan
from tests.test_plan import COPIES, Row, classes_of, epoch_of, pairs, quick, shards_of


@st.composite
def drawing(draw: st.DrawFn, shuffles: tuple[Any, ...] = SHUFFLES) -> Plan:
    """Draw a plan of two or three classes of which it reads any number of rows."""
    classes = draw(st.integers(2, 3))
    counts = st.lists(st.integers(0, 7), min_size=classes, max_size=classes)
    strata = np.array(draw(st.lists(counts, min_size=1, max_size=5).filter(lambda rows: np.sum(rows) > 0)))
    drawn = tuple(draw(st.integers(1, 40)) if rows else 0 for rows in strata.sum(axis=0).tolist())
    return Plan(
        strata,
        shards=draw(st.integers(1, 9)),
        batch_size=draw(st.integers(1, 40)),
        seed=draw(st.integers(0, 2**40)),
        partition="stratified",
        shuffle=draw(st.sampled_from(shuffles)),
        window=draw(st.integers(1, 12) | st.just(200)),
        drawn=drawn,
    )


@st.composite
def grouping(draw: st.DrawFn, shuffles: tuple[Any, ...] = SHUFFLES) -> Plan:
    """Draw a plan whose shards have rows of their own, in any partitions, some none."""
    shards = draw(st.integers(1, 6))
    counts = st.lists(st.integers(0, 9), min_size=shards, max_size=shards)
    strata = draw(st.lists(counts, min_size=1, max_size=5).filter(lambda rows: np.sum(rows) > 0))
    return Plan(
        np.array(strata),
        shards=shards,
        batch_size=draw(st.integers(1, 60)),
        seed=draw(st.integers(0, 2**40)),
        partition=draw(st.sampled_from(["block", "random"])),
        shuffle=draw(st.sampled_from(shuffles)),
        window=draw(st.integers(1, 12) | st.just(200)),
        grouped=True,
    )


def read(plan: Plan, epoch: int) -> Counter[Row]:
    return Counter(row for rows in shards_of(plan, epoch) for row in rows)


def all_rows(plan: Plan) -> list[Row]:
    return [(partition, row) for partition, rows in enumerate(plan.strata.sum(axis=1).tolist()) for row in range(rows)]


# -- drawn --------------------------------------------------------------------------------------------------------


@quick
@given(drawing(), st.integers(0, 5))
def test_an_epoch_reads_as_many_of_a_class_as_asked_for_and_each_as_often_as_any_other(plan: Plan, epoch: int) -> None:
    times = read(plan, epoch)
    assert times.keys() <= set(all_rows(plan))
    assert classes_of(plan, list(times.elements())).tolist() == list(plan.drawn or ())
    for label in range(plan.strata.shape[1]):
        each = [times[row] for row in all_rows(plan) if classes_of(plan, [row])[label]]
        assert not each or max(each) - min(each) <= 1


@quick
@given(drawing(), st.integers(0, 3), st.integers(1, 6))
def test_over_epochs_no_row_is_read_more_often_than_another_of_its_class_but_for_once(
    plan: Plan, first: int, epochs: int
) -> None:
    times: Counter[Row] = sum((read(plan, first + epoch) for epoch in range(epochs)), Counter())
    for label in range(plan.strata.shape[1]):
        each = [times[row] for row in all_rows(plan) if classes_of(plan, [row])[label]]
        assert not each or max(each) - min(each) <= 1


@quick
@given(drawing())
def test_copies_are_numbered_from_the_first_that_an_epoch_reads(plan: Plan) -> None:
    found: dict[Row, list[int]] = {}
    for round in range(plan.rounds):
        for shard in range(plan.shards):
            rows = plan.rows(1, round, shard)
            assert rows.copy is not None or not len(rows)
            for row, copy in zip(pairs(rows), [] if rows.copy is None else rows.copy.tolist(), strict=True):
                found.setdefault(row, []).append(copy)
    assert all(sorted(copies) == list(range(len(copies))) for copies in found.values())


@quick
@given(drawing())
def test_rounds_shards_and_windows_of_what_is_drawn_are_as_even_as_others(plan: Plan) -> None:
    epoch = epoch_of(plan)
    assert [sum(map(len, round)) for round in epoch] == [plan.rows_of_round(round) for round in range(plan.rounds)]
    assert all(max(map(len, round)) - min(map(len, round)) <= 1 for round in epoch)
    counts = np.array([classes_of(plan, rows) for rows in shards_of(plan)])
    assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all()


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@quick
@given(plan=drawing() | grouping(), data=st.data())
def test_round_jumped_to_is_the_one_come_to_in_order(copied: Any, plan: Plan, data: st.DataObject) -> None:
    epochs = [epoch_of(plan, epoch) for epoch in range(2)]
    copy = copied(plan)
    cursor = st.tuples(st.integers(0, 1), st.integers(0, plan.rounds - 1), st.integers(0, plan.shards - 1))
    for epoch, round, shard in data.draw(st.lists(cursor, min_size=1, max_size=8)):
        assert pairs(copy.rows(epoch, round, shard)) == epochs[epoch][round][shard]


@quick
@given(drawing(shuffles=("shard", "epoch", False)), st.integers(0, 3))
def test_partitions_tells_what_a_shard_touches(plan: Plan, epoch: int) -> None:
    for shard, rows in enumerate(shards_of(plan, epoch)):
        assert plan.partitions(epoch, shard) == Counter(partition for partition, _ in rows)


def test_undersampled_epochs_and_seeds_read_others_until_all_are_read() -> None:
    plan = Plan(np.array([[300, 10], [700, 20]]), 4, 50, partition="stratified", drawn=(100, 30))
    epochs = [{row for row in read(plan, epoch) if row[1] < (300, 700)[row[0]]} for epoch in range(10)]
    assert list(map(len, epochs)) == [100] * 10
    assert len(set.union(*epochs)) == 1000
    assert epochs[0] != set(read(replace(plan, seed=1), 0))


def test_what_is_drawn_of_a_partition_is_not_every_so_many_th_row_unless_order_is_kept() -> None:
    steps = {}
    for shuffle in ("shard", False):
        plan = Plan(np.array([[1000, 50]]), 1, 150, partition="stratified", shuffle=shuffle, drawn=(100, 50))
        rows = sorted(row for _, row in read(plan, 0) if row < 1000)
        steps[shuffle] = set(np.diff(rows).tolist())
    assert steps[False] == {10}
    assert len(steps["shard"]) > 10


@pytest.mark.parametrize(
    ("rows", "drawn", "message"),
    [
        ([[3, 4]], (3,), "a number for each of 2 classes, however it is"),
        ([[3, 0]], (3, 1), "of classes that have some, however 1 are of class 1"),
        ([[3, 4]], (-1, 1), "however -1 are of class 0"),
        ([[2**40, 4]], (2**30, 4), "must be below 2"),
    ],
)
def test_what_cannot_be_drawn_is_refused(rows: Any, drawn: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Draws(np.array(rows), drawn, 0)


# -- grouped ------------------------------------------------------------------------------------------------------


@quick
@given(grouping(), st.integers(0, 3))
def test_a_grouped_shard_reads_its_own_rows_each_once(plan: Plan, epoch: int) -> None:
    before = plan.strata.cumsum(axis=1) - plan.strata
    for shard, rows in enumerate(shards_of(plan, epoch)):
        own = [
            (partition, int(before[partition, shard]) + row)
            for partition, count in enumerate(plan.strata[:, shard].tolist())
            for row in range(count)
        ]
        assert sorted(rows) == own
        assert plan.partitions(epoch, shard) == Counter(partition for partition, _ in rows)


@quick
@given(grouping())
def test_grouped_rounds_and_a_shards_parts_of_them_are_within_one_row_of_each_other(plan: Plan) -> None:
    sizes = np.array([[len(rows) for rows in round] for round in epoch_of(plan)])
    assert sizes.sum(axis=1).tolist() == [plan.rows_of_round(round) for round in range(plan.rounds)]
    assert (sizes.max(axis=0) - sizes.min(axis=0) <= 1).all()
    assert sizes.sum(axis=1).max() <= plan.batch_size
    assert plan.fewest_rows <= sizes[sizes > 0].min()


def test_groups_must_be_dealt_to_the_plans_shards() -> None:
    with pytest.raises(PlanError, match="to the plan's 3 shards, however they are to 2"):
        Plan(np.array([[1, 2]]), 3, 10, grouped=True)
