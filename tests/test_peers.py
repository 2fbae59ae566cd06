"""wire/peers.py: who reduces among themselves, and which answers count."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dasktrain import cut
from dasktrain.errors import WireError
from dasktrain.fleet import shares
from dasktrain.messages import Answer, Bucket, Partial, State, Table, Task
from dasktrain.reduce import Node
from dasktrain.state import TrainState
from dasktrain.topology import AMONG, Reduction
from dasktrain.wire import member, peers
from dasktrain.wire.parties import Parties
from dasktrain.wire.peers import LEAST, Peers
from dasktrain.wire.together import Meeting
from dasktrain.wire.ways import Among, Joint, Via, among, decode_way, encode_way

SIZE = 5
TASK = Task("r", "train", 0, 0, 0, 8)
EMPTY = np.empty(0, np.uint8)
STATE = State(np.zeros(6 * SIZE, np.float32), EMPTY)
WORKERS = tuple(f"tcp://10.0.0.{number}:9" for number in range(4))
NOBODY: frozenset[int] = frozenset()
OFFSETS = range(0, 6 * SIZE, SIZE)
#: one more on another host, two on a third
TWINS = (WORKERS[1], WORKERS[2], WORKERS[2] + "9")


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    """Have buckets of a few numbers, and nobody overdue."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cut, "SIZE", SIZE)
        patch.setattr(peers, "LEAST", 1000.0)
        yield


def known(*workers: str, reduction: Reduction = "sharded", state: State = STATE, rate: float | None = 1e9) -> Peers:
    """Return what is known of workers that reduce among themselves."""
    found = Peers()
    for worker in workers or WORKERS:
        found.add(worker, rate)
    found.choose(reduction, state, 8, WORKERS)
    return found


def asks(workers: tuple[str, ...] = WORKERS, task: Task = TASK) -> list[tuple[str, Task]]:
    return [(worker, replace(task, start=a, stop=b)) for worker, a, b in shares(workers, task.stop)]


def answer(task: Task) -> Answer:
    return Answer(task, (), 0.1)


def bucket(offset: int, node: Node = (0, 8)) -> Bucket:
    """Return a sum that comes to the driver: of all, if it is not another node's."""
    return Bucket(TASK, *node, offset, EMPTY)


def owned(place: int) -> range:
    """Return the buckets that a peer owns, of four."""
    return OFFSETS[place::4]


def begun(found: Peers, task: Task = TASK) -> dict[str, Task]:
    """Begin a round of all workers; return their tasks."""
    given = asks(task=task)
    assert set(found.ways(given, {})) == set(WORKERS)
    return dict(given)


# -- who --------------------------------------------------------------------------------------------------------------


def test_each_is_told_its_place_and_all_of_them() -> None:
    found = known()
    ways = found.ways(asks(), {})
    assert [way.place for way in ways.values()] == [0, 1, 2, 3]
    assert {(way.mesh, way.peers, way.tasks) for way in ways.values()} == {
        (ways[WORKERS[0]].mesh, WORKERS, tuple(task for _, task in asks()))
    }
    for worker, task in asks():
        assert decode_way(encode_way(ways[worker]), task) == ways[worker]


@pytest.mark.parametrize(
    "state",
    [
        State(STATE.parameters[:SIZE], EMPTY),
        State(STATE.parameters, np.empty(STATE.parameters.nbytes + 1, np.uint8)),
        replace(STATE, tables=(Table(SIZE, 5, 5),)),
    ],
    ids=["nothing to own for a second", "more buffers than parameters", "tables"],
)
def test_some_states_are_sent_as_ever(state: State) -> None:
    assert known(state=state).ways(asks(), {}) == {}


def test_one_alone_is_sent_all_as_ever() -> None:
    assert known(WORKERS[0]).ways(asks(WORKERS[:1]), {}) == {}
    assert known(WORKERS[0], WORKERS[0] + "9").ways(asks((WORKERS[0], WORKERS[0] + "9")), {}) == {}


def test_of_those_on_one_host_that_do_not_send_together_one_takes_part() -> None:
    workers = (WORKERS[0], WORKERS[0] + "9", *WORKERS[1:])
    assert set(known(*workers).ways(asks(workers), {})) == set(WORKERS)


