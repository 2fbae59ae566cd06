"""Membership: events in, instructions out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasktrain.fleet import Abort, Assign, Event, Fleet, Instruction, Joined, Left

names = st.sampled_from("abcdefgh")
events = st.lists(st.builds(Joined, names) | st.builds(Left, names, st.just("it stopped")), max_size=30)


def members_after(happened: list[Event]) -> list[str]:
    """Follow events by the definition: in order of joining, each once."""
    members: list[str] = []
    for event in happened:
        present = event.worker in members
        if isinstance(event, Joined) and not present:
            members.append(event.worker)
        elif isinstance(event, Left) and present:
            members.remove(event.worker)
    return members


@given(st.integers(1, 20), events, st.data())
def test_assignment_covers_the_shards_once_evenly_and_in_order(
    shards: int, happened: list[Event], data: st.DataObject
) -> None:
    fleet = Fleet(shards)
    cut = data.draw(st.integers(0, len(happened)))
    fleet.settle(happened[:cut])
    fleet.settle(happened[cut:])
    members, seats = members_after(happened), fleet.assignment()
    assert [seat.worker for seat in seats] == members[:shards]
    assert fleet.spares == members[shards:]
    if seats:
        sizes = [seat.stop - seat.start for seat in seats]
        assert [shard for seat in seats for shard in range(seat.start, seat.stop)] == list(range(shards))
        assert max(sizes) - min(sizes) <= 1


@given(events)
def test_every_leave_of_a_member_aborts_and_no_other_event_does(happened: list[Event]) -> None:
    aborts = [each for each in Fleet(4).settle(happened) if isinstance(each, Abort)]
    leaves = [
        event.worker
        for place, event in enumerate(happened)
        if isinstance(event, Left) and event.worker in members_after(happened[:place])
    ]
    assert len(aborts) == len(leaves)
    for abort, worker in zip(aborts, leaves, strict=True):
        assert f"worker {worker} went away: it stopped" in abort.reason


@pytest.mark.parametrize(
    ("shards", "before", "happened", "instructions"),
    [
        (4, [], [], []),
        (4, [], [Joined("a")], [Assign("a", 0, 4)]),
        (4, ["a"], [Joined("b")], [Assign("a", 0, 2), Assign("b", 2, 4)]),
        (5, [], [Joined("b"), Joined("a")], [Assign("b", 0, 2), Assign("a", 2, 5)]),
        (1, ["a"], [Joined("b")], [Assign("a", 0, 1)]),
        (4, ["a"], [Joined("a")], []),
        (4, ["a"], [Left("b", "gone")], []),
        (4, ["a"], [Left("a", "gone")], [Abort("worker a went away: gone")]),
        (2, ["a"], [Left("a", "gone"), Joined("b")], [Abort("worker a went away: gone"), Assign("b", 0, 2)]),
    ],
    ids=["silence", "first", "second", "uneven", "spare", "again", "stranger", "leave", "leave and join"],
)
def test_events_give_instructions(
    shards: int, before: list[str], happened: list[Event], instructions: list[Instruction]
) -> None:
    assert Fleet(shards, before).settle(happened) == instructions
