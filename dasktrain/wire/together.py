"""Workers of one host that send together: one adds up what all of them sum, and the driver's link carries that once.

The others leave their buckets in memory that it reads, and their answers with it, which it passes on after all that
belongs to them. The link carries parameters once as well: the one that adds lays them out in memory, from which the
others copy them. Where hosts reduce among themselves it does that with its peers, see :mod:`dasktrain.wire.member`,
and parameters and sums take that way.

Whoever is late or dies costs the others time, and nobody waits without an end: what cannot be added goes up as it is,
whoever is not heard sends for itself, and whoever lacks parameters tells the driver, which knows whether they are still
on their way. What comes twice counts once, so no bit depends on it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from dasktrain.messages import Reply, Stream, Task, Vector
from dasktrain.wire.adding import Adding
from dasktrain.wire.channel import Channel
from dasktrain.wire.gate import Gate, host
from dasktrain.wire.member import Member
from dasktrain.wire.passing import Passing
from dasktrain.wire.shared import Store
from dasktrain.wire.ways import Joint, Via


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where a worker can be met by those of its host."""

    host: str
    gate: str


class Together:
    """A worker's part in sending together: it adds for others, or has one of them add.

    Parameters
    ----------
    channel
        The driver's connection.
    store
        Where this worker's sums lie.
    stream
        What gradients are like.
    """

    def __init__(self, channel: Channel, store: Store, stream: Stream) -> None:
        here = host()
        self._gate = Gate(store)
        self.meeting = Meeting(here, self._gate.name)
        self._adding = Adding(channel, self._gate, store, stream)
        self._passing = Passing(channel, store, stream)

    def recut(self, stream: Stream) -> None:
        """Add gradients that are cut in some way from the next task on."""
        self._adding.recut(stream)

    def begin(
        self, task: Task, way: Via | Joint, parameters: Vector, member: Member | None
    ) -> tuple[Callable[[Reply], None], Vector | None]:
        """Return what sends all that belongs to a task, which is called in one thread, and the task's parameters.

        There are none if they do not come, which the driver is told. `member` is this worker among peers.
        """
        if isinstance(way, Joint):
            return self._adding.take, self._adding.begin(task, way, parameters, member)
        self._passing.begin(task, way)
        return self._passing.take, self._passing.parameters(task) if way.given else parameters

    def close(self) -> None:
        """End all connections with others."""
        self._passing.close()
        self._gate.close()