@pytest.mark.parametrize(
    ("reduction", "workers", "small"),
    [("auto", WORKERS, True), ("sharded", WORKERS, True), ("flat", WORKERS, False), ("auto", WORKERS[:1], False)],
)
def test_buckets_are_small_only_where_many_may_own_some(
    reduction: Reduction, workers: Sequence[str], small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut, "SIZE", 1 << 20)
    found = Peers()
    found.choose(reduction, State(np.zeros(1 << 20, np.float32), EMPTY), 8, workers)
    assert found.bucket == (1 << 20 if not small else 1 << 14)  # so that workers can reduce, whatever links carry
    for gigabits, bucket in ((1, 1 << 16), (10, 1 << 17), (None, 1 << 17)):
        for worker in workers:
            found.add(worker, None if gigabits is None else gigabits * 1.25e8)
        found.settle()
        assert found.bucket == (1 << 20 if not small else bucket)


@pytest.mark.parametrize("reduction", AMONG)
def test_whoever_is_slow_to_attach_is_counted_in(reduction: Reduction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "SIZE", 1 << 20)
    found = Peers()
    found.choose(reduction, State(np.zeros(500_000, np.float32), EMPTY), 8, WORKERS)
    found.add(WORKERS[0], 1.25e9)
    found.settle()
    for worker in WORKERS:
        found.add(worker, None)
    assert set(found.ways(asks(), {})) == set(WORKERS)


def test_where_nobody_chooses_buckets_are_as_large_as_can_be() -> None:
    """As with payloads that are compressed."""
    found = Peers()
    found.settle()
    found.add(WORKERS[0], None)
    found.add(WORKERS[1], None)
    found.settle()
    assert (found.bucket, found.chosen()) == (cut.SIZE, "")


def test_those_that_cannot_are_left_out() -> None:
    found = known(*WORKERS[:3])
    assert set(found.ways(asks(), {})) == set(WORKERS[:3])
    assert not found.may_reduce(WORKERS[3])
    found.choose("flat", STATE, 8, WORKERS)
    assert not found.may_reduce(WORKERS[0])
    assert found.ways(asks(), {}) == {}


@pytest.mark.parametrize(
    ("reduction", "workers", "rate", "words"),
    [
        ("auto", WORKERS, 1e3, ["4 workers", "(sharded)", "on the wire at 0.008 Mbit/s", "flat"]),
        ("auto", WORKERS, 1e12, ["(flat)", "8e+06 Mbit/s", "sharded"]),
        ("sharded", WORKERS, None, ["4 workers", "(sharded)"]),
        ("auto", (WORKERS[0], *TWINS), 1e3, ["4 workers on 3 hosts", "(sharded)"]),
        ("auto", (WORKERS[0], *TWINS), 1e12, ["(host pre-reduce)", "sharded"]),
        ("sharded", WORKERS[:1], None, ["(flat)", "sharded takes workers on 2 or more hosts"]),
    ],
)
def test_what_is_chosen_is_told(reduction: Reduction, workers: Sequence[str], rate: float, words: list[str]) -> None:
    told = known(*workers, reduction=reduction, rate=rate).chosen()
    assert [word for word in words if word not in told] == []


@pytest.mark.parametrize(
    ("reduction", "workers", "rate"),
    [("flat", WORKERS, 1e6), ("auto", WORKERS[:1], None), ("auto", WORKERS, None), ("sharded", (), None)],
    ids=["flat", "too few", "no link was measured", "all are on the driver's host"],
)
def test_where_there_is_nothing_to_choose_nothing_is_told(
    reduction: Reduction, workers: Sequence[str], rate: float | None
) -> None:
    found = Peers()
    for worker in workers:
        found.add(worker, rate)
    found.choose(reduction, STATE, 8, WORKERS)
    assert found.chosen() == ""


