"""What every wire must do. A new wire is one more line in `wires`."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import dask
import numpy as np
import pytest
import torch
from distributed import Client
from torch import nn

from dasktrain.buffers import FlatBuffers
from dasktrain.data.block import Batch, Stack
from dasktrain.data.source import strata
from dasktrain.events import Answered, Event, Failed, Joined, Ready, Received
from dasktrain.job import Job
from dasktrain.messages import Answer, Header, Kind, Partial, State, Task, Vector
from dasktrain.plan import Plan
from dasktrain.players import Players
from dasktrain.reduce import subtrees
from dasktrain.replica import Replica
from dasktrain.shipping import pack
from dasktrain.strategies import GradientAveraging
from dasktrain.vector import FlatParameters
from dasktrain.wire import Wire
from dasktrain.wire.channel import Channel, Message
from dasktrain.wire.dask import DaskWire
from dasktrain.wire.local import LocalWire
from tests.problems import PARTITIONS, PROBLEMS

SHARDS = 6
#: rows that replicas are tried with before the first round
SAMPLE = 4
SECONDS = 30.0


@pytest.fixture(params=["local", "dask", "dask in shared memory"])
def wire(request: pytest.FixtureRequest) -> Iterator[Wire]:
    wire: Wire = LocalWire(2) if request.param == "local" else on_dask(request, "shared" in request.param)
    wire.open()
    yield wire
    wire.close()


def on_dask(request: pytest.FixtureRequest, share: bool) -> DaskWire:
    """Return a wire to the cluster of all tests."""
    client = request.getfixturevalue("clean")  # first: its workers would take over the setting
    with dask.config.set({"dasktrain.shared-memory": share}):
        return DaskWire(client)


def awaited(wire: Wire, count: int, of: type[Event]) -> list[Event]:
    """Wait for so many events, all of one kind."""
    events: list[Event] = []
    deadline = monotonic() + SECONDS
    while len(events) < count:
        assert monotonic() < deadline, f"{count} {of.__name__} must come, however only {events} did"
        events += wire.events(deadline - monotonic())
    assert [type(event) for event in events] == [of] * count
    return events


def placed(wire: Wire) -> tuple[Plan, list[str]]:
    """Place the first problem's data; return how it is read, and its fingerprints."""
    data = PROBLEMS[0].data
    surveys = wire.compute(data.survey())
    plan = Plan(strata(surveys, None), SHARDS, 50)
    tasks = data.convert(data.fit(surveys), surveys, by_class=False)
    return plan, wire.place("train", tasks, [wire.workers[0]] * len(surveys))


def joined(wire: Wire, module: nn.Module, fingerprints: list[str] | None = None) -> State:
    """Have the workers join a run of `module`, and lease them."""
    plan, found = placed(wire)
    sample = Batch((torch.zeros(SAMPLE, 6),), torch.zeros(SAMPLE, dtype=torch.long), None, SAMPLE)
    known: dict[Kind, list[str]] = {"train": fingerprints or found}
    players = Players.of(nn.CrossEntropyLoss())
    job = Job(module, players, {}, GradientAveraging(), {"train": plan}, 0, wire.threads, sample, known, Stack())
    wire.attach(pack(Replica, job))
    for event in awaited(wire, 2, Joined):
        assert isinstance(event, Joined)
        wire.lease(event.worker, Task("r", "train", 0, 0, 0, 3))
    parameters, buffers = FlatParameters(module, wire.memory), FlatBuffers(module, wire.memory)
    return State(parameters.vector.numpy(), buffers.vector.numpy())


def attached(wire: Wire, module: nn.Module, fingerprints: list[str] | None = None) -> State:
    """Have every worker be ready for a run of `module`."""
    state = joined(wire, module, fingerprints)
    ready = awaited(wire, 2, Ready)
    assert sorted(event.worker for event in ready if isinstance(event, Ready)) == list(wire.workers)
    return state


def asked(wire: Wire, tasks: dict[str, Task], state: State) -> list[Answer]:
    """Ask each worker once; the answers are good until the next round."""
    with wire.round(state):
        for worker, task in tasks.items():
            wire.send(worker, task)
        return answers(wire, len(tasks))


def answers(wire: Wire, count: int) -> list[Answer]:
    """Wait for so many answers; what came in buckets is put together."""
    found: list[Answer] = []
    received: dict[tuple[Task, int, int], dict[int, Vector]] = {}
    deadline = monotonic() + SECONDS
    while len(found) < count:
        assert monotonic() < deadline, f"{count} answers must come, however only {found} did"
        for event in wire.events(deadline - monotonic()):
            if isinstance(event, Received):
                bucket = event.bucket
                parts = received.setdefault((bucket.task, bucket.start, bucket.stop), {})
                assert bucket.offset not in parts
                parts[bucket.offset] = bucket.values.copy()
            else:
                assert isinstance(event, Answered)
                whole = [in_one_piece(event.answer.task, partial, received) for partial in event.answer.partials]
                found.append(replace(event.answer, partials=tuple(whole)))
    return found


