"""What every wire must do. A new wire is one more line in `wires`."""

from collections.abc import Iterator

import dask
import numpy as np
import pytest
import torch
from distributed import Client
from torch import nn

from dasktrain.buffers import FlatBuffers
from dasktrain.data.source import strata
from dasktrain.errors import ReplicaError
from dasktrain.fleet import Joined
from dasktrain.messages import State, Task
from dasktrain.plan import Plan
from dasktrain.reduce import subtrees
from dasktrain.replica import Job, Replica
from dasktrain.shipping import pack
from dasktrain.strategies import GradientAveraging
from dasktrain.vector import FlatParameters
from dasktrain.wire import Wire
from dasktrain.wire.dask import DaskWire
from dasktrain.wire.local import LocalWire
from tests.problems import PROBLEMS

SHARDS = 6


@pytest.fixture(params=["local", "dask"])
def wire(request: pytest.FixtureRequest) -> Iterator[Wire]:
    wire: Wire = LocalWire(2) if request.param == "local" else DaskWire(request.getfixturevalue("clean"))
    wire.open()
    yield wire
    wire.close()


def attached(wire: Wire, module: nn.Module) -> tuple[State, Plan]:
    """Place the first problem's data and attach a replica of `module` to every worker."""
    data = PROBLEMS[0].data
    surveys = wire.compute(data.survey())
    plan = Plan(strata(surveys, None), SHARDS, 50)
    wire.place("train", data.convert(data.fit(surveys), by_class=False), [wire.workers[0]] * len(surveys))
    job = Job(module, nn.CrossEntropyLoss(), {}, GradientAveraging(), {"train": plan}, 0, wire.threads)
    wire.attach(pack(Replica, job))
    parameters, buffers = FlatParameters(module), FlatBuffers(module)
    return State(parameters.vector.numpy(), buffers.vector.numpy()), plan


def test_workers_are_named_sorted_and_alike(wire: Wire) -> None:
    assert list(wire.workers) == sorted(set(wire.workers))
    assert len(wire.workers) == 2
    assert wire.threads == 1


def test_compute_returns_results_in_order(wire: Wire) -> None:
    square = dask.delayed(lambda x: x * x)
    assert wire.compute([square(number) for number in range(5)]) == [0, 1, 4, 9, 16]


def test_every_worker_joins(wire: Wire) -> None:
    attached(wire, nn.Linear(6, 3))
    assert wire.changes() == [Joined(worker) for worker in wire.workers]
    assert wire.changes() == []


def test_answers_are_the_nodes_asked_for_whoever_computes_them(wire: Wire) -> None:
    state, _ = attached(wire, nn.Linear(6, 3))
    first, second = wire.workers
    cuts = [(0, 2, 6), (0, 5, 6), (0, 6, 6)]
    seen: dict[tuple[int, int], list[np.ndarray]] = {}
    for start, middle, stop in cuts:
        tasks = {first: Task("r", "train", 0, 1, start, middle), second: Task("r", "train", 0, 1, middle, stop)}
        for answer in wire.ask(tasks, state):
            nodes = [(partial.start, partial.stop) for partial in answer.partials]
            assert nodes == list(subtrees(answer.task.start, answer.task.stop, SHARDS))
            assert answer.task in tasks.values()
            for partial in answer.partials:
                assert partial.vector is not None
                seen.setdefault((partial.start, partial.stop), []).append(partial.vector.copy())
    for vectors in seen.values():
        for vector in vectors:
            np.testing.assert_array_equal(vector, vectors[0])


def test_answer_follows_the_state_that_was_sent(wire: Wire) -> None:
    state, _ = attached(wire, nn.Linear(6, 3))
    worker = wire.workers[1]
    task = {worker: Task("r", "train", 0, 0, 0, 1)}

    def gradient(parameters: np.ndarray) -> np.ndarray:
        (answer,) = wire.ask(task, State(parameters, state.buffers))
        assert answer.partials[0].vector is not None
        return answer.partials[0].vector.copy()

    zero, other = np.zeros_like(state.parameters), state.parameters + 1
    assert (gradient(zero) != gradient(other)).any()
    np.testing.assert_array_equal(gradient(zero), gradient(zero))


class Raises(nn.Linear):
    """Raises whenever it is called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise OverflowError("too much")


def test_what_a_replica_raises_is_raised_and_the_wire_can_be_closed(wire: Wire) -> None:
    state, _ = attached(wire, Raises(6, 3))
    with pytest.raises(ReplicaError, match="too much"):
        wire.ask({wire.workers[0]: Task("r", "train", 0, 0, 0, 1)}, state)


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
    """More than a socket takes at once, and changed by the driver as soon as the answer is there."""
    state, _ = attached(wire, nn.Sequential(nn.Linear(6, 400_000), nn.Linear(400_000, 3)))
    tasks = {worker: Task("r", "train", 0, 0, place, place + 1) for place, worker in enumerate(wire.workers)}

    def gradients() -> dict[int, np.ndarray]:
        answers = wire.ask(tasks, state)
        return {answer.task.start: np.array(answer.partials[0].vector) for answer in answers}

    first, before = gradients(), state.parameters.copy()
    state.parameters[:] = 0
    gradients()
    state.parameters[:] = before
    np.testing.assert_equal(gradients(), first)


def test_client_stays_usable(clean: Client) -> None:
    wire = DaskWire(clean)
    wire.open()
    attached(wire, nn.Linear(6, 3))
    wire.close()
    assert clean.submit(sum, [1, 2]).result() == 3
