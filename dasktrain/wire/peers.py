"""On the driver: which workers reduce among themselves, in what way, and which of their answers count."""

import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import inf
from statistics import median
from time import monotonic
from urllib.parse import urlsplit

from dasktrain import cut
from dasktrain.cut import Cut
from dasktrain.messages import Answer, Bucket, State, Task
from dasktrain.reduce import Node
from dasktrain.topology import AMONG, FEWEST, SLOW, USUAL, Links, Reduction
from dasktrain.wire.channel import Message
from dasktrain.wire.handout import Handout, over, values
from dasktrain.wire.member import SILENCE
from dasktrain.wire.parties import Ask
from dasktrain.wire.rounds import Round
from dasktrain.wire.routes import Routes, routes_along
from dasktrain.wire.ways import Among, Joint, Via, Way, among, whole, with_peers

#: after the first answer of a round the others are waited for as long again as that took, and at least so many seconds,
#: in which whoever peers wait for, see `member.SILENCE`, has answered or was missed; as many for what is sent again
LEAST = 2 * SILENCE
#: seconds between looks at who is held
LOOK = 0.25
#: what must be for workers to reduce among themselves
NEEDS = f"workers on {FEWEST} or more hosts from the beginning, and over {(FEWEST - 1) * cut.LEAST:,} parameters"


@dataclass(frozen=True, slots=True)
class Mesh:
    """Peers that are connected, and what they have been told."""

    name: str
    peers: tuple[str, ...]
    reduction: Reduction
    routes: Routes


