"""Membership: events in, instructions out."""

import pytest

from dasktrain.events import (
    Abort,
    Assign,
    BackUp,
    Event,
    Failed,
    Instruction,
    Joined,
    Lease,
    Notice,
    Ready,
    ReAsk,
    Refused,
    Release,
    Slow,
    Wait,
)
from dasktrain.messages import Task
from tests.fleets import HERE, Step, after, answered, failed, gone, left, part, ready, situations

#: `a` has not answered round 0 yet, which `b` completed
LATE: list[Step] = [ready("ab"), 0, Slow("a"), answered("b", 4, 8), answered("b", 0, 4)]


@situations(
    the_first_is_leased_for_all=([Joined("a")], [Lease("a", 0, 8)]),
    the_second_for_the_half_it_will_have=([Joined("a"), Joined("b")], [Lease("b", 4, 8)]),
    a_third_while_two_are_ready=([ready("ab"), Joined("c")], [Lease("c", 5, 8)]),
    one_during_a_round_for_the_next=([ready("a"), 0, Joined("b")], [Lease("b", 4, 8)]),
    one_beyond_the_shards_for_none=([ready("abcdefgh"), Joined("i")], [Lease("i", 0, 0)]),
    the_next_gets_the_seat_that_was_left=([ready("abc"), 0, left("b"), Joined("d")], [Lease("d", 2, 5)]),
    two_get_the_seats_that_were_left=(
        [ready("abcd"), 0, left("c"), left("b"), Joined("e"), Joined("f")],
        [Lease("f", 4, 6)],
    ),
    told_twice=([Joined("a"), Joined("a")], []),
    a_member=([ready("a"), Joined("a")], []),
    one_that_came_back=([ready("ab"), left("b"), Joined("b")], [Lease("b", 4, 8)]),
    one_that_was_refused=([ready("a"), Joined("b"), Refused("b", "no memory"), Joined("b")], []),
    one_that_failed=([ready("ab"), 0, failed("b", 4, 8), Joined("b")], []),
)
def test_workers_that_join_are_leased(happened: list[Step], instructions: list[Instruction]) -> None:
    assert after(*happened)[1] == instructions


@situations(
    before_the_first_round=([Joined("a"), Ready("a", HERE)], []),
    during_a_round=([ready("a"), 0, Joined("b"), Ready("b", HERE)], [Notice("worker b joined")]),
    between_rounds=([ready("a"), 0, answered("a", 0, 8), ready("b")], [Notice("worker b joined")]),
    told_twice=([ready("a"), 0, ready("b"), Ready("b", HERE)], []),
    refused_before=([ready("a"), 0, Joined("b"), Refused("b", "no memory"), Ready("b", HERE)], []),
    nobody_else_is_there=(
        [ready("a"), 0, left("a"), ready("b")],
        [Notice("worker b joined"), ReAsk("b", part(0, 8))],
    ),
    nobody_was_there_when_the_run_began=(
        [ready("a"), left("a"), 0, ready("b")],
        [Notice("worker b joined"), ReAsk("b", part(0, 8))],
    ),
    somebody_is_late=(
        [ready("a"), 0, Slow("a"), ready("b")],
        [Notice("worker b joined"), BackUp("b", part(0, 8))],
    ),
    the_others_compute_what_came_in_the_meantime=(
        [ready("ab"), 0, answered("b", 4, 8), left("a"), answered("a", 0, 4), 1, ready("c")],
        [Notice("worker c joined"), ReAsk("c", part(0, 8, 1))],
    ),
    all_are_late_with_an_older_round=(
        [*LATE, 1, Slow("b"), ready("c")],
        [Notice("worker c joined"), BackUp("c", part(0, 8, 1))],
    ),
)
def test_workers_that_are_ready_help_if_there_is_something_to_do(
    happened: list[Step], instructions: list[Instruction]
) -> None:
    assert after(*happened)[1] == instructions


@situations(
    while_leased_beside_others=([ready("a"), Joined("b"), Refused("b", "old")], [Release("b", "old")]),
    others_are_being_leased=([Joined("a"), Joined("b"), Refused("a", "old")], [Release("a", "old")]),
    all_of_them=(
        [Joined("a"), Joined("b"), Refused("a", "old"), Refused("b", "no memory")],
        [Release("b", "no memory"), Abort("old; no memory")],
    ),
    the_only_one_to_come_in_a_round=(
        [ready("a"), 0, left("a"), Joined("b"), Refused("b", "old")],
        [Release("b", "old"), Wait("old")],
    ),
    a_member_that_is_busy=(
        [ready("ab"), 0, answered("a", 0, 4), Refused("b", "old")],
        [Release("b", "old"), ReAsk("a", part(4, 8))],
    ),
    a_stranger=([ready("a"), Refused("x", "old")], []),
    told_twice=([ready("a"), Joined("b"), Refused("b", "old"), Refused("b", "old")], []),
)
def test_workers_that_cannot_be_used_are_let_go(happened: list[Step], instructions: list[Instruction]) -> None:
    assert after(*happened)[1] == instructions


