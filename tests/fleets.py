"""Short ways to write what happens to a fleet."""

from typing import Any

import pytest

from dasktrain.events import Answered, Domain, Event, Failed, Instruction, Joined, Left, Notice, Ready
from dasktrain.fleet import Fleet
from dasktrain.messages import Answer, Failure, Task

SHARDS = 8
HERE: Domain = {"threads": 1, "canary": "here"}
THERE: Domain = {"threads": 1, "canary": "there"}
#: an event, several, or the number of a round that begins
Step = Event | list[Event] | int


def part(start: int, stop: int, round: int = 0) -> Task:
    return Task("r", "train", 0, round, start, stop)


def answered(worker: str, start: int, stop: int, round: int = 0) -> Event:
    return Answered(worker, Answer(part(start, stop, round), (), 0.1))


def failed(worker: str, start: int, stop: int, round: int = 0, error: str = "ReplicaError") -> Failed:
    return Failed(worker, Failure(error, "too much", task=part(start, stop, round)))


def ready(workers: str, domain: Domain = HERE) -> list[Event]:
    return [*(Joined(worker) for worker in workers), *(Ready(worker, domain) for worker in workers)]


def left(worker: str) -> Left:
    return Left(worker, "it stopped")


def gone(worker: str) -> Notice:
    return Notice(f"worker {worker} went away: it stopped")


def after(*steps: Step, **settings: Any) -> tuple[Fleet, list[Instruction]]:
    """Return a fleet to which so much has happened, and what it said last."""
    fleet = Fleet(**({"shards": SHARDS} | settings))
    out: list[Instruction] = []
    for step in steps:
        if isinstance(step, int):
            out = fleet.begin(part(0, fleet.shards, step))
        else:
            for event in step if isinstance(step, list) else [step]:
                out = fleet.take(event)
    return fleet, out


def situations(**rows: tuple[list[Step], list[Instruction]]) -> Any:
    """Make one test of each: what happened, and what must be done about the last of it."""
    names = [name.replace("_", " ") for name in rows]
    return pytest.mark.parametrize(("happened", "instructions"), rows.values(), ids=names)
