"""What shards keep between rounds: lost, late, torn, done again, and never counted twice."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import numpy as np
import pytest
import torch

import dasktrain as dt
import dasktrain.driver
from dasktrain.errors import BadInput, NonFinite, ReductionError, WorkerLost
from dasktrain.events import Answered, Event, Failed, Joined, Left, Ready, Slow
from dasktrain.fleet import Fleet
from dasktrain.messages import Answer, Failure, Partial, State, Task
from dasktrain.replica import Replica
from dasktrain.shipping import run_packed
from dasktrain.vector import plain_memory
from dasktrain.wire.lease import answered
from dasktrain.wire.tables import Changes, Copy
from tests.small import Watcher, fit, table

SETTINGS: dict[str, Any] = {"epochs": 1, "shards": 4, "batch_size": 14}


def trained(compression: Any, wire: dt.LocalWire | None = None, **settings: Any) -> dt.Result:
    return fit(table(120), wire, compression=compression, **(SETTINGS | settings))


class Late(dt.LocalWire):
    """Has an answer of the second worker come while its round is asked for a second time, of others."""

    held: Event | None = None
    delivered = False

    def send(self, worker: str, task: Task) -> None:
        late = task.kind == "train" and task.round == 3 and worker == self.workers[1]
        if late and self.held is None:
            super().send(worker, task)
            self.held = self._events.pop()
            self._events.appendleft(Slow(worker))
            return
        if (task.round, task.start, task.stop) == (3, 0, 4) and self.held is not None and not self.delivered:
            self._events.append(self.held)
            self.delivered = True
        super().send(worker, task)


def test_an_answer_to_the_first_attempt_is_none_to_the_second() -> None:
    wire, watcher = Late(2), Watcher()
    with dask.config.set({"dasktrain.timeouts.round": "5s"}):
        found = trained(dt.TopK(0.5, every=4), wire, observers=[watcher])
    assert wire.delivered
    assert found.digest == trained(dt.TopK(0.5, every=4)).digest
    assert [text for text in watcher.stages if "done again" in text] == [
        "rounds 0 to 3 of epoch 0 are done again, for what was lost with a worker"
    ]


class Turning:
    """A replica during whose answer the driver changes its memory."""

    def __init__(self, replica: Any, channel: Any) -> None:
        self._replica, self._channel = replica, channel
        self.forget = replica.forget

    def __call__(self, task: Task, state: State) -> Any:
        self._channel.stale = True
        return self._replica(task, state)


class Torn(dt.LocalWire):
    """Workers read the driver's memory where it lies, one of them while it changes, which then has to stand in."""

    phase = 0

    def _copied(self, worker: str, state: State) -> State:
        return state

    def send(self, worker: str, task: Task) -> None:
        _, late, spare = self.workers
        if self.phase == 0 and task.round == 0 and worker == late:
            assert self._state is not None
            self.phase, self.held = 1, task
            self._events.appendleft(Slow(late))
        elif self.phase == 1 and task.round == 1 and worker == spare:
            self.phase = 2
            assert self._state is not None
            # Of round 0, from the parameters of round 1, as a lease does that finds its state changed meanwhile.
            channel: Any = SimpleNamespace(stale=False)
            respond: Any = Turning(self._replicas[late], channel)
            answer = answered(channel, respond, self.held, self._state)
            assert isinstance(answer, Answer)
            self._events.appendleft(Left(spare, "it was killed"))
            self.release(spare)
            self._events.appendleft(Answered(late, answer))  # before the first worker is idle as well
        else:
            super().send(worker, task)


@pytest.mark.parametrize("compression", [dt.TopK(0.5, every=4), dt.PowerSGD(1, every=4)], ids=str)
def test_what_was_kept_of_torn_parameters_is_forgotten(compression: Any) -> None:
    wire = Torn(3)
    assert trained(compression, wire, shards=2).digest == trained(compression, shards=2).digest
    assert wire.phase == 2


class Counting(dt.LocalWire):
    """Counts the memory that replicas take."""

    taken = 0

    def lease(self, worker: str, task: Task) -> None:
        def memory(size: int) -> Any:
            self.taken += 1
            return plain_memory(size)

        replica: Replica = run_packed(self._replica, self._read, memory, partial(self._received, worker))
        self._replicas[worker] = replica
        self._events.append(Ready(worker, replica.domain()))


@pytest.mark.parametrize("compression", [dt.Rounding(), dt.TopK(0.5)], ids=str)
def test_gradients_of_microbatches_lie_in_memory_that_is_used_again(compression: Any) -> None:
    taken = set()
    for epochs in (1, 3):
        wire = Counting()
        trained(compression, wire, epochs=epochs, compute=dt.Compute(microbatch=2))
        taken.add(wire.taken)
    assert len(taken) == 1


