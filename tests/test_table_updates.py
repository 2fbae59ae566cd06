"""Parameters across sockets: workers that are sent only what has changed compute with what the driver has."""

import json
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from functools import partial
from typing import Any

import dask
import numpy as np
import pytest
import torch
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dasktrain.codes import Ternary, pack
from dasktrain.errors import WireError
from dasktrain.messages import Header, State, Table, Task, Vector
from dasktrain.optimizers import Optimizers
from dasktrain.sparse import as_gradient
from dasktrain.state import TrainState
from dasktrain.touched import Touched
from dasktrain.wire.channel import Channel
from dasktrain.wire.tables import Changes, Copy
from tests.problems import OF_TABLES, SETTINGS, expected
from tests.small import Watcher

TASK = Task("r", "train", 0, 0, 0, 1)
DENSE, SHAPES = 5, ((40, 3), (7, 1))
STARTS = (DENSE, DENSE + 120)
NOTHING = np.empty(0, dtype=np.int64)


def sent(header: Header, arrays: Sequence[Vector]) -> tuple[Header, list[bytes]]:
    """Return a message as it comes out of a socket."""
    return json.loads(json.dumps(header)), [array.tobytes() for array in arrays]


def state(parameters: Vector, changed: Sequence[Vector | None]) -> State:
    tables = [Table(start, *shape, rows) for start, shape, rows in zip(STARTS, SHAPES, changed, strict=True)]
    return State(parameters.copy(), np.arange(3, dtype=np.uint8), tuple(tables))


rows_of = [st.none() | st.sets(st.integers(0, rows - 1), max_size=4).map(sorted) for rows, _ in SHAPES]


@given(st.lists(st.tuples(st.tuples(*rows_of), st.sets(st.integers(0, 2))), min_size=1, max_size=8), st.data())
def test_every_worker_has_what_the_driver_has_whenever_it_is_asked(
    rounds: list[tuple[tuple[list[int] | None, ...], set[int]]], data: st.DataObject
) -> None:
    random = np.random.default_rng(0)
    parameters = random.normal(size=DENSE + 120 + 7).astype(np.float32)
    changes, copies = Changes(), [Copy() for _ in range(3)]
    for changed, asked in rounds:
        parameters[:DENSE] = random.normal(size=DENSE)
        for start, shape, rows in zip(STARTS, SHAPES, changed, strict=True):
            table = parameters[start : start + shape[0] * shape[1]].reshape(shape)
            table[range(shape[0]) if rows is None else rows] = random.normal(
                size=(shape[0] if rows is None else len(rows), shape[1])
            )
        known = [None if rows is None else np.array(rows, dtype=np.int64) for rows in changed]
        changes.begin(state(parameters, known))
        for worker in asked:
            if data.draw(st.integers(0, 9)) == 0:  # it went away, and another came by its name
                changes.forget(str(worker))
                copies[worker] = Copy()
            message = changes.encode(str(worker), TASK, state(parameters, known))
            task, found = copies[worker].decode(*sent(*message))
            assert task == TASK
            assert found.parameters.tobytes() == parameters.tobytes()
            assert found.buffers.tolist() == [0, 1, 2]


def test_what_is_sent_again_is_what_changed() -> None:
    parameters = np.zeros(DENSE + 127, dtype=np.float32)
    changes = Changes()
    changes.begin(state(parameters, [None, None]))
    assert sum(map(len, changes.encode("a", TASK, state(parameters, [None, None]))[1])) == DENSE + 127 + 3
    changes.begin(state(parameters, [np.array([3, 7]), NOTHING]))
    changes.begin(state(parameters, [np.array([7]), np.array([6])]))
    header, arrays = changes.encode("a", TASK, state(parameters, [None, None]))
    assert [len(array) for array in arrays] == [DENSE, 3, 2, 6, 1, 1]
    assert header["some"]


def test_who_missed_too_many_rounds_gets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = np.zeros(DENSE + 127, dtype=np.float32)
    changes = Changes()
    changes.begin(state(parameters, [None, None]))
    changes.encode("a", TASK, state(parameters, [None, None]))
    for _ in range(65):
        changes.begin(state(parameters, [NOTHING, NOTHING]))
    assert "some" not in changes.encode("a", TASK, state(parameters, [NOTHING, NOTHING]))[0]