@situations(
    while_leased=([ready("a"), Joined("b"), left("b")], [gone("b")]),
    while_leased_alone=([Joined("a"), left("a")], [gone("a"), Wait(gone("a").text)]),
    before_the_first_round=([ready("ab"), left("b")], [gone("b")]),
    while_idle=([ready("ab"), 0, answered("b", 4, 8), left("b")], [gone("b")]),
    its_share_goes_to_who_is_idle=(
        [ready("ab"), 0, answered("a", 0, 4), left("b")],
        [gone("b"), ReAsk("a", part(4, 8))],
    ),
    its_share_is_cut_among_those_left=(
        [ready("abc"), 0, answered("a", 0, 2), answered("b", 2, 5), left("c")],
        [gone("c"), ReAsk("a", part(5, 6)), ReAsk("b", part(6, 8))],
    ),
    its_share_waits_for_who_is_busy=([ready("ab"), 0, left("b")], [gone("b")]),
    and_is_then_asked_for=([ready("ab"), 0, left("b"), answered("a", 0, 4)], [ReAsk("a", part(4, 8))]),
    and_is_asked_for_once=(
        [ready("abc"), 0, left("b"), answered("a", 0, 2), answered("c", 5, 8)],
        [ReAsk("c", part(3, 5))],
    ),
    its_answer_still_came=([ready("ab"), 0, left("b"), answered("b", 4, 8), answered("a", 0, 4)], []),
    the_last=([ready("a"), 0, left("a")], [gone("a"), Wait(gone("a").text)]),
    the_last_while_another_is_leased=([ready("a"), 0, Joined("b"), left("a")], [gone("a")]),
    that_other_as_well=([ready("a"), 0, Joined("b"), left("a"), left("b")], [gone("b"), Wait(gone("b").text)]),
    backed_up=([ready("ab"), 0, Slow("a"), answered("b", 4, 8), left("a")], [gone("a")]),
    backed_up_by_one_that_answered_before_and_again=(
        [ready("ab"), 0, Slow("a"), answered("b", 4, 8), answered("b", 4, 8), left("a")],
        [gone("a")],
    ),
    the_backup=([ready("ab"), 0, Slow("a"), answered("b", 4, 8), left("b")], [gone("b")]),
    the_backup_while_another_is_idle=(
        [ready("abc"), 0, Slow("a"), answered("b", 2, 5), answered("c", 5, 8), left("b")],
        [gone("b"), BackUp("c", part(0, 2))],
    ),
    backup_and_backed_up=(
        [ready("abc"), 0, Slow("a"), answered("b", 2, 5), left("a"), left("b"), answered("c", 5, 8)],
        [ReAsk("c", part(0, 2))],
    ),
    with_an_older_round=(
        [*LATE, 1, left("a")],
        [gone("a")],
    ),
    told_twice=([ready("ab"), 0, left("b"), left("b")], []),
    after_it_was_let_go=([ready("ab"), 0, failed("b", 4, 8), left("b")], []),
    a_stranger=([ready("a"), 0, left("x")], []),
)
def test_what_is_lost_with_a_worker_is_asked_for_again(happened: list[Step], instructions: list[Instruction]) -> None:
    assert after(*happened)[1] == instructions