def in_one_piece(task: Task, partial: Partial, received: dict[tuple[Task, int, int], dict[int, Vector]]) -> Partial:
    parts = received.get((task, partial.start, partial.stop))
    if parts is None:
        return partial
    assert partial.vector is None
    return replace(partial, vector=np.concatenate([part for _, part in sorted(parts.items())]))


def test_workers_are_named_sorted_and_alike(wire: Wire) -> None:
    assert list(wire.workers) == sorted(set(wire.workers))
    assert len(wire.workers) == 2
    assert wire.threads == 1


def test_compute_returns_results_in_order(wire: Wire) -> None:
    square = dask.delayed(lambda x: x * x)
    assert wire.compute([square(number) for number in range(5)]) == [0, 1, 4, 9, 16]


def test_placed_partitions_have_fingerprints_that_tell_them_apart(wire: Wire) -> None:
    _, found = placed(wire)
    assert len(found) == len(set(found)) == len(PARTITIONS)
    assert placed(wire)[1] == found


def test_every_worker_joins_and_is_ready_with_a_domain_once_leased(wire: Wire) -> None:
    joined(wire, nn.Linear(6, 3))
    domains = [event.domain for event in awaited(wire, 2, Ready) if isinstance(event, Ready)]
    assert domains[0] == domains[1]
    assert {"torch", "kernel path", "threads", "canary"} <= set(domains[0])
    assert wire.events(0) == []


def test_answers_are_the_nodes_asked_for_whoever_computes_them(wire: Wire) -> None:
    state = attached(wire, nn.Linear(6, 3))
    first, second = wire.workers
    cuts = [(0, 2, 6), (0, 5, 6), (0, 1, 6)]
    seen: dict[tuple[int, int], list[np.ndarray]] = {}
    for start, middle, stop in cuts:
        tasks = {first: Task("r", "train", 0, 1, start, middle), second: Task("r", "train", 0, 1, middle, stop)}
        for answer in asked(wire, tasks, state):
            nodes = [(partial.start, partial.stop) for partial in answer.partials]
            assert nodes == list(subtrees(answer.task.start, answer.task.stop, SHARDS))
            assert answer.task in tasks.values()
            for partial in answer.partials:
                assert partial.vector is not None
                seen.setdefault((partial.start, partial.stop), []).append(partial.vector.copy())
    for vectors in seen.values():
        for vector in vectors:
            np.testing.assert_array_equal(vector, vectors[0])


def test_a_worker_asked_twice_in_a_round_gives_two_answers_that_stay(wire: Wire) -> None:
    """What a lost worker should have computed goes to one that has answered already."""
    state = attached(wire, nn.Linear(6, 3))
    worker = wire.workers[1]
    lone = {}
    for start in (0, 3):
        (answer,) = asked(wire, {worker: Task("r", "train", 0, 0, start, start + 3)}, state)
        lone[start] = [np.array(partial.vector) for partial in answer.partials]
    with wire.round(state):
        kept = {}
        for start in (0, 3):
            wire.send(worker, Task("r", "train", 0, 0, start, start + 3))
            (event,) = awaited(wire, 1, Answered)
            assert isinstance(event, Answered)
            kept[start] = [partial.vector for partial in event.answer.partials]
        np.testing.assert_equal(kept, lone)


def test_answer_follows_the_state_that_was_sent(wire: Wire) -> None:
    state = attached(wire, nn.Linear(6, 3))
    task = {wire.workers[1]: Task("r", "train", 0, 0, 0, 1)}

    def gradient(parameters: np.ndarray) -> np.ndarray:
        (answer,) = asked(wire, task, State(parameters, state.buffers))
        assert answer.partials[0].vector is not None
        return answer.partials[0].vector.copy()

    zero, other = np.zeros_like(state.parameters), state.parameters + 1
    assert (gradient(zero) != gradient(other)).any()
    np.testing.assert_array_equal(gradient(zero), gradient(zero))


