"""wire/routes.py: whichever way sums and parameters take, all of them get there."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasktrain.cut import Cut
from dasktrain.reduce import Node, holds, lineage, subtrees
from dasktrain.topology import AMONG
from dasktrain.wire.routes import DRIVER, AlongTree, ByOwner, Routes, routes_along, tops


@st.composite
def routes(draw: st.DrawFn) -> Routes:
    """Draw routes among peers, who sum some shards of a round: others sum what is between."""
    shards = draw(st.integers(2, 40))
    ends = sorted(draw(st.sets(st.integers(0, shards), min_size=2, max_size=14)))
    spans = list(pairwise(ends))
    runs = draw(st.lists(st.sampled_from(spans), min_size=1, unique=True))
    cut = Cut(draw(st.integers(1, 60)), draw(st.integers(1, 9)))
    return routes_along(draw(st.sampled_from(AMONG)), runs, shards, cut)


def places(found: Routes) -> range:
    return range(len(found.runs))


@given(routes())
def test_every_bucket_of_every_sum_gets_to_the_driver(found: Routes) -> None:
    for place in places(found):
        for node in found.own(place):
            for offset in found.cut.offsets:
                links = found.links(place, offset, node)
                assert [sender for sender, _ in links] == [place, *(adder for _, adder in links)][: len(links)]
                last = links[-1][1] if links else place
                (top,) = (each for each in lineage(node, found.shards) if each in found.tops)
                assert found.adder(offset, top) == DRIVER
                assert not links or top in found.rising(last)


@given(routes())
def test_whoever_adds_a_node_awaits_its_parts_and_passes_it_on(found: Routes) -> None:
    """So that all end, whoever ends first: of what is awaited somebody tells the end."""
    told: set[tuple[Node, int]] = set()
    for place in places(found):
        assert set(found.passed(place)) <= set(found.rising(place))
        for node in (*found.own(place), *found.passed(place)):
            told |= {(node, adder) for adder in found.adders(node)}
    awaited = {(node, place) for place in places(found) for node in found.awaited(place)}
    assert awaited == told
    for place in places(found):
        for node, sender in found.awaited(place).items():
            assert node in (*found.own(sender), *found.passed(sender))
            assert set(found.added(place)) == {at for at in found.cut.offsets if found.adder(at, node) == place}


@given(routes())
def test_nobody_waits_for_what_waits_for_it(found: Routes) -> None:
    """A node's end follows from the ends of what is below it and of nothing else."""
    for place in places(found):
        for node in found.passed(place):
            below = {part for part in found.awaited(place) if holds(node, part)}
            assert below
            assert all(part[1] - part[0] < node[1] - node[0] for part in below)
            covered = sorted(part for part in below if not any(holds(other, part) for other in below - {part}))
            assert (covered[0][0], covered[-1][1]) == node
            assert all(left[1] == right[0] for left, right in pairwise(covered))


@given(routes())
def test_everybody_gets_each_parameter_once_from_whom_the_driver_gave_it(found: Routes) -> None:
    for offset in found.cut.offsets:
        have = {place for place in places(found) if offset in found.given(place)}
        assert have == {place for place in places(found) if found.giver(place, offset) == DRIVER}
        rows = list(have)
        while rows:
            giver = rows.pop()
            for taker in found.takers(giver, offset):
                assert found.giver(taker, offset) == giver
                assert taker not in have
                have.add(taker)
                rows.append(taker)
        assert have == set(places(found))


@given(routes())
def test_neighbours_are_those_between_whom_anything_goes(found: Routes) -> None:
    pairs: set[frozenset[int]] = set()
    for place in places(found):
        for offset in found.cut.offsets:
            pairs |= {frozenset((place, taker)) for taker in found.takers(place, offset)}
        pairs |= {frozenset((place, sender)) for sender in found.awaited(place).values() if sender != place}
    neighbours = {frozenset((place, other)) for place in places(found) for other in found.neighbours(place)}
    assert pairs <= neighbours
    if isinstance(found, AlongTree):
        assert pairs == neighbours


