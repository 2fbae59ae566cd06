"""On the driver: rounds that workers reduce among themselves, and whose sums have not come by way of their owners."""

import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import inf
from statistics import median
from time import monotonic
from urllib.parse import urlsplit

from dasktrain import cut
from dasktrain.cut import Cut
from dasktrain.messages import Answer, Header, State, Task, Vector, encode_part
from dasktrain.reduce import Node
from dasktrain.topology import FEWEST, Links, Reduction, bucket_of
from dasktrain.wire.parties import Ask
from dasktrain.wire.ways import Joint, Sharded, Via, Way, whole, with_peers

#: after the first answer of a round the others are waited for as long again as that took, and at least so many seconds
LEAST = 0.5
#: what must be for workers to reduce among themselves
NEEDS = f"workers on {FEWEST} or more hosts from the beginning, and over {(FEWEST - 1) * cut.LEAST:,} parameters"


@dataclass
class Round:
    """What has come of a round.

    Attributes
    ----------
    tasks : dict
        Of the peers, in the order of their places.
    owed : dict
        Of each, places of owners that have not delivered its sums, nor has it itself.
    absent : set of int
        Places of owners that will not deliver any more.
    answers : dict
        Of peers that have answered, and are owed something.
    passed : dict
        Of these, answers of others of their host, whose sums are among theirs: the worker and its answer.
    due : dict
        Of each that has answered, places of owners whose buckets it is now to send itself.
    """

    tasks: dict[str, Task]
    owed: dict[str, set[int]]
    absent: set[int] = field(default_factory=set)
    answers: dict[str, Answer] = field(default_factory=dict)
    passed: dict[str, list[tuple[str, Answer]]] = field(default_factory=dict)
    due: dict[str, set[int]] = field(default_factory=dict)
    faulty: bool = False
    began: float = field(default_factory=monotonic)
    first: float | None = None  # seconds until the first answer

    def place(self, worker: str) -> int:
        """Return a peer's place."""
        return list(self.tasks).index(worker)