def test_microbatches_give_the_same_bits_on_any_number_of_workers() -> None:
    digests = {
        trained(dt.PowerSGD(1, every=4), dt.LocalWire(workers), compute=dt.Compute(microbatch=2)).digest
        for workers in (1, 3)
    }
    assert len(digests) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("compression", [dt.Rounding("int8"), dt.Rounding("float16"), dt.TopK(0.5)], ids=str)
def test_parameters_that_are_not_finite_end_the_run(compression: Any, bad: float) -> None:
    class Breaks(torch.optim.SGD):
        taken = 0

        def step(self, *arguments: Any) -> None:  # type: ignore[override]
            super().step(*arguments)
            self.taken += 1
            if self.taken == 3:
                self.param_groups[0]["params"][0].data[0, 0] = bad

    with pytest.raises(NonFinite, match="round 3"):
        trained(compression, optimizer=partial(Breaks, lr=0.1))


class Socket(dt.LocalWire):
    """Does to parameters what a connection does; gradients of one round are not finite."""

    def __init__(self, workers: int, bad: int = -1) -> None:
        super().__init__(workers)
        self._bad = bad
        self.seen: Callable[[Any], object] = lambda parameters: None
        self.changes, self.copies = Changes(), dict[str, Copy]()
        self.rounds: list[int] = []
        self.whole: list[tuple[str, int]] = []  # the parameters that are sent
        self.lost = ""  # in its round 3, once

    @contextmanager
    def round(self, state: State) -> Iterator[None]:
        self.changes.begin(state)
        self._state = state
        yield
        self._state = None

    def send(self, worker: str, task: Task) -> None:
        assert self._state is not None
        if worker == self.lost and task.round == 3:
            self.lost = ""
            self.release(worker)
            self._events.append(Left(worker, "it was killed"))
            return
        if self._state.change is None:  # nor are there tables
            super().send(worker, task)
            return
        header, arrays = self.changes.encode(worker, task, self._state)
        if not header["change"]:
            self.whole.append((worker, task.round))
        _, state = self.copies.setdefault(worker, Copy()).decode(header, [array.tobytes() for array in arrays])
        assert state.parameters.tobytes() == self._state.parameters.tobytes()
        self.seen(state.parameters.copy())
        self.rounds.append(task.round)
        reply = self._replicas[worker](task, state)
        if isinstance(reply, Answer) and task.round == self._bad:
            spoilt = (replace(part, sums=part.sums * np.nan) for part in reply.partials if part.sums is not None)
            reply = replace(reply, partials=tuple(spoilt))
        self._events.append(Failed(worker, reply) if isinstance(reply, Failure) else Answered(worker, reply))