class Peers:
    """Workers that can reduce among themselves, and those that do in the round under way.

    They are on other hosts than the driver, one on each: if several share one, that which sends together with others
    reduces for all of these, see :class:`dasktrain.wire.parties.Parties`, and who is not among them gets and sends all
    as ever. There must not be tables, whose rows go to each worker alone.

    An answer of a peer counts when all of its sums have come, whoever sent them; and with it those that it has passed
    on. Whom the first misses that misses anyone is left out for the rest of the epoch; what follows from that is not
    held against anybody.
    """

    def __init__(self) -> None:
        self.reduction: Reduction = "flat"
        self._size, self._width = 0, 1  # bytes of the parameters, 0 if they cannot be sharded, and of each
        self.bucket = cut.SIZE
        self._numbers = 0  # in all of a gradient
        self._able: dict[str, float | None] = {}  # worker -> bytes a second, if they were measured
        self._alone: set[str] = set()
        self._epoch = -1
        self._shards = 0
        self._workers: Collection[str] = ()  # that there were at first
        self._told = 0.0  # when, on the monotonic clock, it was told who is held
        self._mesh: Mesh | None = None
        self._round: Round | None = None
        self._complete: list[tuple[str, Answer]] = []
        self._handout = Handout()
        self._can_step = False  # whether owners can step states
        self._steps = False  # whether they do in this round

    # -- who ------------------------------------------------------------------------------------------------------

    def add(self, worker: str, rate: float | None) -> None:
        """Take note of a worker that can, and of the bytes a second that go there, if they were measured."""
        self._able[worker] = rate

    def forget(self, worker: str) -> list[Ask]:
        """Take note of a worker's end; return what is to be asked anew, since it had passed on what may be lost."""
        self._able.pop(worker, None)
        self._handout.forget(worker)
        if self._mesh is not None and worker in self._mesh.peers:
            self._mesh = None  # whoever comes back knows nothing of it
        round = self._round
        if round is None:
            return []
        round.passed = {peer: [one for one in ones if one[0] != worker] for peer, ones in round.passed.items()}
        if worker not in round.tasks:
            return []
        round.answers.pop(worker, None)
        self._fault(round)
        round.lose([round.places[worker]])
        return [(other, answer.task) for other, answer in round.passed.pop(worker, [])]

    def may_reduce(self, worker: str) -> bool:
        """Return whether a worker might take part in the next round."""
        return self.reduction != "flat" and worker in self._able

    @property
    def may_step(self) -> bool:
        """Whether workers may come to own parameters and to step them, as far as they are there from the beginning."""
        return self._can_step and self.reduction in ("auto", "sharded") and self._links(self._workers).can_share

    def choose(self, reduction: Reduction, state: State, shards: int, workers: Sequence[str]) -> None:
        """Reduce states like this one in some way from the next round on; so far there are these workers."""
        self.reduction, self._shards, self._workers = reduction, shards, workers
        can_share = not state.tables and state.parameters.nbytes >= state.buffers.nbytes
        self._size = state.parameters.nbytes if can_share else 0
        self._width = state.parameters.itemsize
        self._numbers, self._can_step = len(state.parameters), state.steps is not None
        self._cut_for(workers, SLOW)

    def settle(self) -> None:
        """Cut gradients as suits the links that were measured, and all workers that there are."""
        rate = self._links(self._able).rate
        self._cut_for(max(self._workers, list(self._able), key=_hosts_of), rate if rate < inf else USUAL)

    def _cut_for(self, workers: Collection[str], rate: float) -> None:
        links = replace(self._links(workers), rate=rate).cut(self.reduction, self._width)
        self.bucket = links.bucket // self._width

    def depends(self, workers: Collection[str]) -> bool:
        """Return whether, if these are the workers, it depends on their links how they reduce, or in what buckets."""
        return self.reduction != "flat" and self._links(workers).can_share

    def chosen(self) -> str:
        """Return what is to be told: nothing, unless it depended on links, or workers were to reduce."""
        links = self._links(self._able)
        best = links.best(self.reduction)
        told = _in_words(links, best)
        if self.depends(self._able) and links.rate < inf:
            wire = f"about {links.seconds(best):.3g} s of a round on the wire at {links.rate * 8 / 1e6:.3g} Mbit/s"
            others = (f"{way} {links.seconds(way):.3g} s" for way in ("flat", *AMONG) if way != best)
            return f"{told}: {wire}; {', '.join(others)}"
        if self.reduction not in AMONG or not self._able:
            return ""
        return told if best == self.reduction else f"{told}; {self.reduction} takes {NEEDS}"

    def _links(self, workers: Collection[str]) -> Links:
        """Return what is known of some workers' links; one that nobody has measured carries any number of bytes."""
        rates = [rate for rate in list(self._able.values()) if rate is not None]  # a copy: others' threads ask, too
        rate = median(rates) if rates else inf
        bucket = self._width * self.bucket
        return Links(len(workers), _hosts_of(workers), self._shards, self._size, bucket, rate, self._can_step)

    def ways(self, asks: Sequence[Ask], together: Mapping[str, Way]) -> dict[str, Way]:
        """Begin a round; return how it is reduced by those that do so among themselves.

        `together`: how those of one host send together.
        """
        if asks and asks[0][1].epoch != self._epoch:
            self._epoch, self._alone = asks[0][1].epoch, set()
            self._handout.begin_epoch()
        tasks = self._one_of_each_host(asks, together)
        links = self._links(tasks)
        best = links.best(self.reduction)
        if best == "flat":
            return {}
        wholes = tuple(whole(task, together.get(worker)) for worker, task in tasks.items())
        sums = all(task.kind == "train" for task in tasks.values())
        is_new = self._meet(tuple(tasks), best, [(task.start, task.stop) for task in wholes], sums)
        mesh = self._mesh
        assert mesh is not None
        self._round = Round(tasks, mesh.routes)
        self._steps = best == "sharded" and links.owners_step and mesh.routes.tops == {(0, self._shards)}
        ways = {
            worker: Among(mesh.name, place, mesh.peers, wholes, best, is_new) for place, worker in enumerate(mesh.peers)
        }
        return {worker: with_peers(together.get(worker), way) for worker, way in ways.items()}

    def parts(self, way: Way, state: State) -> Iterator[Message]:
        """Yield messages with those parameters that a worker among peers gets from the driver, if it is one."""
        peers = among(way)
        if peers is None:
            return
        assert self._round is not None
        routes, whole = self._round.routes, self._round.whole
        worker, offsets = peers.peers[peers.place], routes.given(peers.place)
        told = state if self._steps else replace(state, steps=None)
        yield from self._handout.parts(worker, peers.mesh, whole, routes.cut, offsets, told)

    def unlike(self, worker: str, task: Task, offsets: Collection[int], state: State | None) -> Iterator[Message]:
        """Take note that owned buckets have not become what they should; yield them, or that they are gone."""
        self._handout.unlike(worker)
        round = self._round
        if round is not None and state is not None and round.whole == task:
            yield from values(task, round.routes.cut, offsets, state)
        else:
            yield from over(task, offsets)

    def _meet(self, peers: tuple[str, ...], reduction: Reduction, runs: list[Node], sums: bool) -> bool:
        """Have peers know each other that compute some runs of shards; return whether they are to be told of that.

        `sums`: whether it matters which. Parameters take any way that there is.
        """
        known = self._mesh
        is_known = known is not None and (known.peers, known.reduction) == (peers, reduction)
        if known is not None and is_known and (known.routes.runs == tuple(runs) or not sums):
            return False
        routes = routes_along(reduction, runs, self._shards, Cut(self._numbers, self.bucket))
        stay = known is not None and known.peers == peers and known.routes.connects_like(routes)
        name = known.name if known is not None and stay else secrets.token_hex(16)
        self._mesh = Mesh(name, peers, reduction, routes)
        return True

    def _one_of_each_host(self, asks: Sequence[Ask], together: Mapping[str, Way]) -> dict[str, Task]:
        """Return one worker of each host, which sends for others as well if any does, and its task."""
        peers: dict[str | None, Ask] = {}
        for worker, task in sorted(asks, key=lambda ask: not isinstance(together.get(ask[0]), Joint)):
            if self.may_reduce(worker) and worker not in self._alone and not isinstance(together.get(worker), Via):
                peers.setdefault(urlsplit(worker).hostname, (worker, task))
        return dict(peers.values())

    # -- what comes -----------------------------------------------------------------------------------------------

    def received(self, worker: str, bucket: Bucket) -> None:
        """Take note of a bucket of a gradient, of whatever is summed by a worker or others."""
        if self._round is not None:
            self._round.received(worker, bucket)

    def answered(self, worker: str, answer: Answer, missed: frozenset[int] | None) -> bool:
        """Take an answer, with the places of those whom its worker missed, None if it was sent as ever.

        Return whether it counts at once, since it is none of a peer.
        """
        round = self._round
        if round is None or round.tasks.get(worker) != answer.task:
            if missed:
                self._mesh = None  # who missed another in an earlier round meets no more in its mesh
            if round is not None and round.faulty:
                round.stir()  # it may have computed what was lost
            return True
        self._blame(round, round.places[worker], missed or frozenset())
        round.answered(worker, answer, missed)
        return False

    def passed(self, peer: str, worker: str, answer: Answer) -> bool:
        """Take an answer of another worker of its host that a peer passes on before its own; return as `answered`."""
        if self._round is None or peer not in self._round.tasks:
            return True
        self._round.passed.setdefault(peer, []).append((worker, answer))
        return False

    def lacks(self, worker: str, task: Task, places: frozenset[int]) -> bool:
        """Take note that parameters have not come to a worker; return whether it is still to have them."""
        round = self._round
        if round is None or round.tasks.get(worker) != task:
            self._mesh = None  # it meets no more in its mesh
            self._complete.append((worker, Answer(task, (), 0.0)))
            return False
        round.lose([round.places[worker]])
        self._blame(round, round.places[worker], places)
        return True

    def sent_again(self, worker: str, task: Task, places: frozenset[int]) -> None:
        """Take note that a worker has sent again what it had sent to some peers."""
        round = self._round
        if round is not None and round.tasks.get(worker) == task:
            round.sent_again(round.places[worker], places)

    def end(self) -> None:
        """End the round: whoever has answered and is waited for is free again, with nothing to add."""
        round, self._round = self._round, None
        if round is not None:
            held = [*round.answers.items(), *chain.from_iterable(round.passed.values())]
            self._complete += [(worker, Answer(answer.task, (), 0.0)) for worker, answer in held]

    # -- what is to be done ---------------------------------------------------------------------------------------

    def rest(self) -> float:
        """Return the seconds until peers that have not answered are not waited for any more."""
        return inf if self._round is None else self._round.rest(LEAST)

    @property
    def held(self) -> list[str]:
        """Workers that have answered, and wait for what others are to send on."""
        return [] if self._round is None else self._round.held

    def waits(self) -> list[str]:
        """Return who is held, now and then: there may be many, and much else to look at."""
        if (now := monotonic()) - self._told < LOOK:
            return []
        self._told = now
        return self.held

    def complete(self) -> list[tuple[str, Answer]]:
        """Return the answers that count since the last call."""
        round = self._round
        if round is not None:
            if late := round.late(LEAST):
                self._fault(round)
                self._leave_out(round, late)
            for worker in round.complete():
                self._complete += [(worker, round.answers.pop(worker)), *round.passed.pop(worker, [])]
        complete, self._complete = self._complete, []
        return complete

    def to_send_again(self) -> Iterator[tuple[str, Task, set[int]]]:
        """Yield who is to send itself what it had sent to whom, once for each of them."""
        if self._round is not None:
            for worker, places in self._round.to_send_again().items():
                yield worker, self._round.tasks[worker], places

    def _fault(self, round: Round) -> None:
        """Have the connections of this round not used in another."""
        round.faulty = True
        self._mesh = None

    def _blame(self, round: Round, place: int, missed: Collection[int]) -> None:
        """Leave out whom the first misses that misses anyone: itself, if that is more than half of those it knows."""
        if missed and not round.faulty:
            self._fault(round)
            known = len(round.routes.neighbours(place)) + 1
            self._leave_out(round, missed if 2 * len(missed) <= known else {place})

    def _leave_out(self, round: Round, places: Collection[int]) -> None:
        """Await nothing more from some, and have them take no part for the rest of the epoch."""
        round.lose(places)
        self._alone |= {worker for worker, place in round.places.items() if place in places}


def _hosts_of(workers: Collection[str]) -> int:
    """Return how many hosts some workers are on."""
    return len({urlsplit(worker).hostname for worker in workers})


def _in_words(links: Links, reduction: Reduction) -> str:
    """Say who reduces, and how."""
    if reduction in AMONG:
        how = " along a tree" if reduction == "tree" else ""
        return f"{links.workers} workers on {links.hosts} hosts reduce among themselves{how} ({reduction})"
    if links.hosts < links.workers:
        return "the driver reduces what workers of a host add up (host pre-reduce)"
    return "the driver reduces (flat)"