class Owners:
    """Workers that can reduce among themselves, and those that do in the round under way.

    They are on other hosts than the driver, one on each: if several share one, that which sends together with others
    reduces for all of these, see :class:`dasktrain.wire.parties.Parties`, and who is not among them gets and sends all
    as ever. There must not be tables, whose rows go to each worker alone.

    An answer of a peer counts when all of its sums have come: from their owners, or from itself; and with it those that
    it has passed on. Whom the first misses that misses anyone is left out for the rest of the epoch; what follows from
    that is not held against anybody.
    """

    def __init__(self) -> None:
        self.reduction: Reduction = "flat"
        self._size, self._width = 0, 1  # bytes of the parameters, 0 if they cannot be sharded, and of each
        self.bucket = cut.SIZE
        self._able: dict[str, float | None] = {}  # worker -> bytes a second, if they were measured
        self._alone: set[str] = set()
        self._epoch = -1
        self._mesh: tuple[str, tuple[str, ...], list[Node]] = "", (), []  # and who computes what
        self._round: Round | None = None
        self._complete: list[tuple[str, Answer]] = []

    # -- who ------------------------------------------------------------------------------------------------------

    def add(self, worker: str, rate: float | None) -> None:
        """Take note of a worker that can, and of the bytes a second that go there, if they were measured."""
        self._able[worker] = rate

    def forget(self, worker: str) -> list[Ask]:
        """Take note of a worker's end; return what is to be asked anew, since it had passed on what may be lost."""
        self._able.pop(worker, None)
        if worker in self._mesh[1]:
            self._mesh = "", (), []  # whoever comes back knows nothing of it
        round = self._round
        if round is None:
            return []
        round.passed = {peer: [one for one in ones if one[0] != worker] for peer, ones in round.passed.items()}
        if worker not in round.tasks:
            return []
        round.answers.pop(worker, None)
        self._fault(round)
        self._lose(round, [round.place(worker)])
        return [(other, answer.task) for other, answer in round.passed.pop(worker, [])]

    def may_reduce(self, worker: str) -> bool:
        """Return whether a worker might take part in the next round."""
        return self.reduction != "flat" and worker in self._able

    def choose(self, reduction: Reduction, state: State, workers: Sequence[str]) -> None:
        """Reduce states like this one in some way from the next round on; so far there are these workers."""
        self.reduction = reduction
        sharded = not state.tables and state.parameters.nbytes >= state.buffers.nbytes
        self._size = state.parameters.nbytes if sharded else 0
        self._width = state.parameters.itemsize
        hosts = len({urlsplit(worker).hostname for worker in workers})
        numbers = len(state.parameters) if sharded else 0
        self.bucket = bucket_of(reduction, len(workers), hosts, numbers, self._width)

    def depends(self, workers: Collection[str]) -> bool:
        """Return whether, if these are the workers, it depends on their links how they reduce."""
        return self.reduction == "auto" and self._links(workers).can_shard

    def chosen(self) -> str:
        """Return what is to be told: nothing, unless it depended on links, or sharding was asked for."""
        links = self._links(self._able)
        best = links.best(self.reduction)
        several = "the driver reduces what workers of a host add up (host pre-reduce)"
        flat = several if links.hosts < links.workers else "the driver reduces (flat)"
        sharded = f"{links.workers} workers on {links.hosts} hosts reduce among themselves (sharded)"
        who = sharded if best == "sharded" else flat
        if self.depends(self._able) and links.rate < inf:
            other = "flat" if best == "sharded" else "sharded"
            seconds, others = getattr(links, best), getattr(links, other)
            wire = f"about {seconds:.3g} s of a round on the wire at {links.rate * 8 / 1e6:.3g} Mbit/s"
            return f"{who}: {wire}; {other} {others:.3g} s"
        if self.reduction != "sharded" or not self._able:
            return ""
        return who if best == "sharded" else f"{who}; sharded takes {NEEDS}"

    def _links(self, workers: Collection[str]) -> Links:
        """Return what is known of some workers' links; one that nobody has measured carries any number of bytes."""
        hosts = {urlsplit(worker).hostname for worker in workers}
        rates = [rate for rate in list(self._able.values()) if rate is not None]  # a copy: others' threads ask, too
        rate = median(rates) if rates else inf
        return Links(len(workers), len(hosts), self._size, self._width * self.bucket, rate)

    def ways(self, asks: Sequence[Ask], together: Mapping[str, Way]) -> dict[str, Way]:
        """Begin a round; return how it is reduced by those that do so among themselves.

        `together`: how those of one host send together.
        """
        if asks and asks[0][1].epoch != self._epoch:
            self._epoch, self._alone = asks[0][1].epoch, set()
        tasks = self._peers(asks, together)
        if self._links(tasks).best(self.reduction) == "flat":
            return {}
        wholes = tuple(whole(task, together.get(worker)) for worker, task in tasks.items())
        peers, shares = tuple(tasks), [(task.start, task.stop) for task in wholes]
        mesh, known, _ = self._mesh
        is_new = self._mesh[1:] != (peers, shares)
        self._mesh = mesh if mesh and known == peers else secrets.token_hex(16), peers, shares
        train = all(task.kind == "train" for task in tasks.values())
        everybody = set(range(len(peers))) if train else set[int]()
        self._round = Round(tasks, {worker: set(everybody) for worker in peers})
        ways = {worker: Sharded(self._mesh[0], place, peers, wholes, is_new) for place, worker in enumerate(peers)}
        return {worker: with_peers(together.get(worker), way) for worker, way in ways.items()}

    def _peers(self, asks: Sequence[Ask], together: Mapping[str, Way]) -> dict[str, Task]:
        """Return one worker of each host, which sends for others as well if any does, and its task."""
        peers: dict[str | None, Ask] = {}
        for worker, task in sorted(asks, key=lambda ask: not isinstance(together.get(ask[0]), Joint)):
            if self.may_reduce(worker) and worker not in self._alone and not isinstance(together.get(worker), Via):
                peers.setdefault(urlsplit(worker).hostname, (worker, task))
        return dict(peers.values())

    # -- what comes -----------------------------------------------------------------------------------------------

    def answered(self, worker: str, answer: Answer, delivered: frozenset[int] | None) -> bool:
        """Take an answer, with the places of those whose sums came before it, None if it was sent as ever.

        Return whether it counts at once, since it is none of a peer.
        """
        round = self._round
        if round is None or round.tasks.get(worker) != answer.task:
            return True
        round.first = round.first or monotonic() - round.began
        place = round.place(worker)
        round.answers[worker] = answer
        round.due[worker] = round.owed[worker] & round.absent
        lost = {place}
        if delivered is None:
            round.owed[worker].clear()
        else:
            missed = {other for other, owed in enumerate(round.owed.values()) if place in owed} - delivered
            lost |= self._blame(round, place, missed)
            for other, owed in enumerate(round.owed.values()):
                if other in delivered:
                    owed.discard(place)
        self._lose(round, lost)
        return False

    def passed(self, peer: str, worker: str, answer: Answer) -> bool:
        """Take an answer of another worker of its host that a peer passes on after its own; return as `answered`."""
        if self._round is None or peer not in self._round.answers:
            return True
        self._round.passed.setdefault(peer, []).append((worker, answer))
        return False

    def lacks(self, worker: str, task: Task, places: frozenset[int]) -> bool:
        """Take note that parameters have not come to a worker; return whether it is still to have them."""
        round = self._round
        if round is None or round.tasks.get(worker) != task:
            self._complete.append((worker, Answer(task, (), 0.0)))
            return False
        place = round.place(worker)
        self._lose(round, {place} | self._blame(round, place, set(places)))
        return True

    def sent_again(self, worker: str, task: Task, places: frozenset[int]) -> None:
        """Take note that a worker has sent what some owners have not delivered."""
        round = self._round
        if round is not None and round.tasks.get(worker) == task:
            round.owed[worker] -= places
            self._settle(round)

    def end(self) -> None:
        """End the round: whoever has answered and is owed something is free again, with nothing to add."""
        round, self._round = self._round, None
        if round is not None:
            held = [*round.answers.items(), *chain.from_iterable(round.passed.values())]
            self._complete += [(worker, Answer(answer.task, (), 0.0)) for worker, answer in held]

    # -- what is to be done ---------------------------------------------------------------------------------------

    def rest(self) -> float:
        """Return the seconds until the owners that have not answered are not waited for any more."""
        round = self._round
        if round is None or round.first is None or len(round.absent) == len(round.tasks):
            return inf
        return max(0.0, round.began + round.first + max(LEAST, round.first) - monotonic())

    @property
    def held(self) -> list[str]:
        """Workers that have answered, and wait for what others are to deliver."""
        if self._round is None:
            return []
        return [*self._round.answers, *(worker for ones in self._round.passed.values() for worker, _ in ones)]

    def complete(self) -> list[tuple[str, Answer]]:
        """Return the answers that count since the last call."""
        round = self._round
        if round is not None and self.rest() == 0:
            silent = set(range(len(round.tasks))) - round.absent
            self._fault(round)
            self._leave_out(round, silent)
            self._lose(round, silent)
        complete, self._complete = self._complete, []
        return complete

    def to_send_again(self) -> Iterator[tuple[str, Task, set[int]]]:
        """Yield who is to send itself what which owners will not deliver, once for each of them."""
        round = self._round
        if round is None:
            return
        due, round.due = round.due, {}
        for worker, found in due.items():
            places = found & round.owed[worker]
            if worker in round.answers and places:
                yield worker, round.tasks[worker], places

    def _lose(self, round: Round, places: Iterable[int]) -> None:
        """Await nothing more from some owners."""
        lost = set(places) - round.absent
        round.absent |= lost
        for worker in round.answers:
            round.due.setdefault(worker, set()).update(round.owed[worker] & lost)
        self._settle(round)

    def _settle(self, round: Round) -> None:
        """Have the answers count of which all sums have come."""
        for worker in [worker for worker in round.answers if not round.owed[worker]]:
            self._complete += [(worker, round.answers.pop(worker)), *round.passed.pop(worker, [])]

    def _fault(self, round: Round) -> None:
        """Have the connections of this round not used in another."""
        round.faulty = True
        self._mesh = "", (), []

    def _blame(self, round: Round, place: int, missed: set[int]) -> set[int]:
        """Leave out whom the first misses that misses anyone: itself, if that is more than half; return whom."""
        if not missed or round.faulty:
            return set()
        self._fault(round)
        blamed = missed if 2 * len(missed) <= len(round.tasks) else {place}
        self._leave_out(round, blamed)
        return blamed

    def _leave_out(self, round: Round, places: set[int]) -> None:
        """Have some take no part for the rest of the epoch."""
        self._alone |= {worker for place, worker in enumerate(round.tasks) if place in places}


def parts(way: Sharded | None, parameters: Vector, bucket: int) -> Iterator[tuple[Header, list[Vector]]]:
    """Yield messages with those parameters that a worker gets from the driver and owns, if workers own some."""
    if way is None:
        return
    buckets = Cut(len(parameters), bucket)
    for offset in buckets.owned(way.place, len(way.peers)):
        yield encode_part(way.tasks[way.place], offset, parameters[buckets.place(offset)])