@pytest.mark.parametrize("compression", [dt.Rounding(), dt.TopK(0.5)], ids=str)
def test_who_is_to_blame_is_looked_for_with_the_parameters_of_the_round(compression: Any) -> None:
    wire = Socket(2, bad=2)
    with pytest.raises(NonFinite):
        trained(compression, wire)
    assert wire.rounds == [0, 0, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("compression", [dt.Rounding(), dt.TopK(0.5, every=4)], ids=str)
def test_parameters_are_sent_whole_once(compression: Any) -> None:
    wire = Socket(2)
    trained(compression, wire, epochs=2, validation=table(120))
    assert wire.whole == [(worker, 0) for worker in wire.workers]


def test_whoever_goes_back_is_sent_the_parameters_of_then() -> None:
    wire = Socket(3)
    wire.lost = wire.workers[2]
    one, other, _ = wire.workers
    assert trained(dt.TopK(0.5, every=4), wire).digest == trained(dt.TopK(0.5, every=4)).digest
    assert {(one, 0), (other, 0)} <= set(wire.whole[3:])


@pytest.mark.parametrize("compression", [dt.Rounding("float16"), dt.TopK(0.5, every=4)], ids=str)
def test_workers_begin_with_what_observers_put_into_parameters(compression: Any) -> None:
    class Loads(dt.Observer):
        def start(self, run: Any) -> None:
            with torch.no_grad():
                run.state.parameters.vector.mul_(-2.0)
            self.begun = run.state.parameters.vector.clone()

    wire, loads = Socket(2), Loads()
    first: list[Any] = []
    wire.seen = first.append
    trained(compression, wire, observers=[loads], max_rounds=1)
    assert first[0].tobytes() == loads.begun.numpy().tobytes()


class Vanishing(dt.LocalWire):
    """Loses all workers in a round."""

    def __init__(self, round: int) -> None:
        super().__init__(1)
        self._at = round

    def send(self, worker: str, task: Task) -> None:
        if task.round < self._at:
            super().send(worker, task)
            return
        self.release(worker)
        self._events.append(Left(worker, "it was killed"))


@pytest.mark.parametrize("compression", [dt.TopK(0.5, every=4), dt.PowerSGD(1, every=4)], ids=str)
def test_a_run_without_workers_leaves_where_they_were_when_it_last_stepped(compression: Any, tmp_path: Path) -> None:
    url = str(tmp_path)
    with dask.config.set({"dasktrain.timeouts.workers": "0.1s"}), pytest.raises(WorkerLost):
        trained(compression, Vanishing(4), observers=[dt.Checkpoint(url)])
    assert trained(compression, resume=url).digest == trained(compression).digest


class Digests(dt.Observer):
    """Keeps the digest after each round."""

    def start(self, run: Any) -> None:
        self.run, self.told = run, list[str]()

    def round(self, record: dict[str, Any]) -> None:
        self.told.append(self.run.state.digest)


def test_workers_lost_while_a_stretch_is_done_again_leave_what_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    drivers: list[Any] = []

    class Interrupted(dt.LocalWire):
        """Loses a worker in round 5, and all of them, to Ctrl-C, while round 4 is done again."""

        phase = 0

        def send(self, worker: str, task: Task) -> None:
            if task.round == 5 and worker == self.workers[1] and self.phase == 0:
                self.phase = 1
                self._go(worker)
            elif task.round == 4 and self.phase == 1 and (task.start, task.stop) == (0, 4):
                self.phase = 2
                drivers[0].stop.set()
                self._go(worker)
            else:
                super().send(worker, task)

        def _go(self, worker: str) -> None:
            self.release(worker)
            self._events.append(Left(worker, "it was killed"))

    begin = dasktrain.driver.Driver.__post_init__

    def begun(driver: Any) -> None:
        begin(driver)
        drivers.append(driver)

    monkeypatch.setattr(dasktrain.driver.Driver, "__post_init__", begun)
    with dask.config.set({"dasktrain.timeouts.workers": "1s"}):
        found = trained(dt.TopK(0.5, every=3), Interrupted(2))
    assert found.ended == "interrupt"
    trained(dt.TopK(0.5, every=3), observers=[alone := Digests()])
    assert len(found.history.rounds) == 3
    assert found.digest == alone.told[2]


class Wrong(dt.LocalWire):
    """Does something to the second answer."""

    def __init__(self, make: Callable[[Answer], Answer]) -> None:
        super().__init__(1)
        self._make, self._answers = make, 0

    def send(self, worker: str, task: Task) -> None:
        super().send(worker, task)
        event = self._events.pop()
        assert isinstance(event, Answered)
        self._answers += 1
        self._events.append(Answered(worker, self._make(event.answer)) if self._answers == 2 else event)


def without(answer: Answer) -> Answer:
    return replace(answer, partials=())


def of_nobody(answer: Answer) -> Answer:
    return replace(answer, partials=tuple(replace(part, sums=None) for part in answer.partials))


def in_one_piece(answer: Answer) -> Answer:
    first, second, *others = answer.partials
    return replace(answer, partials=(replace(first, stop=second.stop), *others))


@pytest.mark.parametrize(
    ("make", "compression", "match"),
    [
        (without, None, "must send sums of shards 0 to 3, however it sent none"),
        (without, dt.Rounding(), "must send sums of shards 0 to 3, however it sent none"),
        (of_nobody, dt.Rounding(), "must have scalars and numbers, or neither"),
        (of_nobody, dt.PowerSGD(1), "must have scalars and numbers, or neither"),
        (in_one_piece, dt.PowerSGD(1), r"must be sent shard by shard, however \[0, 2\) came"),
    ],
)
def test_answers_that_cannot_be_are_refused(make: Any, compression: Any, match: str) -> None:
    with pytest.raises(ReductionError, match=match):
        trained(compression, Wrong(make))


@pytest.mark.parametrize("wrong", ["int8", dt.TopK, 4])
def test_a_compression_is_one(wrong: Any) -> None:
    with pytest.raises(BadInput, match=r"compression must be like dt.Rounding\(\), dt.TopK\(\) or dt.PowerSGD\(\)"):
        trained(wrong)


def test_who_joins_waits_for_the_end_of_the_stretch_as_long_as_the_others_are_there() -> None:
    fleet = Fleet(4)

    def join(*workers: str) -> None:
        for worker in workers:
            fleet.take(Joined(worker))
            fleet.take(Ready(worker, {}))

    def shares(round: int, as_before: bool) -> dict[str, tuple[int, int]]:
        fleet.begin(Task("", "train", 0, round, 0, 4), as_before)
        asked = dict(fleet.busy)
        for worker, task in asked.items():
            fleet.take(Answered(worker, Answer(task, (Partial(task.start, task.stop, None, None),), 0.0)))
        return {worker: (task.start, task.stop) for worker, task in asked.items()}

    join("a", "b")
    assert shares(0, as_before=False) == {"a": (0, 2), "b": (2, 4)}
    join("c")
    assert shares(1, as_before=True) == {"a": (0, 2), "b": (2, 4)}
    assert shares(2, as_before=False).keys() == {"a", "b", "c"}
    fleet.take(Left("b", "it was killed"))
    assert shares(3, as_before=True).keys() == {"a", "c"}