ODD: dict[str, Callable[[Header, list[bytes]], Any]] = {
    "a row beyond the table": lambda header, frames: frames.__setitem__(2, np.array([40]).tobytes()),
    "a row before the table": lambda header, frames: frames.__setitem__(2, np.array([-1]).tobytes()),
    "values of another width": lambda header, frames: frames.__setitem__(3, frames[3][:4]),
    "a frame too few": lambda header, frames: frames.pop(),
    "another dtype": lambda header, frames: header.update(dtype="float64"),
    "tables elsewhere": lambda header, frames: header["tables"][0].__setitem__(0, 4),
    "tables of text": lambda header, frames: header.update(tables=[["a", "b", "c"]]),
    "tables beyond the end": lambda header, frames: header["tables"][1].__setitem__(1, 100),
}


@pytest.mark.parametrize("what", ODD)
def test_rows_that_the_parameters_do_not_have_are_refused(what: str) -> None:
    parameters = np.zeros(DENSE + 127, dtype=np.float32)
    changes, copy = Changes(), Copy()
    changes.begin(state(parameters, [None, None]))
    copy.decode(*sent(*changes.encode("a", TASK, state(parameters, [None, None]))))
    changes.begin(state(parameters, [np.array([3]), np.array([2])]))
    header, frames = sent(*changes.encode("a", TASK, state(parameters, [None, None])))
    ODD[what](header, frames)
    with pytest.raises(WireError):
        copy.decode(header, frames)


def test_rows_without_parameters_before_them_are_refused() -> None:
    parameters = np.zeros(DENSE + 127, dtype=np.float32)
    changes = Changes()
    for _ in range(2):
        changes.begin(state(parameters, [NOTHING, NOTHING]))
        message = changes.encode("a", TASK, state(parameters, [NOTHING, NOTHING]))
    with pytest.raises(WireError, match="sent before"):
        Copy().decode(*sent(*message))


# -- what the driver says has changed -----------------------------------------------------------------------------


class Lazy(torch.optim.SGD):
    """Not known to leave rows alone."""


def trained(optimizer: Any) -> TrainState:
    module = nn.ModuleDict({"table": nn.Embedding(9, 2, sparse=True), "head": nn.Linear(2, 1)})
    return TrainState(module, optimizer)


def step(state: TrainState, rows: list[int]) -> None:
    """Step with a gradient of ones for some rows."""
    for parameter in state.parameters.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    values = torch.ones(len(rows), 2)
    table = state.parameters.tables["table.weight"]
    table.grad = as_gradient(np.array(rows), values, table.shape)
    state.step([Touched(np.array(rows, dtype=np.int64), values.numpy())])


def changed(state: TrainState) -> list[int] | None:
    (table,) = state.message().tables
    return None if table.changed is None else table.changed.tolist()


def test_rows_that_steps_touched_have_changed_and_no_others() -> None:
    state = trained(partial(torch.optim.SGD, lr=0.1))
    assert changed(state) is None
    assert changed(state) == []
    step(state, [1, 5])
    step(state, [0, 5])
    assert changed(state) == [0, 1, 5]
    assert changed(state) == []


OTHERS: dict[str, Callable[[TrainState], Any]] = {
    "an observer wrote": lambda state: state.parameters.tables["table.weight"].detach().mul_(2),
    "it was restored": lambda state: state.restore(state.snapshot()),
}


@pytest.mark.parametrize("when", ["before the step", "after the step"])
@pytest.mark.parametrize("what", OTHERS)
def test_all_rows_may_have_changed_if_others_wrote(what: str, when: str) -> None:
    state = trained(partial(torch.optim.SGD, lr=0.1))
    state.message()
    if when == "before the step":
        OTHERS[what](state)
    step(state, [2])
    if when == "after the step":
        OTHERS[what](state)
    assert changed(state) is None


