"""topology.py: what each way of reducing is predicted to take, and which is chosen."""

from dataclasses import replace
from math import inf
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasktrain.cut import LEAST, SIZE, sizes
from dasktrain.topology import AMONG, CHECKED, FEWEST, MESSAGE, STEPPED, Links, Reduction

MB = 1 << 20
#: buckets of each owner
TURNS = 4
#: 100 MB over 1 Gbit/s
LINKS = Links(workers=4, hosts=4, shards=4, size=100 * MB, bucket=4 * MB, rate=125e6)


def test_flat_grows_with_workers_and_sharded_hardly() -> None:
    more = replace(LINKS, workers=16, hosts=16, shards=16)
    assert more.flat == pytest.approx(4 * LINKS.flat)
    assert LINKS.sharded < 0.5 * LINKS.flat
    assert more.sharded < 2 * LINKS.sharded


def test_no_link_carries_much_more_than_the_parameters_twice() -> None:
    seconds, by_driver = 2 * LINKS.size / LINKS.rate, replace(LINKS, can_step=False)
    assert LINKS.sharded < by_driver.sharded
    assert seconds < by_driver.sharded < 1.2 * seconds


@pytest.mark.parametrize(("hosts", "step"), [(2, True), (8, True), (64, False)])
def test_owners_step_where_that_saves_more_than_telling_them_takes(hosts: int, step: bool) -> None:
    links = replace(LINKS, hosts=hosts, workers=hosts, bucket=LINKS.size // 4096)
    assert links.owners_step == step
    assert not replace(links, can_step=False).owners_step
    assert not replace(links, rate=inf).owners_step
    fewer = replace(links, can_step=False).sharded - links.sharded
    saved = links.size / hosts * (1 / links.rate - 1 / STEPPED) - links.size / CHECKED
    assert fewer == pytest.approx(saved * step, abs=hosts * links.bucket / links.rate)


def test_owners_of_two_hosts_spare_a_quarter_of_the_wire() -> None:
    links = replace(LINKS, hosts=2, workers=2, bucket=LINKS.size // 64, rate=25e6)
    assert links.sharded == pytest.approx(1.5 * links.size / links.rate, rel=0.05)
    assert replace(links, can_step=False).sharded == pytest.approx(2 * links.size / links.rate, rel=0.05)


def test_an_owner_that_has_a_bucket_more_than_others_holds_them_up() -> None:
    even = replace(LINKS, workers=8, hosts=8, size=8 * LINKS.bucket, can_step=False)
    odd = replace(even, size=even.size + LINKS.bucket)
    assert even.sharded == pytest.approx(2 * 15 * LINKS.bucket / LINKS.rate, rel=0.01)
    # of the parameters it passes on two buckets to seven others, after the first of each; of the gradient it takes as
    # much, and its sum follows alone, which the driver's link is as long busy with
    assert odd.sharded == pytest.approx((8 + 2 * 7 + 9 + 7) * LINKS.bucket / LINKS.rate, rel=0.01)
    # if it steps them itself it does not wait for the first of each
    stepped, told = replace(odd, can_step=True), odd.size / CHECKED + odd.size / 8 / STEPPED
    assert stepped.sharded == pytest.approx((2 * 7 + 9 + 7) * LINKS.bucket / LINKS.rate + told, rel=0.01)


@given(st.integers(FEWEST, 1024), st.data())
def test_rounds_do_not_grow_with_workers_as_long_as_buckets_are_worth_a_message(
    workers: int, data: st.DataObject
) -> None:
    numbers = data.draw(st.integers(TURNS * workers * LEAST, 1 << 32))
    few = max(size for size in sizes() if size <= numbers // (TURNS * workers))
    links = Links(workers, workers, workers, 4 * numbers, 4, 125e6).cut("sharded", 4)
    # an owner has one bucket more than others at most, of TURNS or more, and waits for the first of all
    assert links.sharded <= (2 + 3 / TURNS) * links.size / links.rate + 2 * MESSAGE * (workers + numbers / few)
    assert links.best("auto") in AMONG


@given(st.integers(FEWEST, 500), st.integers(1, 1 << 32))
def test_no_round_is_shorter_than_what_the_busiest_link_carries(workers: int, size: int) -> None:
    links = replace(LINKS, workers=workers, hosts=workers, size=size)
    owned = -(-(size // links.bucket) // workers) * links.bucket  # whole buckets of the owner that has most
    by_driver = replace(links, can_step=False)
    assert by_driver.sharded >= 2 * max(size, (workers - 1) * owned) / links.rate
    sent = (workers - 1) * max(owned, size / workers)  # by the owner that has most
    assert by_driver.sharded >= links.sharded >= (sent + max(size, (workers - 1) * owned)) / links.rate


@pytest.mark.parametrize("way", ["flat", "sharded", "tree"])
def test_workers_of_one_host_are_as_one_but_for_messages(way: str) -> None:
    shared = replace(LINKS, workers=8)
    assert getattr(shared, way) == pytest.approx(getattr(LINKS, way) + 4 * MESSAGE)
    assert shared.best("auto") == LINKS.best("auto")


@pytest.mark.parametrize(
    "change",
    [{"hosts": FEWEST - 1}, {"size": 4 * MB}],
    ids=["too few", "nothing to own for a second"],
)
def test_what_cannot_be_sharded_is_flat_whatever_was_asked_for(change: dict[str, int]) -> None:
    links = replace(LINKS, **change)  # type: ignore[arg-type]
    assert {links.best(reduction) for reduction in get_args(Reduction)} == {"flat"}


def test_what_was_asked_for_is_chosen_if_it_can_be() -> None:
    assert LINKS.best("flat") == "flat"
    assert replace(LINKS, rate=1e12).best("sharded") == "sharded"
    assert LINKS.best("tree") == "tree"


def test_auto_chooses_what_takes_less() -> None:
    assert LINKS.best("auto") == "sharded"
    assert replace(LINKS, rate=1e12).best("auto") == "flat"  # messages are all there is, and sharded has more


@given(st.integers(FEWEST, 500), st.integers(1, 1 << 32), st.floats(1e5, 1e11))
def test_auto_never_takes_longer_than_flat(workers: int, size: int, rate: float) -> None:
    links = Links(workers, workers, workers, size, 4 * MB, rate)
    assert links.seconds(links.best("auto")) <= links.flat


@given(st.integers(1, 10), st.integers(1, 1 << 28), st.floats(1e5, 1e11))
def test_along_a_tree_a_round_grows_with_the_levels_alone(power: int, size: int, rate: float) -> None:
    links = Links(1 << power, 1 << power, 1 << power, size, 4 * MB, rate)
    twice = replace(links, workers=2 << power, hosts=2 << power, shards=2 << power)
    assert twice.tree - links.tree == pytest.approx(
        4 * links.bucket / rate if power > 1 else links.tree + 4 * links.bucket / rate, abs=1e-9, rel=1e-6
    )


def test_three_hosts_of_a_shard_each_pass_sums_on_from_one_to_the_next() -> None:
    three = replace(LINKS, workers=3, hosts=3, shards=3)
    assert three.tree == pytest.approx(replace(three, shards=8).tree / 2)
    assert replace(three, workers=2, hosts=2).tree == replace(three, workers=2, hosts=2, shards=8).tree


def test_a_tree_is_for_many_hosts_that_have_little_to_own() -> None:
    assert Links(1024, 1024, 1024, 4 * MB, MB >> 2, 1.25e9).best("auto") == "tree"
    assert Links(16, 16, 16, 400 * MB, MB, 1.25e9).best("auto") == "sharded"


@given(
    st.sampled_from(get_args(Reduction)),
    st.integers(1, 1024),
    st.integers(1, 1 << 28),
    st.sampled_from([1e6, 1.25e8, 1.25e9, 1e10, inf]),
    st.sampled_from(sizes()),
)
def test_of_buckets_a_run_takes_those_that_are_best(
    reduction: Reduction, hosts: int, numbers: int, rate: float, other: int
) -> None:
    others = Links(hosts, hosts, hosts, 4 * numbers, 4 * other, rate)
    links = others.cut(reduction, 4)
    assert LEAST <= links.bucket // 4 <= SIZE
    assert links.best(reduction) == reduction or others.best(reduction) != reduction or reduction == "auto"
    if others.best(reduction) == links.best(reduction):
        assert links.seconds(links.best(reduction)) <= others.seconds(others.best(reduction))
