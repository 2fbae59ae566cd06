"""Who is here and who computes which shards: events in, instructions out, no clock and no network.

The wire turns what it sees into events; the driver carries the instructions out. Results never depend on
anything decided here, only how long they take.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker is attached: its replica is built and it takes tasks."""

    worker: str


@dataclass(frozen=True, slots=True)
class Left:
    """A worker went away; `reason` is what the wire saw."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Assign:
    """Worker computes shards [start, stop) from the next round on."""

    worker: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Abort:
    """The run cannot go on."""

    reason: str


Event = Joined | Left
Instruction = Assign | Abort


@dataclass
class Fleet:
    """The members of a run.

    Parameters
    ----------
    shards
        Logical ranks of the run. Members beyond them are spares.
    """

    shards: int
    members: list[str] = field(default_factory=list)

    def settle(self, events: Iterable[Event]) -> list[Instruction]:
        """Take events in; return what must be done before the next round, in order."""
        instructions: list[Instruction] = []
        changed = False
        for event in events:
            if isinstance(event, Joined) and event.worker not in self.members:
                self.members.append(event.worker)
                changed = True
            elif isinstance(event, Left) and event.worker in self.members:
                self.members.remove(event.worker)
                instructions.append(Abort(f"worker {event.worker} went away: {event.reason}"))
        return instructions + list(self.assignment()) if changed else instructions

    def assignment(self) -> list[Assign]:
        """Spread the shards over the members: contiguous, in order of joining, even to within one."""
        count = min(len(self.members), self.shards)
        cuts = [self.shards * place // count for place in range(count + 1)] if count else []
        return [Assign(*seat) for seat in zip(self.members, cuts, cuts[1:], strict=False)]

    @property
    def spares(self) -> list[str]:
        """Members without a shard, more workers than shards."""
        return self.members[self.shards :]