@pytest.mark.parametrize(
    ("reduction", "state", "workers", "depends"),
    [
        ("auto", STATE, WORKERS, True),
        ("flat", STATE, WORKERS, False),
        ("sharded", STATE, WORKERS, True),
        ("tree", STATE, WORKERS, True),
        ("auto", STATE, WORKERS[:2], True),
        ("auto", STATE, (WORKERS[0], WORKERS[0] + "9"), False),
        ("auto", State(STATE.parameters[:SIZE], EMPTY), WORKERS, False),
    ],
)
def test_buckets_at_least_depend_on_links_where_workers_can_reduce(
    reduction: Reduction, state: State, workers: Sequence[str], depends: bool
) -> None:
    assert known(reduction=reduction, state=state).depends(workers) is depends


def test_unless_a_run_chooses_nothing_depends_on_links() -> None:
    assert not Peers().depends(WORKERS)


def test_a_mesh_is_used_as_long_as_its_peers_stay_and_nothing_fails() -> None:
    found = known()

    def mesh(round: int, *workers: str) -> str:
        return next(iter(found.ways(asks(workers or WORKERS, replace(TASK, round=round)), {}).values())).mesh

    first = mesh(0)
    assert mesh(1) == first
    other = mesh(2, *WORKERS[:3])
    assert other != first
    assert mesh(3) not in (first, other)
    found.forget(WORKERS[3])
    assert len({first, other, mesh(4, *WORKERS[:3])}) == 3


# -- what comes -------------------------------------------------------------------------------------------------------


@given(st.permutations(WORKERS), st.sampled_from(AMONG))
def test_answers_count_when_all_sums_have_come(order: list[str], reduction: Reduction) -> None:
    found = known(reduction=reduction)
    tasks = begun(found)
    for worker in order:
        assert not found.answered(worker, answer(tasks[worker]), NOBODY)
        assert found.complete() == []
    for offset in OFFSETS:
        assert found.complete() == []
        found.received(WORKERS[0], bucket(offset))
    assert dict(found.complete()) == {worker: answer(task) for worker, task in tasks.items()}
    assert list(found.to_send_again()) == []


@given(st.permutations([(offset, start) for offset in OFFSETS for start in (0, 2, 4, 6)]), st.sampled_from(AMONG))
def test_of_sums_that_come_one_by_one_each_frees_whoever_sums_it(
    order: list[tuple[int, int]], reduction: Reduction
) -> None:
    found = known(reduction=reduction)
    tasks = begun(found)
    for worker in WORKERS:
        found.answered(worker, answer(tasks[worker]), NOBODY)
    lacking = {start: set(OFFSETS) for start in (0, 2, 4, 6)}
    for offset, start in order:
        found.received(WORKERS[0], bucket(offset, (start, start + 2)))
        lacking[start].discard(offset)
        complete = {tasks[worker].start for worker, _ in found.complete()}
        assert complete == ({start} if not lacking[start] else set())


def test_what_is_of_another_round_or_of_no_bucket_is_nothing_new() -> None:
    found = known()
    tasks = begun(found)
    for worker in WORKERS:
        found.answered(worker, answer(tasks[worker]), NOBODY)
    for offset in OFFSETS:
        found.received(WORKERS[0], replace(bucket(offset), task=replace(TASK, round=1)))
    found.received(WORKERS[0], bucket(OFFSETS[-1] + 1))
    assert found.complete() == []


@pytest.mark.parametrize("reduction", AMONG)
def test_nodes_without_rows_are_not_waited_for(reduction: Reduction) -> None:
    found = known(reduction=reduction)
    tasks = begun(found)
    for worker in WORKERS:
        node = tasks[worker].start, tasks[worker].stop
        found.answered(worker, replace(answer(tasks[worker]), partials=(Partial(*node, None, None),)), NOBODY)
    assert [worker for worker, _ in found.complete()] == list(WORKERS)