def test_all_rows_may_have_changed_if_the_optimizer_is_not_known() -> None:
    makers = {"dense": partial(torch.optim.AdamW, lr=0.1), "sparse": partial(Lazy, lr=0.1)}
    for kind, wanted in ((makers, None), (makers | {"sparse": partial(torch.optim.SparseAdam, lr=0.1)}, [2])):
        state = trained(partial(Optimizers, makers=kind))
        state.message()
        step(state, [2])
        assert changed(state) == wanted


# -- on a cluster -------------------------------------------------------------------------------------------------


def test_the_digest_across_sockets_is_the_reference(clean: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    posted: list[bool] = []
    post = Channel.post

    def seen(channel: Channel, header: Header, arrays: Sequence[Vector | bytes] = ()) -> None:
        if "tables" in header:
            posted.append("some" in header)
        post(channel, header, arrays)

    monkeypatch.setattr(Channel, "post", seen)
    monkeypatch.setattr("dasktrain.wire.tables.FEW", 1)  # tables are small, and most rows are touched
    watcher = Watcher()
    with dask.config.set({"dasktrain.shared-memory": False}):
        trainer = OF_TABLES[-1].trainer([watcher])
        result = trainer.fit(OF_TABLES[-1].data, client=clean, **SETTINGS)  # type: ignore[arg-type]
    assert result.digest == expected(OF_TABLES[-1])
    assert True in posted
    assert False in posted


# -- changes of all parameters ----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 2))), min_size=1, max_size=8), st.data())
def test_every_worker_has_the_parameters_that_changes_lead_to(
    rounds: list[tuple[bool, set[int]]], data: st.DataObject
) -> None:
    random, parameters = np.random.default_rng(0), np.zeros(600, dtype=np.float32)
    changes, copies, had = Changes(), [Copy() for _ in range(3)], dict[int, int]()
    for number, (anew, asked) in enumerate(rounds):
        change = Ternary().nearest(random.normal(size=600).astype(np.float32))
        if anew or not number:
            parameters = random.normal(size=600).astype(np.float32)
            packed = np.empty(0, dtype=np.uint8)
        else:
            parameters, packed = parameters + change, pack(Ternary(), change)
        given_ = State(parameters, np.arange(3, dtype=np.uint8), change=packed)
        if data.draw(st.booleans()):
            changes.begin(replace(given_, change=None))  # a validation in between
        changes.begin(given_)
        for worker in sorted(asked):
            if data.draw(st.sampled_from([False, False, False, True])):
                changes.forget(str(worker))
                copies[worker] = Copy()
                had.pop(worker, None)
            header, frames = sent(*changes.encode(str(worker), TASK, given_))
            task, found = copies[worker].decode(header, frames)
            assert task == TASK
            assert found.parameters.tobytes() == parameters.tobytes()
            assert found.buffers.tobytes() == given_.buffers.tobytes()
            few = len(packed) and had.get(worker) == number - 1
            assert sum(map(len, frames)) == (len(packed) if few else parameters.nbytes) + 3
            had[worker] = number


@pytest.mark.parametrize("frame", [b"", b"\0" * 16, bytes(pack(Ternary(), np.ones(599, dtype=np.float32)))])
def test_changes_of_other_parameters_are_refused(frame: bytes) -> None:
    copy, changes = Copy(), Changes()
    first = State(np.ones(600, dtype=np.float32), np.empty(0, np.uint8), change=np.empty(0, np.uint8))
    copy.decode(*sent(*changes.encode("w", TASK, first)))
    header, _ = sent(*changes.encode("w", TASK, replace(first, change=pack(Ternary(), first.parameters))))
    assert not header["change"]  # of the same state
    with pytest.raises(WireError, match="must be what a code makes"):
        copy.decode({**header, "change": True}, [b"", b"", frame])


def test_changes_of_nothing_are_refused() -> None:
    packed = pack(Ternary(), np.ones(600, dtype=np.float32))
    header = {"task": list(astuple(TASK)), "dtype": "float32", "change": True}
    with pytest.raises(WireError, match="parameters that were sent before"):
        Copy().decode(header, [b"", b"", packed.tobytes()])
