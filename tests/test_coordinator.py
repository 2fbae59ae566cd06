"""Every shard of a round is computed in time, or the run ends saying why."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

import dask
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasktrain.config import seconds
from dasktrain.coordinator import GRACE, LOOK
from dasktrain.errors import AttachError, Diverged, NonFinite, ReplicaError, WorkerLost
from dasktrain.events import Event, Joined, Left, Waits
from dasktrain.messages import Failure, Partial, Task
from dasktrain.pace import LEAST, TIMES
from tests.scripted_wire import SHARDS, Running, Scripted, Takes


def assert_sum_of_all(total: Partial) -> None:
    assert total.vector is not None
    assert total.sums is not None
    assert (total.start, total.stop) == (0, SHARDS)
    assert [*total.vector, *total.sums] == [SHARDS] * 5


# -- attaching --------------------------------------------------------------------------------------------------


@given(st.floats(0, 30), st.floats(0, 200))
def test_a_straggler_is_waited_for_a_little_longer_than_the_others_took(first: float, second: float) -> None:
    running = Running(Scripted("ab", {"a": first, "b": first + second})).attach()
    patience = min(GRACE + 2 * first, seconds("timeouts.attach") + GRACE - first)
    waited = running.wire.clock.now - first
    assert min(second, patience) <= waited + 1e-9
    assert waited <= min(second, patience) + LOOK + 1e-3
    if not patience < second < patience + LOOK + 1e-3:
        assert len(running.fleet.members) == (2 if second <= patience else 1)


def test_patience_with_stragglers_is_a_setting_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dasktrain.coordinator.GRACE", 0.5)
    running = Running(Scripted("ab", {"a": 1.0, "b": 50.0})).attach()
    assert running.wire.clock.now == 3.5
    assert running.fleet.members == ["a"]


def test_a_straggler_computes_from_the_round_after_it_is_ready() -> None:
    running = Running(Scripted("ab", {"b": 9.0}, {"a": [20.0]})).attach()
    for round in range(2):
        assert_sum_of_all(running.ask(round))
    assert [(worker, ends) for _, worker, ends in running.wire.sent] == [("a", (0, 4)), ("a", (0, 2)), ("b", (2, 4))]
    assert running.told == ["worker b joined"]


def test_leases_get_ready_for_the_first_round_and_later_ones_for_the_round_under_way() -> None:
    running = Running(Scripted("ab", takes={"a": [1.0]})).attach(epoch=3, round=5)
    assert running.wire.leased == {"a": Task("r", "train", 3, 5, 0, 4), "b": Task("r", "train", 3, 5, 2, 4)}
    running.wire.agenda.add(0.5, Joined("c"))
    running.ask(7, "evaluate")
    assert running.wire.leased["c"] == Task("r", "train", 0, 7, 2, 4)


def test_all_reasons_are_told_if_no_worker_can_be_used() -> None:
    reasons: dict[str, float | str] = {"a": "a is too old", "b": "b has no memory", "c": "c is strange"}
    with pytest.raises(AttachError, match=r"^a is too old; b has no memory; c is strange$"):
        Running(Scripted("abc", reasons)).attach()


def test_one_worker_that_can_be_used_is_enough() -> None:
    running = Running(Scripted("abc", {"a": "a is too old", "c": "c is strange"})).attach()
    assert running.fleet.members == ["b"]
    assert running.wire.released == ["a", "c"]
    assert running.told == ["worker a is let go: a is too old", "worker c is let go: c is strange"]


# -- rounds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["a", "ab", "abc", "abcdef"])
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_every_shard_is_summed_once(workers: str, kind: str) -> None:
    running = Running(Scripted(workers)).attach()
    for round in range(3):
        assert_sum_of_all(running.ask(round, kind))
    assert {(task.kind, task.run, task.epoch) for task in running.wire.asked} == {(kind, "r", 0)}
    assert [task.round for task in running.wire.asked] == [round for round in range(3) for _ in workers[:SHARDS]]


def test_what_is_lost_is_asked_of_those_left() -> None:
    running = Running(Scripted("ab", takes={"b": [inf]})).attach()
    running.wire.agenda.add(0.5, Left("b", "it stopped"))
    assert_sum_of_all(running.ask())
    assert running.wire.sent == [(0.0, "a", (0, 2)), (0.0, "b", (2, 4)), (0.5, "a", (2, 4))]
    assert running.told == ["worker b went away: it stopped"]


def test_in_the_first_round_who_takes_much_longer_than_the_first_to_answer_is_backed_up() -> None:
    running = Running(Scripted("ab", takes={"a": [2.0], "b": [inf]})).attach()
    assert_sum_of_all(running.ask())
    assert running.wire.sent[2:] == [(TIMES * 2.0, "a", (2, 4))]
    assert running.told == ["worker a backs up shards 2 to 3, which are late"]


def test_later_who_takes_much_longer_than_rounds_usually_do_is_backed_up() -> None:
    running = Running(Scripted("ab", takes={"a": [2.0, 0.5], "b": [2.0, inf]})).attach()
    running.ask(0)
    assert_sum_of_all(running.ask(1))
    assert running.wire.sent[4:] == [(2.0 + TIMES * 2.0, "a", (2, 4))]


def test_nobody_is_late_in_less_than_the_least() -> None:
    running = Running(Scripted("ab", takes={"b": [inf]})).attach()
    running.ask()
    assert running.wire.sent[2:] == [(LEAST, "a", (2, 4))]


def test_validation_has_a_pace_of_its_own() -> None:
    running = Running(Scripted("ab", takes={"a": [0.1, 0.1, 0.1, 5.0], "b": [0.1, 0.1, 0.1, 6.0]})).attach()
    for round in range(3):
        running.ask(round)
    running.ask(2, "evaluate")
    assert len(running.wire.sent) == 8


def test_a_backup_that_is_not_in_time_either_is_backed_up_from_when_it_was_asked() -> None:
    running = Running(Scripted("abc", takes={"a": [inf], "b": [0.1, inf], "c": [1.7]})).attach()
    assert_sum_of_all(running.ask())
    assert running.wire.sent[3:] == [(LEAST, "b", (0, 1)), (2 * LEAST, "c", (0, 1))]


def test_each_worker_is_late_when_its_own_time_is_over() -> None:
    running = Running(Scripted("abcd", takes={"a": [0.1, inf], "b": [inf], "c": [inf]})).attach()
    running.wire.agenda.add(0.5, Left("c", "it stopped"))
    assert_sum_of_all(running.ask())
    assert running.wire.sent[4:] == [(0.5, "a", (2, 3)), (LEAST, "d", (1, 2)), (0.5 + LEAST, "d", (2, 3))]


def test_an_answer_to_an_older_round_is_not_used_and_its_worker_computes_again_afterwards() -> None:
    running = Running(Scripted("ab", takes={"a": [3.0], "b": [0.1, 0.1, 2.5]})).attach()
    for round in range(3):
        assert_sum_of_all(running.ask(round))
    asked = [(task.round, worker) for task, (_, worker, _) in zip(running.wire.asked, running.wire.sent, strict=True)]
    assert asked == [(0, "a"), (0, "b"), (0, "b"), (1, "b"), (2, "a"), (2, "b")]


def test_while_all_goes_well_nobody_is_waited_for_in_vain() -> None:
    running = Running(Scripted("ab")).attach()
    before = len(running.wire.waits)
    for round in range(5):
        running.ask(round)
    assert len(running.wire.waits) - before == 2 * 5  # news before the round, and both answers at once


# -- failures ---------------------------------------------------------------------------------------------------


def test_what_a_worker_raises_is_raised_with_its_place_and_traceback() -> None:
    failure = Failure("NonFinite", "The loss is NaN", "line 3", Task("r", "train", 0, 0, 2, 4))
    with pytest.raises(
        NonFinite, match=r"The loss is NaN \(from shards 2 to 3 in epoch 0, round 0 on worker b\)"
    ) as it:
        Running(Scripted("ab", takes={"b": [failure]})).attach().ask()
    assert it.value.__notes__ == ["On the worker:\nline 3"]


def test_what_another_worker_may_not_raise_is_asked_of_it() -> None:
    running = Running(Scripted("ab", takes={"b": [Failure("ReplicaError", "disk full")]})).attach()
    assert_sum_of_all(running.ask())
    assert running.wire.released == ["b"]
    assert running.told == ["worker b is let go: it failed: disk full"]


def test_what_two_workers_raise_is_raised() -> None:
    raises: list[Takes] = [Failure("ReplicaError", "bad row")]
    running = Running(Scripted("abc", takes={"b": [*raises], "a": [0.1, *raises], "c": [0.2, *raises]})).attach()
    with pytest.raises(ReplicaError, match="bad row"):
        running.ask()


LATE_ANSWERS = {
    # b computes a's share and c's as well, and c's keeps the round going
    "in the round": ("abc", {"a": [10.0], "b": [0.1, 0.1, inf], "c": [20.0]}, 1),
    "in the next round": ("ab", {"a": [10.0], "b": [0.1, 0.1, 20.0]}, 2),
}


def late_answer(when: str, odd: dict[str, str] | None = None, parts: str = "", **settings: Any) -> tuple[Running, int]:
    workers, takes, rounds = LATE_ANSWERS[when]
    wire = Scripted(workers, takes={name: [*each] for name, each in takes.items()}, odd=odd, parts=parts)
    return Running(wire, **settings).attach(), rounds


#: whose gradients come in buckets
IN_PARTS = pytest.mark.parametrize("parts", ["", "a", "b", "abc"])


@IN_PARTS
@pytest.mark.parametrize("odd", ["vector", "sums"])
@pytest.mark.parametrize("when", LATE_ANSWERS)
def test_a_late_answer_with_other_bits_ends_the_run(when: str, odd: str, parts: str) -> None:
    running, rounds = late_answer(when, {"a": odd}, parts)
    for round in range(rounds - 1):
        running.ask(round)
    with pytest.raises(Diverged, match="Two workers must give the same bits") as caught:
        running.ask(rounds - 1)
    found = re.search(r"worker a gave ([0-9a-f]{16}) and another ([0-9a-f]{16})", str(caught.value))
    assert found
    assert found[1] != found[2]
    assert "epoch 0, round 0" in str(caught.value)


@IN_PARTS
@pytest.mark.parametrize("when", LATE_ANSWERS)
def test_a_late_answer_with_the_same_bits_changes_nothing(when: str, parts: str) -> None:
    running, rounds = late_answer(when, None, parts)
    for round in range(rounds):
        assert_sum_of_all(running.ask(round))
    assert running.wire.clock.now > 10.0
    assert {*running.coordinator._doubles.digests} <= {*running.fleet.busy.values()}  # others are not kept


@pytest.mark.parametrize("when", LATE_ANSWERS)
def test_a_late_answer_may_have_other_bits_if_they_do_not_matter(when: str) -> None:
    running, rounds = late_answer(when, {"a": "vector"}, strict=False)
    for round in range(rounds):
        running.ask(round)
    assert running.wire.clock.now > 10.0


@pytest.mark.parametrize("well", [True, False])
def test_whoever_waits_for_others_is_not_late(well: bool) -> None:
    running = Running(Scripted("ab", takes={"a": [3.0]})).attach()
    for tick in range(1, 30 * well):
        running.wire.agenda.add(tick / 10, Waits("a"))
    assert_sum_of_all(running.ask())
    assert [worker for _, worker, _ in running.wire.sent] == ["a", "b"] + ["b"] * (not well)


# -- nobody there, or not in time -------------------------------------------------------------------------------


@contextmanager
def timeouts(**of: float) -> Iterator[None]:
    with dask.config.set({f"dasktrain.timeouts.{name}": each for name, each in of.items()}):
        yield


def assert_lost(running: Running, after: float, message: str, within: float = 0.01) -> None:
    with pytest.raises(WorkerLost, match=message):
        running.ask()
    assert after <= running.wire.clock.now <= after + within


@pytest.mark.parametrize("trickle", [[], [3.0], [1.0, 4.9]], ids=str)
def test_a_round_that_is_not_answered_in_time_ends_the_run(trickle: list[float]) -> None:
    running = Running(Scripted("ab", takes={"a": [inf], "b": [inf]})).attach()
    for after in trickle:
        running.wire.agenda.add(after, Left("x", "a stranger"))
    with timeouts(round=5.0):
        assert_lost(running, 5.0, r"within dasktrain.timeouts.round, 5 s, however a, b did not")


def test_a_round_in_which_only_some_answer_in_time_ends_the_run() -> None:
    running = Running(Scripted("ab", takes={"a": [0.1, inf], "b": [inf]})).attach()
    with timeouts(round=5.0):
        assert_lost(running, 5.0, "a, b did not")


def test_a_worker_that_comes_in_time_is_enough() -> None:
    running = Running(Scripted("a", {"b": 50.0}, {"a": [inf]})).attach()
    running.wire.agenda.add(1.0, Left("a", "it stopped"))
    running.wire.agenda.add(21.0, Joined("b"))
    with timeouts(workers=30.0):  # b is there in time, though not ready
        assert_sum_of_all(running.ask())
    gone = "worker a went away: it stopped"
    assert running.told == [gone, f"waiting for a worker, since {gone}", "worker b joined"]


def test_no_worker_in_time_ends_the_run() -> None:
    running = Running(Scripted("a", takes={"a": [inf]})).attach()
    running.wire.agenda.add(1.0, Left("a", "it stopped"))
    message = r"within dasktrain.timeouts.workers, 30 s, however none did after worker a went away: it stopped"
    with timeouts(workers=30.0):
        assert_lost(running, 31.0, message)


def test_the_time_without_workers_begins_anew_when_the_next_is_gone() -> None:
    running = Running(Scripted("a", {"b": inf}, {"a": [inf]})).attach()
    for after, event in ((1.0, Left("a", "it stopped")), (20.0, Joined("b")), (25.0, Left("b", "it stopped too"))):
        running.wire.agenda.add(after, event)
    with timeouts(workers=30.0):
        assert_lost(running, 55.0, "after worker b went away: it stopped too")


@pytest.mark.parametrize("workers", ["", "a"], ids=["none at all", "one that goes away"])
def test_no_worker_in_time_for_the_first_round_ends_the_run(workers: str) -> None:
    running = Running(Scripted(workers, {"a": inf}))
    running.wire.agenda.add(1.0, Left("a", "it stopped"))
    with timeouts(workers=30.0), pytest.raises(WorkerLost, match=r"within dasktrain\.timeouts\.workers, 30 s"):
        running.attach()
    assert 30.0 <= running.wire.clock.now <= 31.01


def test_nobody_is_waited_for_once_the_run_is_to_stop() -> None:
    running = Running(Scripted("a", takes={"a": [inf]})).attach()
    running.wire.agenda.add(1.0, Left("a", "it stopped"))
    running.stop.set()
    assert_lost(running, 1.0, "however none did")


def test_a_stop_while_nobody_is_there_is_heeded_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(Scripted("a", takes={"a": [inf]})).attach()
    running.wire.agenda.add(1.0, Left("a", "it stopped"))
    events = running.wire.events

    def stopping(timeout: float) -> list[Event]:
        news = events(timeout)
        if running.wire.clock.now > 10.0:
            running.stop.set()
        return news

    monkeypatch.setattr(running.wire, "events", stopping)
    assert_lost(running, 10.0, "however none did", within=LOOK + 0.01)


def test_the_round_under_way_is_finished_although_the_run_is_to_stop() -> None:
    running = Running(Scripted("ab", takes={"b": [30.0]})).attach()
    running.stop.set()
    assert_sum_of_all(running.ask())
