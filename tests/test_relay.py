"""A run told and replayed: the same calls in the same order, however its messages come."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import dasktrain as dt
from dasktrain.relay import Message, Relay, Replay
from tests.small import Watcher, fit, table


class Ordered(Watcher):
    """Writes every call down in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Any]] = []

    def stage(self, text: str) -> None:
        self.calls.append(("stage", text))

    def start(self, run: Any) -> None:
        self.calls.append(("start", run.rows))

    def round(self, record: dict[str, Any]) -> None:
        self.calls.append(("round", (record["epoch"], record["round"])))

    def epoch(self, record: dict[str, Any]) -> None:
        self.calls.append(("epoch", record["epoch"]))

    def end(self) -> None:
        self.calls.append(("end", None))


def told(attempt: str = "a", **more: Any) -> tuple[list[Message], list[tuple[str, Any]]]:
    """Return the messages of a run and the calls it made."""
    messages: list[Message] = []
    seen = Ordered()
    fit(table(), epochs=2, observers=[seen, Relay(attempt, messages.append)], **more)
    return messages, seen.calls


MESSAGES, CALLS = told()


@given(st.permutations(range(len(MESSAGES))), st.lists(st.integers(0, len(MESSAGES) - 1), max_size=5))
@settings(max_examples=60, deadline=None)
def test_any_order_and_repeats_give_the_calls_in_order(order: list[int], again: list[int]) -> None:
    seen = Ordered()
    replay = Replay([seen])
    for place in [*order, *again]:
        replay.play(MESSAGES[place])
    assert not replay.gap
    assert seen.calls == CALLS
    assert [record["epoch"] for record in replay.history] == [0, 1]
    assert len(replay.history.rounds) == 6


def test_what_nobody_remembers_is_skipped() -> None:
    seen = Ordered()
    replay = Replay([seen])
    for message in MESSAGES[3:]:
        replay.play(message)
    assert replay.gap
    assert seen.calls == []
    replay.skip()
    assert not replay.gap
    assert seen.calls == CALLS[3:]


def test_an_attempt_that_was_killed_ends_and_the_next_one_starts_with_what_was_before() -> None:
    url = "memory://relay"
    fit(table(), epochs=1, observers=[dt.Checkpoint(url)])
    later, _ = told("b", resume=url)
    seen = Ordered()
    replay = Replay([seen])
    for message in [*MESSAGES[:6], *later, *MESSAGES[6:]]:
        replay.play(message)
    starts = [place for place, (name, _) in enumerate(seen.calls) if name == "start"]
    assert [name for name, _ in seen.calls].count("end") == len(starts) == 2
    assert [what for name, what in seen.calls[starts[1] :] if name == "round"] == [(1, 0), (1, 1), (1, 2)]
    assert [(record["epoch"], record["round"]) for record in replay.history.rounds] == [
        (epoch, round) for epoch in (0, 1) for round in range(3)
    ]