def test_what_an_owner_has_not_sent_on_is_asked_for_once() -> None:
    found = known()
    tasks = begun(found)
    late = WORKERS[3]
    for worker in WORKERS[:3]:
        found.answered(worker, answer(tasks[worker]), frozenset({3}))
        for offset in owned(WORKERS.index(worker)):
            for start, stop in ((0, 4), (4, 6)):
                found.received(WORKERS[0], bucket(offset, (start, stop)))
    assert list(found.to_send_again()) == [(worker, tasks[worker], {3}) for worker in WORKERS[:3]]
    assert list(found.to_send_again()) == []
    assert found.complete() == []
    found.sent_again(WORKERS[0], tasks[WORKERS[0]], frozenset({3}))
    assert [worker for worker, _ in found.complete()] == [WORKERS[0]], "whatever has come"
    for offset in owned(3):  # it had theirs all the same
        found.received(WORKERS[0], bucket(offset))
    found.answered(late, answer(tasks[late]), frozenset({0}))
    assert [worker for worker, _ in found.complete()] == list(WORKERS[1:3])
    assert list(found.to_send_again()) == [(late, tasks[late], {0, 1, 2})]
    for place in range(3):
        assert found.complete() == []
        for offset in owned(place):
            found.received(WORKERS[0], bucket(offset, (6, 8)))
    assert [worker for worker, _ in found.complete()] == [late]


def test_what_a_lost_owner_had_is_asked_for() -> None:
    found = known()
    tasks = begun(found)
    found.answered(WORKERS[0], answer(tasks[WORKERS[0]]), NOBODY)
    found.forget(WORKERS[3])
    for worker in WORKERS[1:3]:
        found.answered(worker, answer(tasks[worker]), frozenset({3}))
    for place in range(3):
        for offset in owned(place):
            for node in ((0, 4), (4, 6)):
                found.received(WORKERS[0], bucket(offset, node))
    assert [(worker, places) for worker, _, places in found.to_send_again()] == [
        (worker, {3}) for worker in WORKERS[:3]
    ]
    assert set(found.ways(asks(WORKERS[:3], replace(TASK, round=1)), {})) == set(WORKERS[:3])


def test_owners_that_say_nothing_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = known()
    tasks = begun(found)
    assert found.rest() == float("inf")
    for worker in WORKERS[:3]:
        found.answered(worker, answer(tasks[worker]), NOBODY)
    for offset in OFFSETS:
        if offset not in owned(3):
            found.received(WORKERS[0], bucket(offset))
    assert found.complete() == []
    assert 0 < found.rest() < float("inf")
    monkeypatch.setattr(peers, "LEAST", 0.0)
    while found.rest():  # as long again as the first answer took
        pass
    assert found.complete() == []
    assert {places == {3} for _, _, places in found.to_send_again()} == {True}
    assert WORKERS[3] not in found.ways(asks(task=replace(TASK, round=1)), {})


def test_whoever_lacks_parameters_is_asked_as_ever_and_owns_nothing() -> None:
    found = known()
    tasks = begun(found)
    lacking = WORKERS[1]
    assert found.lacks(lacking, tasks[lacking], frozenset({3}))
    for worker in (WORKERS[0], *WORKERS[2:]):
        found.answered(worker, answer(tasks[worker]), frozenset({1}))
    for place in (0, 2, 3):
        for offset in owned(place):
            for node in ((0, 2), (4, 8)):
                found.received(WORKERS[0], bucket(offset, node))
    assert {tuple(places) for _, _, places in found.to_send_again()} == {(1,)}
    found.answered(lacking, answer(tasks[lacking]), None)
    assert [worker for worker, _ in found.complete()] == [lacking]  # it has sent all to the driver
    assert set(found.ways(asks(task=replace(TASK, round=1)), {})) == set(WORKERS[:3])


def test_whoever_misses_most_of_the_others_is_left_out_itself_until_the_epoch_ends() -> None:
    found = known()
    tasks = begun(found)
    found.lacks(WORKERS[1], tasks[WORKERS[1]], frozenset({0, 2, 3}))
    found.lacks(WORKERS[2], tasks[WORKERS[2]], frozenset({1}))  # which follows
    found.end()
    others = {WORKERS[0], *WORKERS[2:]}
    assert set(found.ways(asks(task=replace(TASK, round=1)), {})) == others
    assert set(found.ways(asks(task=replace(TASK, epoch=1)), {})) == set(WORKERS)