class Raises(nn.Linear):
    """Raises whenever it is called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise OverflowError("too much")


def test_what_a_replica_raises_is_told_and_the_wire_can_be_closed(wire: Wire) -> None:
    state = attached(wire, Raises(6, 3))
    task = Task("r", "train", 0, 0, 0, 1)
    with wire.round(state):
        wire.send(wire.workers[0], task)
        (event,) = awaited(wire, 1, Failed)
    assert isinstance(event, Failed)
    assert (event.worker, event.failure.error, event.failure.task) == (wire.workers[0], "ReplicaError", task)
    assert "too much" in event.failure.text


def test_partition_with_another_fingerprint_is_a_failure_that_names_it(wire: Wire) -> None:
    _, found = placed(wire)
    state = attached(wire, nn.Linear(6, 3), ["0" * 64, *found[1:]])
    with wire.round(state):
        wire.send(wire.workers[0], Task("r", "train", 0, 0, 0, 1))
        (event,) = awaited(wire, 1, Failed)
    assert isinstance(event, Failed)
    assert event.failure.error == "DataError"
    assert "partition 0 of the train data now has fingerprint" in event.failure.text


def test_released_worker_can_be_asked_no_more_and_is_not_missed(wire: Wire) -> None:
    state = attached(wire, nn.Linear(6, 3))
    wire.release(wire.workers[0])
    wire.release(wire.workers[0])
    assert len(asked(wire, {wire.workers[1]: Task("r", "train", 0, 0, 0, 6)}, state)) == 1


def test_failing_task_raises_its_own_error(wire: Wire) -> None:
    def fail() -> None:
        raise LookupError("no such file")

    with pytest.raises(LookupError, match="no such file"):
        wire.compute([dask.delayed(fail)()])
    with pytest.raises(LookupError, match="no such file"):
        wire.place("train", [dask.delayed(fail)()], [wire.workers[0]])


def test_close_may_be_called_at_any_time_and_again(wire: Wire) -> None:
    attached(wire, nn.Linear(6, 3))
    wire.close()
    wire.close()


def test_large_messages_arrive_whole(wire: Wire) -> None:
    """More than a socket takes at once, and changed by the driver as soon as the round is over."""
    state = attached(wire, nn.Sequential(nn.Linear(6, 400_000), nn.Linear(400_000, 3)))
    apart = zip(wire.workers, (0, 2), strict=True)  # shards in a row might be added up on their way
    tasks = {worker: Task("r", "train", 0, 0, place, place + 1) for worker, place in apart}

    def gradients() -> dict[int, np.ndarray]:
        return {answer.task.start: np.array(answer.partials[0].vector) for answer in asked(wire, tasks, state)}

    first, before = gradients(), state.parameters.copy()
    state.parameters[:] = 0
    gradients()
    state.parameters[:] = before
    np.testing.assert_equal(gradients(), first)
    assert {gradient.shape for gradient in first.values()} == {state.parameters.shape}


class Meter:
    """Counts the bytes of arrays that cross the driver's connections, in both directions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        post, poll = Channel.post, Channel.poll

        def posted(channel: Channel, header: Header, arrays: Sequence[Vector | bytes] = ()) -> None:
            self.bytes += sum(map(size, arrays))
            post(channel, header, arrays)

        def polled(channel: Channel) -> Message | None:
            message = poll(channel)
            self.bytes += sum(map(size, message[1])) if message is not None else 0
            return message

        monkeypatch.setattr(Channel, "post", posted)
        monkeypatch.setattr(Channel, "poll", polled)


def size(array: Any) -> int:
    """Return the bytes of an array or of a frame."""
    return memoryview(array).nbytes


@pytest.mark.parametrize("share", [True, False])
def test_arrays_cross_the_connection_only_if_memory_is_not_shared(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, share: bool
) -> None:
    with closing(on_dask(request, share)) as wire:
        wire.open()
        state = attached(wire, nn.Sequential(nn.Linear(6, 5_000), nn.BatchNorm1d(5_000), nn.Linear(5_000, 3)))
        tasks = {worker: Task("r", "train", 0, 0, place, place + 1) for place, worker in enumerate(wire.workers)}
        meter = Meter(monkeypatch)
        asked(wire, tasks, state)
        answers = asked(wire, tasks, state)
        vectors, sums = ([getattr(answer.partials[0], part) for answer in answers] for part in ("vector", "sums"))
        state_bytes = len(answers) * (state.parameters.nbytes + state.buffers.nbytes)
        crossed = sum(map(size, sums)) + (0 if share else state_bytes + sum(map(size, vectors)))
        assert meter.bytes == 2 * crossed


class Waits(nn.Linear):
    """Waits in forward until a pipe that has a name is closed."""

    def __init__(self, pipe: str) -> None:
        super().__init__(6, 3)
        self.pipe = pipe

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) != SAMPLE:
            with open(self.pipe, "rb") as pipe:
                pipe.read()
        return super().forward(x)


def reached(pipe: str) -> int:
    """Wait until a module reads a pipe; it waits until what is returned is closed."""
    deadline, tick = monotonic() + SECONDS, threading.Event()
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads it
            assert monotonic() < deadline, "nobody came to forward"
            tick.wait(0.01)


def test_what_was_computed_while_the_round_ended_or_after_is_no_answer(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Parameters were read where they lie, and may have changed meanwhile."""
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    with closing(on_dask(request, share=True)) as wire:
        wire.open()
        state = attached(wire, Waits(pipe))
        tasks = [Task("r", "train", 0, round, 0, 1) for round in range(2)]
        with wire.round(state):
            wire.send(wire.workers[0], tasks[0])
            waiting = reached(pipe)
        with wire.round(state):
            wire.send(wire.workers[0], tasks[1])
        os.close(waiting)
        late = [event.answer for event in awaited(wire, 2, Answered) if isinstance(event, Answered)]
        assert [(answer.task, answer.partials) for answer in late] == [(task, ()) for task in tasks]


def test_client_stays_usable(clean: Client) -> None:
    wire = DaskWire(clean)
    wire.open()
    attached(wire, nn.Linear(6, 3))
    wire.close()
    assert clean.submit(sum, [1, 2]).result() == 3
