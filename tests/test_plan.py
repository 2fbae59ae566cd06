"""Which rows each shard sees: exact cover, even cuts, and any round without those before it."""

import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasktrain.errors import PlanError
from dasktrain.plan import PARTITIONINGS, SHUFFLES, Plan, Rows, dealt, permuted, rows_only, shard_seed

Row = tuple[int, int]
quick = settings(max_examples=40, deadline=None)


@st.composite
def plans(
    draw: st.DrawFn,
    partitionings: tuple[Any, ...] = PARTITIONINGS,
    shuffles: tuple[Any, ...] = SHUFFLES,
    most_partitions: int = 6,
) -> Plan:
    """Draw a plan over few rows: partitions may be empty, shards and batches larger than the data."""
    partition = draw(st.sampled_from(partitionings))
    classes = draw(st.integers(1, 3)) if partition == "stratified" else 1
    counts = st.lists(st.integers(0, 3) | st.integers(4, 25 // classes), min_size=classes, max_size=classes)
    strata = draw(st.lists(counts, min_size=1, max_size=most_partitions).filter(lambda rows: np.sum(rows) > 0))
    return Plan(
        np.array(strata),
        shards=draw(st.integers(1, 9) | st.integers(10, 70)),
        batch_size=draw(st.integers(1, 40) | st.integers(100, 400)),
        seed=draw(st.integers(0, 2**40)),
        partition=partition,
        shuffle=draw(st.sampled_from(shuffles)),
        window=draw(st.integers(1, 12) | st.integers(50, 200)),
    )


def pairs(rows: Rows) -> list[Row]:
    return list(zip(rows.partition.tolist(), rows.row.tolist(), strict=True))


def epoch_of(plan: Plan, epoch: int = 0) -> list[list[list[Row]]]:
    """Read an epoch in order: [round][shard] -> rows."""
    return [[pairs(plan.rows(epoch, round, shard)) for shard in range(plan.shards)] for round in range(plan.rounds)]


def shards_of(plan: Plan, epoch: int = 0) -> list[list[Row]]:
    """Read each shard's rows of an epoch in order: [shard] -> rows."""
    return [[row for round in rounds for row in round] for rounds in zip(*epoch_of(plan, epoch), strict=True)]


def in_order(plan: Plan) -> list[Row]:
    sizes = plan.strata.sum(axis=1).tolist()
    return [(partition, row) for partition, size in enumerate(sizes) for row in range(size)]


def classes_of(plan: Plan, rows: list[Row]) -> np.ndarray:
    """Count the rows of each class; a stratified partition holds its rows sorted by class."""
    ends = np.cumsum(plan.strata, axis=1)
    labels = [int(np.searchsorted(ends[partition], row, side="right")) for partition, row in rows]
    return np.bincount(labels, minlength=plan.strata.shape[1])


def uneven(**other: Any) -> Plan:
    """Return a plan over a data set large enough for any two shufflings to differ."""
    return Plan(rows_only([97, 0, 1, 210, 33, 62]), **({"shards": 4, "batch_size": 50, "window": 30} | other))


# -- an epoch ---------------------------------------------------------------------------------------------------


@quick
@given(plans(), st.integers(0, 3))
def test_every_row_is_read_exactly_once_an_epoch(plan: Plan, epoch: int) -> None:
    assert sorted(row for rows in shards_of(plan, epoch) for row in rows) == in_order(plan)


@quick
@given(plans())
def test_rounds_are_as_few_and_as_even_as_can_be(plan: Plan) -> None:
    sizes = [sum(map(len, round)) for round in epoch_of(plan)]
    assert len(sizes) == -(-plan.num_rows // plan.batch_size)
    assert sizes == [plan.rows_of_round(round) for round in range(plan.rounds)]
    assert max(sizes) <= plan.batch_size
    assert max(sizes) - min(sizes) <= 1


@quick
@given(plans())
def test_shards_of_a_round_are_within_one_row_of_each_other(plan: Plan) -> None:
    for round in epoch_of(plan):
        sizes = [len(rows) for rows in round]
        assert max(sizes) - min(sizes) <= 1


@quick
@given(plans())
def test_fewest_rows_is_the_smallest_contribution_that_is_not_empty(plan: Plan) -> None:
    assert plan.fewest_rows == min(len(rows) for round in epoch_of(plan) for rows in round if rows)


@quick
@given(plans(shuffles=("shard", "epoch", False)), st.integers(0, 3))
def test_partitions_tells_what_a_shard_touches(plan: Plan, epoch: int) -> None:
    for shard, rows in enumerate(shards_of(plan, epoch)):
        assert plan.partitions(epoch, shard) == Counter(partition for partition, _ in rows)


@quick
@given(plans(shuffles=("global",)))
def test_partitions_names_every_one_under_global_shuffling(plan: Plan) -> None:
    assert list(plan.partitions(0, 0)) == list(range(len(plan.strata)))


# -- any round, anywhere ----------------------------------------------------------------------------------------

COPIES: dict[str, Callable[[Plan], Plan]] = {
    "itself": lambda plan: plan,
    "fresh": replace,
    "pickled": lambda plan: pickle.loads(pickle.dumps(plan)),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@quick
@given(plan=plans(), data=st.data())
def test_round_jumped_to_is_the_one_come_to_in_order(
    copied: Callable[[Plan], Plan], plan: Plan, data: st.DataObject
) -> None:
    epochs = [epoch_of(plan, epoch) for epoch in range(2)]
    copy = copied(plan)
    cursor = st.tuples(st.integers(0, 1), st.integers(0, plan.rounds - 1), st.integers(0, plan.shards - 1))
    for epoch, round, shard in data.draw(st.lists(cursor, min_size=1, max_size=8)):
        assert pairs(copy.rows(epoch, round, shard)) == epochs[epoch][round][shard]


@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize(
    ("partition", "sizes"),
    [("block", [10**12, 3, 10**11]), ("random", [7, 10**12]), ("stratified", [[10**11, 10**12], [10**12, 9]])],
)
def test_round_in_the_middle_of_a_trillion_rows_costs_its_window(shuffle: Any, partition: Any, sizes: Any) -> None:
    plan = Plan(np.array(sizes), 8, 1000, 3, partition, shuffle, window=2000)
    held = plan.strata.sum(axis=1)
    found = [plan.rows(5, plan.rounds // 2, shard) for shard in range(plan.shards)]
    assert sum(map(len, found)) == plan.rows_of_round(plan.rounds // 2)
    rows = [row for part in found for row in pairs(part)]
    assert len(set(rows)) == len(rows)
    assert all(0 <= row < held[partition] for partition, row in rows)


# -- shuffling --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partition", PARTITIONINGS)
@pytest.mark.parametrize("shuffle", ["shard", "epoch", "global"])
def test_epochs_and_seeds_differ_when_shuffled(partition: Any, shuffle: Any) -> None:
    plan = uneven(partition=partition, shuffle=shuffle)
    orders = [epoch_of(plan, 0), epoch_of(plan, 1), epoch_of(replace(plan, seed=1), 0)]
    assert all(one != other for place, one in enumerate(orders) for other in orders[:place])


@pytest.mark.parametrize("shuffle", ["shard", "epoch", "global"])
def test_rows_of_a_single_partition_are_read_in_another_order_each_epoch(shuffle: Any) -> None:
    plan = Plan(rows_only([60]), shards=1, batch_size=60, shuffle=shuffle)
    orders = [plan.rows(epoch, 0, 0).row.tolist() for epoch in range(3)]
    assert len(set(map(tuple, [*orders, sorted(orders[0])]))) == 4


def test_partitions_of_a_shard_are_read_in_another_order_each_epoch() -> None:
    plan = uneven(shards=1, window=5)
    orders = {tuple(dict.fromkeys(partition for partition, _ in shards_of(plan, epoch)[0])) for epoch in range(6)}
    assert len(orders) > 3


@quick
@given(plans(shuffles=(False,)), st.integers(1, 5))
def test_epochs_are_equal_when_not_shuffled(plan: Plan, epoch: int) -> None:
    assert epoch_of(plan, epoch) == epoch_of(plan, 0)


@quick
@given(plans(partitionings=("block",), shuffles=(False,)))
def test_blocks_that_are_not_shuffled_keep_the_order_of_the_data(plan: Plan) -> None:
    assert [row for rows in shards_of(plan) for row in rows] == in_order(plan)


@quick
@given(plans(shuffles=("shard",)))
def test_shards_keep_their_rows_when_shuffled_within_shards(plan: Plan) -> None:
    assert list(map(set, shards_of(plan, 0))) == list(map(set, shards_of(plan, 4)))


@pytest.mark.parametrize("partition", PARTITIONINGS)
@pytest.mark.parametrize("shuffle", ["epoch", "global"])
def test_rows_move_between_shards_when_dealt_anew(partition: Any, shuffle: Any) -> None:
    plan = uneven(partition=partition, shuffle=shuffle)
    assert list(map(set, shards_of(plan, 0))) != list(map(set, shards_of(plan, 1)))


def test_every_shard_reads_from_every_large_partition_when_shuffled_globally() -> None:
    plan = uneven(shuffle="global")
    for rows in shards_of(plan):
        assert {partition for partition, _ in rows} >= {0, 3, 4, 5}


@quick
@given(plans(partitionings=("block",), shuffles=("shard",), most_partitions=1))
def test_rows_are_permuted_within_windows_only(plan: Plan) -> None:
    for rows in shards_of(plan):
        first = min(rows, default=(0, 0))[1]
        assert all(abs(row - first - place) < plan.window for place, (_, row) in enumerate(rows))


@pytest.mark.parametrize("shuffle", ["shard", False])
def test_random_partitioning_deals_partitions_by_the_seed(shuffle: Any) -> None:
    deals = [
        list(map(set, shards_of(uneven(shuffle=shuffle, **other))))
        for other in ({"partition": "block"}, {"partition": "random"}, {"partition": "random", "seed": 1})
    ]
    assert all(one != other for place, one in enumerate(deals) for other in deals[:place])


# -- stratified -------------------------------------------------------------------------------------------------


@quick
@given(plans(partitionings=("stratified",)))
def test_stratified_shards_hold_each_class_within_one_row(plan: Plan) -> None:
    counts = np.array([classes_of(plan, rows) for rows in shards_of(plan)])
    assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all()


@quick
@given(plans(partitionings=("stratified",)))
def test_stratified_windows_hold_each_class_within_one_row_and_evenly_throughout(plan: Plan) -> None:
    for rows in shards_of(plan):
        windows = np.array_split(np.array(rows).reshape(-1, 2), max(1, -(-len(rows) // plan.window)))
        mixes = np.array([classes_of(plan, window.tolist()) for window in windows])
        assert (mixes.max(axis=0) - mixes.min(axis=0) <= 1).all()
        for window, mix in zip(windows, mixes, strict=True):
            for seen in range(len(window)):
                proportional = mix * seen / len(window)
                assert (np.abs(classes_of(plan, window[:seen].tolist()) - proportional) <= len(mix)).all()


def test_stratified_window_has_its_mix_in_every_round() -> None:
    plan = Plan(np.array([[90, 10]]), 1, 10, partition="stratified")
    assert max(classes_of(plan, round[0])[1] for round in epoch_of(plan)) <= 2


def test_stratified_shards_have_the_mix_of_the_data_even_if_partitions_do_not() -> None:
    plan = Plan(np.array([[400, 0], [0, 200]]), 4, 60, partition="stratified", window=50)
    assert [classes_of(plan, rows).tolist() for rows in shards_of(plan)] == [[100, 50]] * 4


@pytest.mark.parametrize(
    ("common", "rare", "shards", "batch_size"), [(9000, 1000, 8, 40), (9900, 100, 8, 40), (9900, 100, 64, 640)]
)
def test_stratified_shards_do_not_read_a_rare_class_all_at_once(
    common: int, rare: int, shards: int, batch_size: int
) -> None:
    plan = Plan(np.array([[common, rare]]), shards, batch_size, partition="stratified")
    found = np.array([classes_of(plan, [row for rows in round for row in rows]) for round in epoch_of(plan)])
    proportional = found.sum(axis=1) * rare / (common + rare)
    assert max(np.abs(found[:, 1] - proportional)) <= 3


# -- dealing and permuting --------------------------------------------------------------------------------------


@given(st.integers(0, 10**15), st.integers(1, 50))
def test_dealt_hands_add_up_to_the_cards_and_are_even(cards: int, hands: int) -> None:
    through = [int(dealt(cards, hands, first)) for first in range(hands + 1)]
    each = np.diff(through)
    assert (through[0], through[-1]) == (0, cards)
    assert each.max() - each.min() <= 1
    assert each[0] == each.max()


@given(st.lists(st.integers(0, 10**6), max_size=5), st.integers(1, 9), st.data())
def test_dealt_takes_several_decks_at_once(decks: list[int], hands: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, hands))
    assert dealt(np.array(decks, dtype=np.int64), hands, first).tolist() == [
        dealt(deck, hands, first) for deck in decks
    ]


@quick
@given(st.integers(1, 3000), st.integers(0, 2**32))
def test_permuted_is_a_permutation(size: int, seed: int) -> None:
    assert sorted(permuted(np.arange(size), size, np.random.default_rng(seed)).tolist()) == list(range(size))


@quick
@given(st.integers(1, 500), st.integers(0, 2**32), st.data())
def test_permuted_sends_an_index_to_one_place_in_any_company(size: int, seed: int, data: st.DataObject) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), max_size=10)), dtype=np.int64)
    everything = permuted(np.arange(size), size, np.random.default_rng(seed))
    np.testing.assert_array_equal(permuted(index, size, np.random.default_rng(seed)), everything[index])


def test_permuted_leaves_few_in_place_and_few_neighbours_at_one_distance() -> None:
    index = np.arange(1000)
    one, other = (permuted(index, 1000, np.random.default_rng(seed)) for seed in (0, 1))
    assert max((one == index).sum(), (other == index).sum(), (one == other).sum()) < 10
    assert Counter(np.diff(one).tolist()).most_common(1)[0][1] < 15


def test_shard_seed_is_another_for_every_argument_and_has_63_bits() -> None:
    seeds = {shard_seed(*cursor) for cursor in np.ndindex(3, 3, 3, 3)}
    assert len(seeds) == 81
    assert all(0 <= seed < 2**63 for seed in seeds)


# -- arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shards": 0}, "shards must be a whole number and at least 1, however it is 0"),
        ({"batch_size": -5}, "batch_size must be a whole number and at least 1, however it is -5"),
        ({"window": 0}, "window must be a whole number and at least 1, however it is 0"),
        ({"seed": -1}, "seed must be a whole number and at least 0, however it is -1"),
        ({"partition": "blocks"}, "partition must be one of .*'random'.* however they are 'blocks' and 'shard'"),
        ({"shuffle": True}, "shuffle one of .*'global'.* however they are 'block' and True"),
        ({"strata": rows_only([0, 0, 0])}, "must have rows, however 3 partitions hold none"),
        ({"strata": rows_only([])}, "must have rows, however 0 partitions hold none"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_bad_argument_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan(**({"strata": rows_only([3, 4]), "shards": 2, "batch_size": 2} | wrong))