@situations(
    nobody_is_idle=([ready("ab"), 0, Slow("a")], []),
    then_somebody_is=([ready("ab"), 0, Slow("a"), answered("b", 4, 8)], [BackUp("b", part(0, 4))]),
    somebody_is_idle=([ready("ab"), 0, answered("b", 4, 8), Slow("a")], [BackUp("b", part(0, 4))]),
    told_twice=([ready("ab"), 0, answered("b", 4, 8), Slow("a"), Slow("a")], []),
    an_idle_worker=([ready("ab"), 0, answered("b", 4, 8), Slow("b")], []),
    the_backup_too=([ready("ab"), 0, answered("b", 4, 8), Slow("a"), Slow("b")], []),
    then_a_third_is_asked=(
        [ready("abc"), 0, answered("b", 2, 5), Slow("a"), Slow("b"), answered("c", 5, 8)],
        [BackUp("c", part(0, 2))],
    ),
    one_that_was_late_before_it_left_and_came_back=(
        [*LATE[:-1], left("a"), LATE[-1], ready("a"), 1, answered("b", 4, 8, 1), Slow("a")],
        [BackUp("b", part(0, 4, 1))],
    ),
    two_at_a_time=(
        [ready("abcd"), 0, Slow("a"), Slow("b"), answered("c", 4, 6), answered("d", 6, 8)],
        [BackUp("d", part(2, 4))],
    ),
    it_answers_before_it_is_backed_up=([ready("ab"), 0, Slow("a"), answered("a", 0, 4), answered("b", 4, 8)], []),
    it_answers_before_its_backup=([ready("ab"), 0, answered("b", 4, 8), Slow("a"), answered("a", 0, 4)], []),
    it_takes_another_late_share=(
        [ready("ab"), 0, Slow("a"), Slow("b"), answered("a", 0, 4)],
        [BackUp("a", part(4, 8))],
    ),
    it_answers_after_its_backup=(
        [
            ready("abc"),
            0,
            answered("b", 2, 5),
            Slow("a"),
            answered("b", 0, 2),
            Slow("c"),
            left("b"),
            answered("a", 0, 2),
        ],
        [BackUp("a", part(5, 8))],
    ),
    one_with_an_older_round=(
        [*LATE, 1, answered("b", 0, 8, 1), Slow("a")],
        [],
    ),
)
def test_what_is_late_is_backed_up_by_who_is_idle(happened: list[Step], instructions: list[Instruction]) -> None:
    assert after(*happened)[1] == instructions


def late(worker: str, start: int, stop: int, round: int) -> list[Event]:
    return [Slow(worker), answered(worker, start, stop, round)]


#: `a` was late three times, in rounds 0 to 2
STRUCK: list[Step] = [ready("ab")]
for number in range(3):
    STRUCK += [number, late("a", 0, 4, number), answered("b", 4, 8, number)]


@situations(
    told_at_the_third_time=(
        [*STRUCK[:-2], Slow("a")],
        [Notice("worker a was late 3 times and now gets work only if nobody else can do it")],
    ),
    not_told_again=([*STRUCK, left("b"), 3, ready("c"), Slow("a")], [BackUp("c", part(0, 8, 3))]),
    not_for_one_time_told_twice=([*STRUCK[:5], Slow("a"), Slow("a")], []),
    not_told_before=([*STRUCK[:5], Slow("a")], []),
    it_is_not_asked=([*STRUCK, 3], [Assign("b", part(0, 8, 3))]),
    nor_for_what_another_lost=([*STRUCK, ready("c"), 3, left("c")], [gone("c")]),
    but_if_all_others_are_late=([*STRUCK, ready("c"), 3, left("c"), Slow("b")], [ReAsk("a", part(4, 6, 3))]),
    if_they_are_since_an_older_round=(
        [*STRUCK, 3, Slow("b"), answered("a", 0, 8, 3), 4],
        [Assign("a", part(0, 8, 4))],
    ),
    if_they_are_gone=([*STRUCK, left("b"), 3], [Assign("a", part(0, 8, 3))]),
)
def test_who_was_late_three_times_is_asked_if_nobody_else_can(
    happened: list[Step], instructions: list[Instruction]
) -> None:
    assert after(*happened)[1] == instructions


@situations(
    somebody_is_idle=(
        [ready("ab"), 0, answered("b", 4, 8), failed("a", 0, 4)],
        [Release("a", "it failed: too much"), ReAsk("b", part(0, 4))],
    ),
    nobody_is=([ready("ab"), 0, failed("a", 0, 4)], [Release("a", "it failed: too much")]),
    then_somebody_is=([ready("ab"), 0, failed("a", 0, 4), answered("b", 4, 8)], [ReAsk("b", part(0, 4))]),
    its_data_cannot_be_read=(
        [ready("ab"), 0, answered("b", 4, 8), failed("a", 0, 4, error="AttachError")],
        [Release("a", "it failed: too much"), ReAsk("b", part(0, 4))],
    ),
    backed_up=(
        [ready("ab"), 0, answered("b", 4, 8), Slow("a"), failed("a", 0, 4)],
        [Release("a", "it failed: too much")],
    ),
    the_only_one_while_another_is_leased=(
        [ready("a"), 0, Joined("b"), failed("a", 0, 8)],
        [Release("a", "it failed: too much")],
    ),
    two_with_other_shards=(
        [ready("abc"), 0, answered("c", 5, 8), failed("a", 0, 2), failed("b", 2, 5)],
        [Release("b", "it failed: too much")],
    ),
    two_with_the_same_shards_of_other_rounds=(
        [
            ready("ab"),
            0,
            failed("a", 0, 4),
            answered("b", 4, 8),
            answered("b", 0, 4),
            ready("c"),
            1,
            failed("c", 0, 4, 1),
        ],
        [Release("c", "it failed: too much")],
    ),
    with_an_older_round=(
        [*LATE, 1, failed("a", 0, 4)],
        [Release("a", "it failed: too much")],
    ),
    with_an_older_round_and_another_with_the_same_shards=(
        [*LATE, ready("c"), 1, failed("a", 0, 4), failed("b", 0, 4, 1)],
        [Release("b", "it failed: too much")],
    ),
    one_that_left=([ready("ab"), 0, left("a"), failed("a", 0, 4)], []),
)
def test_failures_that_another_worker_may_not_have_cost_the_worker(
    happened: list[Step], instructions: list[Instruction]
) -> None:
    assert after(*happened)[1] == instructions