@pytest.mark.parametrize("workers", [2, 4])
def test_whoever_misses_half_of_all_or_fewer_leaves_those_out(workers: int) -> None:
    found = known(*WORKERS[:workers])
    given = asks(WORKERS[:workers])
    found.ways(given, {})
    missed = frozenset(range(workers // 2, workers))
    found.lacks(*given[0], missed)
    found.end()
    for worker in WORKERS[:workers]:
        found.add(worker, 1e9)
    later = found._one_of_each_host(asks(WORKERS[:workers], replace(TASK, round=1)), {})
    assert set(later) == {worker for place, worker in enumerate(WORKERS[:workers]) if place not in missed}


def test_what_comes_after_its_round_frees_its_worker_and_adds_nothing() -> None:
    found = known()
    tasks = begun(found)
    found.answered(WORKERS[0], answer(tasks[WORKERS[0]]), NOBODY)
    found.end()
    begun(found, replace(TASK, round=1))
    assert [(worker, each.partials) for worker, each in found.complete()] == [(WORKERS[0], ())]
    assert found.answered(WORKERS[1], answer(tasks[WORKERS[1]]), NOBODY)
    assert not found.lacks(WORKERS[2], tasks[WORKERS[2]], frozenset({1}))
    assert [worker for worker, _ in found.complete()] == [WORKERS[2]]
    found.sent_again(WORKERS[3], tasks[WORKERS[3]], frozenset(range(4)))
    assert found.complete() == []


def test_answers_to_what_is_asked_later_in_a_round_count_at_once() -> None:
    found = known()
    begun(found)
    assert found.answered(WORKERS[0], answer(replace(TASK, start=6)), None)


def test_what_another_has_computed_as_well_counts() -> None:
    """One worker's answer was overdue, and then came, while its sums got stuck."""
    found = known()
    tasks = begun(found)
    found.forget(WORKERS[3])
    found.answered(WORKERS[0], answer(tasks[WORKERS[0]]), frozenset({3}))
    assert found.complete() == []
    for offset in OFFSETS[:3]:
        found.received(WORKERS[0], bucket(offset, (0, 2)))
    for offset in OFFSETS[3:]:
        found.received(WORKERS[0], bucket(offset, (0, 4)))
    assert found.complete() == []
    assert found.answered("tcp://spare:9", answer(replace(TASK, stop=2)), None)
    assert [worker for worker, _ in found.complete()] == [WORKERS[0]]


def test_validation_counts_at_once() -> None:
    found = known()
    tasks = begun(found, replace(TASK, kind="evaluate"))
    found.answered(WORKERS[0], answer(tasks[WORKERS[0]]), frozenset())
    assert [worker for worker, _ in found.complete()] == [WORKERS[0]]


def test_whoever_comes_back_is_told_again() -> None:
    found = known()
    found.ways(asks(), {})
    found.end()
    found.forget(WORKERS[1])  # between rounds
    found.add(WORKERS[1], 1e9)
    assert "peers" in encode_way(found.ways(asks(), {})[WORKERS[1]])


def test_peers_and_shards_are_told_once() -> None:
    found = known()
    header = encode_way(found.ways(asks(), {})[WORKERS[1]])
    for _ in range(2):
        way = found.ways(asks(), {})[WORKERS[1]]
        assert isinstance(way, Among)
        assert encode_way(way) == {name: header[name] for name in ("mesh", "place")}
        assert (way.peers, way.tasks) == (WORKERS, tuple(task for _, task in asks()))
    moved = [(worker, replace(task, stop=task.stop + 1)) for worker, task in asks()]
    assert encode_way(found.ways(moved, {})[WORKERS[1]]).keys() == header.keys()


@pytest.mark.parametrize("change", [{"place": 4}, {"place": -1}, {"place": 2}, {"peers": WORKERS[:3]}, {"peers": (1,)}])
def test_a_way_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    way = known().ways(asks(), {})[WORKERS[1]]
    assert isinstance(way, Among)
    with pytest.raises(WireError):
        decode_way(encode_way(way) | change, way.tasks[1])


def test_the_driver_waits_for_peers_longer_than_they_do_for_each_other() -> None:
    assert LEAST >= 2 * member.SILENCE


def test_whoever_is_held_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    found = known()
    tasks = begun(found)
    found.answered(WORKERS[0], answer(tasks[WORKERS[0]]), NOBODY)
    assert (found.waits(), found.waits()) == ([WORKERS[0]], [])
    monkeypatch.setattr(peers, "LOOK", 0.0)
    assert found.waits() == [WORKERS[0]]


def test_who_ended_all_lines_in_a_round_that_is_over_is_connected_anew() -> None:
    found = known()
    for tell in (
        lambda task: found.answered(WORKERS[0], answer(task), frozenset({1})),
        lambda task: found.lacks(WORKERS[0], task, frozenset({1})),
    ):
        tasks = begun(found)
        way = found.ways(asks(), {})[WORKERS[0]]
        found.end()
        tell(tasks[WORKERS[0]])
        assert found.ways(asks(), {})[WORKERS[0]] != way
        found.end()


def test_whoever_does_not_send_again_is_late_and_others_do_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight along a tree the one with all sums dies, and the one that has sent it those of the first half stops."""
    (found, tasks), workers = along_a_tree(), EIGHT
    for worker in workers[:4]:
        found.answered(worker, answer(tasks[worker]), NOBODY)
    found.forget(workers[4])
    assert found.complete() == []
    assert list(found.to_send_again()) == [(workers[2], tasks[workers[2]], {4})]
    assert found.rest() > 900
    found.received(workers[2], bucket(OFFSETS[-1], (0, 4)))  # not a word more
    monkeypatch.setattr(peers, "LEAST", 0.0)
    assert found.rest() == 0.0
    assert found.complete() == []
    assert workers[2] not in found.held
    monkeypatch.setattr(peers, "LEAST", 1000.0)
    assert list(found.to_send_again()) == [
        (workers[1], tasks[workers[1]], {2}), (workers[3], tasks[workers[3]], {2}),
    ]  # fmt: skip
    for offset in OFFSETS[:-1]:
        found.received(workers[1], bucket(offset, (0, 2)))
        found.received(workers[3], bucket(offset, (3, 4)))
    found.sent_again(workers[1], tasks[workers[1]], frozenset({2}))
    found.sent_again(workers[3], tasks[workers[3]], frozenset({2}))
    assert [worker for worker, _ in found.complete()] == [workers[0], workers[1], workers[3]]
    for offset in OFFSETS[:-1]:
        found.received("tcp://spare:9", bucket(offset, (2, 3)))
    assert [worker for worker, _ in found.complete()] == [workers[2]]


EIGHT = tuple(f"tcp://10.0.0.{number}:9" for number in range(8))


def along_a_tree() -> tuple[Peers, dict[str, Task]]:
    """Begin a round of eight that sum a shard each."""
    found, given = known(*EIGHT, reduction="tree"), asks(EIGHT)
    assert set(found.ways(given, {})) == set(EIGHT)
    return found, dict(given)


def test_only_what_was_missed_is_sent_again_by_whoever_has_most_of_it() -> None:
    """The third adds up the first half, and has not got what the second added up for the first and itself."""
    found, tasks = along_a_tree()
    for place, worker in enumerate(EIGHT):
        found.answered(worker, answer(tasks[worker]), frozenset({1}) if place == 2 else NOBODY)
    for offset in OFFSETS:
        for node in ((2, 4), (4, 8)):
            found.received(EIGHT[4], bucket(offset, node))
    assert [worker for worker, _ in found.complete()] == list(EIGHT[2:])
    assert list(found.to_send_again()) == [(EIGHT[1], tasks[EIGHT[1]], {2})]


def test_whoever_misses_all_whom_it_knows_is_left_out_itself() -> None:
    found, tasks = along_a_tree()
    found.lacks(EIGHT[2], tasks[EIGHT[2]], frozenset({1, 3, 4}))  # of eight
    found.end()
    assert set(found.ways(asks(EIGHT, replace(TASK, round=1)), {})) == set(EIGHT) - {EIGHT[2]}


# -- several on a host ------------------------------------------------------------------------------------------------

#: the first two share a host, the last two another
PAIRS = (WORKERS[0], WORKERS[0] + "9", WORKERS[1], WORKERS[1] + "9")


def paired(round: int = 0) -> tuple[Peers, dict[str, Task]]:
    """Begin a round of two pairs, of which the first two workers share a host, and the others another."""
    found, parties = known(*PAIRS), Parties()
    for worker in PAIRS:
        parties.add(worker, Meeting(worker[:14], f"gate {worker}"))
    given = asks(PAIRS, replace(TASK, round=round))
    found.ways(given, parties.ways(given, can_give=True))
    return found, dict(given)


def test_one_of_each_host_takes_part_for_all_that_send_by_way_of_it() -> None:
    found, parties = known(*PAIRS), Parties()
    for worker in PAIRS:
        parties.add(worker, Meeting(worker[:14], f"gate {worker}"))
    given = asks(PAIRS)
    together = parties.ways(given, can_give=True)
    ways, tasks = found.ways(given, together), dict(given)
    assert set(ways) == {PAIRS[0], PAIRS[2]}
    for place, (first, second) in enumerate((PAIRS[:2], PAIRS[2:])):
        way = ways[first]
        assert isinstance(way, Joint)
        assert way.among is not None
        assert replace(way, among=None) == together[first]
        assert (way.among.place, way.among.peers) == (place, (PAIRS[0], PAIRS[2]))
        assert way.among.tasks[place] == replace(tasks[first], stop=tasks[second].stop)
        assert decode_way(encode_way(way), tasks[first]) == way
        with pytest.raises(WireError):
            decode_way(encode_way(way) | {"place": 1 - place}, tasks[first])


@pytest.mark.parametrize("reduction", AMONG)
def test_peers_stay_connected_while_they_sum_nothing(reduction: Reduction) -> None:
    """Validation is not sent together, so that each computes shards of its own."""
    found, parties = known(*PAIRS, reduction=reduction), Parties()
    for worker in PAIRS:
        parties.add(worker, Meeting(worker[:14], f"gate {worker}"))

    def way(**change: Any) -> Among:
        given = asks(PAIRS, replace(TASK, **change))
        found.end()
        chosen = among(found.ways(given, parties.ways(given, can_give=True))[PAIRS[0]])
        assert chosen is not None
        return chosen

    train, evaluate, again = way(), way(kind="evaluate"), way(round=1)
    assert train.mesh == evaluate.mesh == again.mesh
    assert (evaluate.is_new, again.is_new, way(round=2).is_new) == (False, False, False)
    assert found._mesh is not None
    assert found._mesh.routes.runs == ((0, 4), (4, 8))


def test_whoever_sends_for_others_as_well_takes_part() -> None:
    found, alone = known(*PAIRS), (PAIRS[0] + "8", *PAIRS)
    found.add(alone[0], 1e9)
    given = asks(alone)
    joint = Joint((given[2][1],), gives=True)
    assert set(found.ways(given, {PAIRS[0]: joint, PAIRS[1]: Via("gate")})) == {PAIRS[0], PAIRS[2]}


def pass_on(found: Peers, tasks: dict[str, Task], first: int) -> None:
    """Have the first of a pair pass the other's answer on, and answer."""
    one, other = PAIRS[first : first + 2]
    assert not found.passed(one, other, answer(tasks[other]))
    assert not found.answered(one, answer(tasks[one]), NOBODY)


def test_what_is_passed_on_counts_when_the_sums_of_its_host_have_come() -> None:
    found, tasks = paired()
    assert not found.passed(PAIRS[0], PAIRS[1], answer(tasks[PAIRS[1]]))
    assert (found.complete(), found.held) == ([], [PAIRS[1]])
    assert not found.answered(PAIRS[0], answer(tasks[PAIRS[0]]), NOBODY)
    for offset in OFFSETS:
        assert (found.complete(), found.held) == ([], list(PAIRS[:2]))
        found.received(WORKERS[0], bucket(offset, (0, 4)))
    assert found.complete() == [(worker, answer(tasks[worker])) for worker in PAIRS[:2]]
    pass_on(found, tasks, 2)
    for offset in OFFSETS:
        found.received(WORKERS[0], bucket(offset))
    assert found.complete() == [(worker, answer(tasks[worker])) for worker in PAIRS[2:]]


def test_whose_answer_is_not_passed_on_holds_nobody_up() -> None:
    """It sends for itself, or is asked elsewhere."""
    found, tasks = paired()
    found.answered(PAIRS[0], answer(tasks[PAIRS[0]]), NOBODY)
    for offset in OFFSETS:
        found.received(WORKERS[0], bucket(offset, (0, 2)))
    assert found.complete() == [(PAIRS[0], answer(tasks[PAIRS[0]]))]


def test_whoever_sends_for_itself_counts_at_once() -> None:
    found, tasks = paired()
    assert found.answered(PAIRS[1], answer(tasks[PAIRS[1]]), None)


def freed(found: Peers) -> list[str]:
    """Return whose answers count, with nothing to add."""
    complete = found.complete()
    assert all(each.partials == () and each.seconds == 0.0 for _, each in complete)
    return [worker for worker, _ in complete]


def test_what_was_passed_on_by_one_whose_sums_may_be_lost_is_to_be_asked_anew() -> None:
    found, tasks = paired()
    pass_on(found, tasks, 0)
    assert found.forget(PAIRS[0]) == [(PAIRS[1], tasks[PAIRS[1]])]
    assert (found.complete(), found.held) == ([], [])
    assert found.answered(PAIRS[1], answer(tasks[PAIRS[1]]), None)


def test_whoever_leaves_after_its_answer_was_passed_on_does_not_come_back() -> None:
    found, tasks = paired()
    pass_on(found, tasks, 0)
    assert found.forget(PAIRS[1]) == []
    pass_on(found, tasks, 2)
    for offset in OFFSETS:
        found.received(WORKERS[0], bucket(offset))
    assert [worker for worker, _ in found.complete()] == [PAIRS[0], *PAIRS[2:]]


def test_the_end_of_a_round_frees_those_whose_answers_were_passed_on() -> None:
    found, tasks = paired()
    pass_on(found, tasks, 0)
    found.end()
    assert freed(found) == list(PAIRS[:2])
    assert found.passed(PAIRS[2], PAIRS[3], answer(tasks[PAIRS[3]]))


def test_what_is_passed_on_by_none_of_the_peers_counts_at_once() -> None:
    found, tasks = paired()
    assert found.passed(PAIRS[0] + "8", PAIRS[1], answer(tasks[PAIRS[1]]))


def test_of_what_becomes_something_else_values_are_sent_if_they_are_still_there() -> None:
    found = known()
    tasks = begun(found)
    whole, worker = replace(tasks[WORKERS[0]], start=0, stop=8), WORKERS[0]
    ((header, (values,)),) = found.unlike(worker, whole, frozenset({SIZE}), STATE)
    assert (header["part"], values.tobytes()) == (SIZE, STATE.parameters[SIZE : 2 * SIZE].tobytes())
    for task, state in ((replace(whole, round=1), STATE), (whole, None)):
        ((header, (values,)),) = found.unlike(worker, task, frozenset({SIZE}), state)
        assert (header["over"], len(values)) == (True, 0)
    found.end()
    ((header, _),) = found.unlike(worker, whole, frozenset({SIZE}), STATE)
    assert header["over"]


def test_owners_step_where_all_is_summed_by_peers_and_that_is_quicker() -> None:
    state = TrainState(nn.Linear(5, 5), partial(torch.optim.SGD, lr=0.1)).message()
    for rate, workers, steps in ((1e3, WORKERS, True), (inf, WORKERS, False), (1e3, WORKERS[:3], False)):
        found = known(state=state, rate=rate)
        given = dict(asks())
        found.ways([(worker, given[worker]) for worker in workers], {})
        assert found._steps == steps
    assert known(state=state).may_step
    assert not known(state=state, reduction="tree").may_step
    assert not known().may_step
    alone = Peers()
    alone.choose("auto", state, 8, TWINS[1:])
    assert not alone.may_step, "all are on one host"
