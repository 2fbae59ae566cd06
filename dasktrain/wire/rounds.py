"""On the driver: what has come of a round that workers reduce among themselves, and what will not come by itself."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from math import inf
from time import monotonic

from dasktrain.messages import Answer, Bucket, Task
from dasktrain.reduce import Node, subtrees
from dasktrain.wire.coverage import Coverage
from dasktrain.wire.routes import Routes

#: the first bucket of those that take one way, all of them as bits, and who alone adds them
Lane = tuple[int, int, int | None]


class Round:
    """What has come of a round.

    Parameters
    ----------
    tasks
        Of the peers, in the order of their places.
    routes
        Among them.

    Attributes
    ----------
    whole : Task
        All that is computed in it.
    places : dict
        Of the peers.
    answers : dict
        Of peers that have answered, and whose sums have not all come.
    passed : dict
        Of peers, answers of others of their host, whose sums are among theirs: the worker and its answer.
    missed : dict
        Of places that have answered, those whom they missed.
    silent : set of int
        Places of peers that have not answered, and may.
    """

    def __init__(self, tasks: dict[str, Task], routes: Routes) -> None:
        self.tasks, self.routes = tasks, routes
        self.places = {worker: place for place, worker in enumerate(tasks)}
        self.answers: dict[str, Answer] = {}
        self.passed: dict[str, list[tuple[str, Answer]]] = {}
        self.missed: dict[int, frozenset[int]] = {}
        self.silent = set(self.places.values())
        self._absent: set[int] = set()  # places of peers that will not send others' sums any more
        self.faulty = False
        self._began = monotonic()
        self._first: float | None = None  # seconds until the first answer
        self._coverage = Coverage(routes.shards, routes.cut)
        self._workers = list(tasks)
        self.whole = self._of_all(tasks[self._workers[0]])
        self._asked: set[tuple[int, int]] = set()  # who was to send again what had been sent to whom
        self._sent: set[tuple[int, int]] = set()  # and has
        self._heard: dict[int, float] = {}  # when, on the monotonic clock, whoever is to was asked, or sent a part
        self._mute: set[int] = set()  # who does not do so
        self._fresh: set[str] = set()  # whose answers may count now
        self._is_stirred = False  # whether something may have to be sent again

    def _of_all(self, task: Task) -> Task:
        return replace(task, start=0, stop=self.routes.shards)

    @cached_property
    def _lanes(self) -> list[Lane]:
        """The ways that buckets take."""
        return [(lane[0], self._coverage.bits(lane), owner) for lane, owner in self.routes.lanes()]

    # -- what comes -----------------------------------------------------------------------------------------------

    def received(self, worker: str, bucket: Bucket) -> None:
        """Take note of a bucket that a worker, or any other, sent."""
        if (place := self.places.get(worker)) in self._heard:
            self._heard[place] = monotonic()
        if self._of_all(bucket.task) != self.whole or bucket.offset not in self.routes.cut.offsets:
            return
        if self._coverage.add((bucket.start, bucket.stop), self._coverage.bits([bucket.offset])):
            self.stir()

    def answered(self, worker: str, answer: Answer, missed: frozenset[int] | None) -> None:
        """Take an answer, and whom its worker missed; None: it has sent all to the driver."""
        place = self.places[worker]
        self._first = self._first or monotonic() - self._began
        self.answers[worker], self.missed[place] = answer, missed or frozenset()
        self.silent.discard(place)
        answers = [answer, *(each for _, each in self.passed.get(worker, ()))]
        came = [(part.start, part.stop) for each in answers for part in each.partials if part.sums is None]
        if missed is None:
            self._absent.add(place)
            came += self._nodes(worker)
        for node in came:
            self._coverage.add(node, self._coverage.all)
        self._fresh.add(worker)
        if self.faulty:
            self.stir()

    def sent_again(self, place: int, places: Iterable[int]) -> None:
        """Take note that a peer has sent what it had sent some others."""
        self._sent |= {(place, other) for other in places}
        if all(link in self._sent for link in self._asked if link[0] == place):
            self._heard.pop(place, None)
        self.stir()

    def lose(self, places: Iterable[int]) -> None:
        """Await nothing more from some peers that is not theirs alone."""
        self._absent |= set(places)
        self.silent = self.silent - self._absent
        self.stir()

    def stir(self) -> None:
        """Look at all answers anew: something has come that may be part of any, or will not."""
        self._fresh |= self.answers.keys()
        self._is_stirred = True

    # -- who is late ----------------------------------------------------------------------------------------------

    def rest(self, patience: float) -> float:
        """Return the seconds until somebody may be late, if others are waited for so many seconds at least."""
        return max(0.0, min(self._deadlines(patience), default=inf) - monotonic())

    def late(self, patience: float) -> set[int]:
        """Return who has not answered in time; take note of who does not send again what it was asked for."""
        now = monotonic()
        mute = {place for place, heard in self._heard.items() if heard + patience <= now}
        if mute:
            self._mute |= mute
            self._heard = {place: heard for place, heard in self._heard.items() if place not in mute}
            self.stir()
        is_over = self._first is not None and self._began + self._first + max(patience, self._first) <= now
        return self.silent if is_over else set()

    def _deadlines(self, patience: float) -> Iterator[float]:
        if self._first is not None and self.silent:
            yield self._began + self._first + max(patience, self._first)
        yield from (heard + patience for heard in self._heard.values())

    @property
    def held(self) -> list[str]:
        """Workers that have answered, and wait for what others are to send on."""
        waiting = [worker for worker in self.answers if self.places[worker] not in self._mute]
        return [*waiting, *(worker for ones in self.passed.values() for worker, _ in ones)]

    # -- what has come --------------------------------------------------------------------------------------------

    def complete(self) -> list[str]:
        """Return whose answers count: all sums of its host have come.

        Or whoever was to send them again has done so; if they lack all the same, whoever adds them says so.
        """
        fresh, self._fresh = self._fresh, set()
        return [worker for worker in self.answers if worker in fresh and self._is_complete(worker)]

    def _is_complete(self, worker: str) -> bool:
        if self.whole.kind != "train" or not any(map(self._coverage.lacks, self._nodes(worker))):
            return True
        has_sent = any(sender == self.places[worker] for sender, _ in self._sent)
        return has_sent and all(links[0] in self._sent for links in self._lacking(worker, self._lanes) if links)

    def _nodes(self, worker: str) -> list[Node]:
        """Return the nodes that a peer and those of its host sum that have answered."""
        tasks = [self.tasks[worker], *(answer.task for _, answer in self.passed.get(worker, ()))]
        return [node for task in tasks for node in subtrees(task.start, task.stop, self.routes.shards)]

    def to_send_again(self) -> dict[str, set[int]]:
        """Return who is to send again what it had sent to whom, once for each of them."""
        found: dict[str, set[int]] = {}
        is_stirred, self._is_stirred = self._is_stirred, False
        if is_stirred and (self._absent or not self.silent or any(self.missed.values())):
            gone = self._absent | self.missed.keys()
            lanes = [lane for lane in self._lanes if lane[-1] is None or lane[-1] in gone]
            for worker in self.answers:
                for links in self._lacking(worker, lanes):
                    for sender, adder in self._break(links):
                        found.setdefault(self._workers[sender], set()).add(adder)
        return found

    def _lacking(self, worker: str, lanes: Sequence[Lane]) -> Iterator[list[tuple[int, int]]]:
        """Yield the links by which sums of a peer's host get to the driver, of those that have not come."""
        for node in self._nodes(worker):
            lacks = self._coverage.lacks(node)
            for offset, bits, _ in lanes if lacks else ():
                if lacks & bits:
                    yield self.routes.links(self.places[worker], offset, node)

    def _break(self, links: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Yield the link nearest to the driver over which sums must go again, if there is somebody to send them."""
        broken = False  # whether what went over the links from here on may be lost
        for place, link in reversed(list(enumerate(links))):
            sender, adder = link
            if adder not in self._absent and adder not in self.missed:
                return  # they may be on their way
            broken |= adder in self._absent or sender in self.missed[adder] or place == 0
            if not broken or link in self._sent:
                continue
            if self._workers[sender] in self.answers and sender not in self._mute:
                if link not in self._asked:
                    self._asked.add(link)
                    self._heard[sender] = monotonic()
                    yield link
                return
            if sender in self.silent:
                return  # it is to answer