@pytest.mark.parametrize(
    ("happened", "last"),
    [
        ([ready("ab"), 0], failed("a", 0, 4, error="NonFinite")),
        ([ready("ab"), 0, answered("b", 4, 8), Slow("a")], failed("a", 0, 4, error="DataError")),
        ([ready("ab"), 0, answered("b", 4, 8), failed("a", 0, 4)], failed("b", 0, 4)),
        ([ready("abc"), 0, answered("b", 2, 5), answered("c", 5, 8), failed("a", 0, 2)], failed("c", 1, 2)),
        ([ready("ab"), 0, answered("b", 4, 8), Slow("a"), failed("a", 0, 4)], failed("b", 0, 4)),
        ([ready("a"), 0], failed("a", 0, 8)),
    ],
    ids=["a loss", "backed up", "the same again", "one of the same again", "the backup too", "the last worker"],
)
def test_failures_that_others_would_have_end_the_run(happened: list[Step], last: Failed) -> None:
    assert after(*happened, last)[1] == [Abort("too much", last.worker, last.failure)]


@situations(
    one=([ready("a"), 0], [Assign("a", part(0, 8))]),
    the_first_by_name=([ready("b"), ready("a"), 0], [Assign("a", part(0, 4)), Assign("b", part(4, 8))]),
    later_ones_behind_them=(
        [ready("b"), 0, answered("b", 0, 8), ready("a"), 1],
        [Assign("b", part(0, 4, 1)), Assign("a", part(4, 8, 1))],
    ),
    later_ones_where_others_left=(
        [ready("abc"), 0, answered("a", 0, 2), answered("b", 2, 5), answered("c", 5, 8), left("b"), ready("d"), 1],
        [Assign("a", part(0, 2, 1)), Assign("d", part(2, 5, 1)), Assign("c", part(5, 8, 1))],
    ),
    no_more_than_shards=(
        [ready("abcdefghi"), 0],
        [Assign("abcdefgh"[each], part(each, each + 1)) for each in range(8)],
    ),
    nobody=([0], [Wait("no worker is attached")]),
    nobody_yet=([Joined("a"), 0], []),
    all_but_one_that_is_late=(
        [*LATE, 1],
        [Assign("b", part(0, 8, 1))],
    ),
    it_as_well_once_it_has_answered=(
        [*LATE, 1, answered("b", 0, 8, 1), answered("a", 0, 4), 2],
        [Assign("a", part(0, 4, 2)), Assign("b", part(4, 8, 2))],
    ),
    nobody_while_all_are_late=(
        [*LATE, left("b"), 1],
        [],
    ),
    who_answers_first_then=(
        [*LATE, left("b"), 1, answered("a", 0, 4)],
        [ReAsk("a", part(0, 8, 1))],
    ),
)
def test_rounds_begin_with_who_is_there(happened: list[Step], instructions: list[Instruction]) -> None:
    assert after(*happened)[1] == instructions


def test_an_answer_is_used_once_and_in_its_round_only() -> None:
    fleet, _ = after(ready("ab"), 0)
    assert [fleet.lacks(part(0, 4, round)) for round in (0, 1)] == [True, False]
    assert not fleet.lacks(Task("r", "evaluate", 0, 0, 0, 4))
    fleet.take(answered("a", 0, 4))
    assert [fleet.lacks(part(*ends)) for ends in ((0, 4), (3, 8), (4, 8))] == [False, False, True]
    assert fleet.take(answered("a", 0, 4)) == []
    assert not fleet.complete
    fleet.take(answered("b", 4, 8))
    assert fleet.complete