@given(routes())
def test_lanes_are_all_buckets_and_of_one_way_each(found: Routes) -> None:
    lanes = [list(lane) for lane, _ in found.lanes()]
    assert sorted(offset for lane in lanes for offset in lane) == list(found.cut.offsets)
    for lane in lanes:
        for place in places(found):
            for node in found.own(place):
                assert len({tuple(found.links(place, offset, node)) for offset in lane}) == 1
    for lane, owner in found.lanes():
        adders = {found.adder(offset, node) for offset in lane for place in places(found) for node in found.own(place)}
        assert owner is None or adders <= {owner, DRIVER}


@given(st.integers(1, 10))
def test_along_a_tree_nobody_has_more_than_three_neighbours(power: int) -> None:
    """Two below it, and one above; it sends its own sum to another of them, or to one more."""
    hosts = 1 << power
    found = AlongTree([(shard, shard + 1) for shard in range(hosts)], hosts, Cut(1, 1))
    assert max(len(found.takers(place, 0)) for place in range(hosts)) == min(2, hosts - 1)
    assert max(len(found.neighbours(place)) for place in range(hosts)) <= 4
    assert max(len(found.awaited(place)) for place in range(hosts)) == 2
    assert [place for place in range(hosts) if found.given(place)] == [hosts // 2]


def test_a_node_is_added_by_whoever_sums_the_first_shard_of_its_right_part() -> None:
    found = AlongTree([(0, 3), (3, 5), (5, 8)], 8, Cut(1, 1))
    adders = {
        (0, 2): 0, (2, 4): 0,  # to (0, 4), right of which is shard 2
        (2, 3): 1, (3, 4): 1,  # to (2, 4)
        (0, 4): 1, (4, 8): 1,  # to (0, 8)
        (4, 5): 2, (5, 6): 2,  # to (4, 6)
        (4, 6): 2, (6, 8): 2,  # to (4, 8)
        (0, 8): DRIVER,
    }  # fmt: skip
    assert {node: found.adder(0, node) for node in adders} == adders
    assert found.links(1, 0, (3, 4)) == [(1, 0), (0, 1)]
    assert found.links(2, 0, (5, 6)) == [(2, 1)]
    assert found.awaited(1) == {(2, 3): 0, (3, 4): 1, (0, 4): 0, (4, 8): 2}
    assert set(found.passed(1)) == {(2, 4)}


@pytest.mark.parametrize("way", [ByOwner, AlongTree])
def test_what_one_sums_alone_goes_to_the_driver_at_once(way: type[Routes]) -> None:
    found = way([(0, 2), (4, 6), (6, 8)], 8, Cut(3, 1))
    assert found.links(0, 0, (0, 2)) == []
    assert found.awaited(0) == {} or (0, 2) not in found.awaited(0)
    assert {found.adder(offset, (0, 1)) for offset in found.cut.offsets} <= {DRIVER, 0}


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 5)), min_size=1), st.integers(25, 40))
def test_tops_cover_what_is_summed_with_as_few_nodes_as_can_be(given: Sequence[tuple[int, int]], shards: int) -> None:
    runs, end = list[Node](), 0
    for start, length in sorted(given):
        if start >= end:
            runs.append((start, end := start + length))
    covered = sorted(shard for node in tops(runs, shards) for shard in range(*node))
    assert covered == sorted(shard for run in runs for shard in range(*run))
    found = set(tops(runs, shards))
    for node in found:
        assert not any(above in found for above in lineage(node, shards)[1:])
        if node != (0, shards):
            above = lineage(node, shards)[1]
            assert not set(range(*above)) <= set(covered), "the node above would do for both"
    assert all(node in set(subtrees(*node, shards)) for node in found)
