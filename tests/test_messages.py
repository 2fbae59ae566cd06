"""What crosses the wire: plain headers and flat arrays, there and back."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dasktrain.errors import WireError
from dasktrain.messages import (
    Answer,
    Failure,
    Partial,
    State,
    Task,
    decode_ask,
    decode_reply,
    encode_ask,
    encode_reply,
)
from dasktrain.touched import Touched
from dasktrain.vector import as_tensor

TASK = Task("4f2a", "train", epoch=3, round=14, start=2, stop=5)

HEADERS: dict[str, Callable[[Any], Any]] = {
    "json": lambda header: json.loads(json.dumps(header)),
    "msgpack": lambda header: msgpack.unpackb(msgpack.packb(header)),
}


def misaligned(frame: bytes) -> memoryview:
    return memoryview(b"\0" + frame)[1:]


FRAMES: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "misaligned": misaligned,
}
headers = pytest.mark.parametrize("header_over", HEADERS.values(), ids=HEADERS)
frames = pytest.mark.parametrize("frame_over", FRAMES.values(), ids=FRAMES)

quick = settings(max_examples=50, deadline=None)
float32s = arrays(np.float32, st.integers(0, 5))
float64s = arrays(np.float64, st.integers(0, 5))
raw = arrays(np.uint8, st.integers(0, 40))
tasks = st.builds(
    Task,
    run=st.text(max_size=5),
    kind=st.sampled_from(["train", "evaluate"]),
    epoch=st.integers(0, 2**40),
    round=st.integers(0, 2**40),
    start=st.integers(0, 99),
    stop=st.integers(0, 99),
)


def rows_of(rows: list[int], width: int, dtype: Any) -> Touched:
    """Return touched rows whose numbers are no two the same."""
    return Touched(np.array(sorted(rows), np.int64), np.arange(len(rows) * width, dtype=dtype).reshape(-1, width))


def with_tables(partial: Partial, rows: list[list[int]], width: int) -> Partial:
    dtype = np.float32 if partial.vector is None else partial.vector.dtype
    vector = np.empty(0, np.float32) if partial.vector is None else partial.vector
    return replace(partial, vector=vector, touched=tuple(rows_of(table, width, dtype) for table in rows))


tables = st.lists(st.lists(st.integers(0, 2**62), unique=True, max_size=3), max_size=3)
some_partials = st.lists(
    st.builds(Partial, st.integers(0, 99), st.integers(0, 99), st.none() | float32s | float64s, st.none() | float64s),
    max_size=4,
).map(tuple)
partials_of_tables = st.lists(
    st.builds(
        with_tables,
        st.builds(Partial, st.just(0), st.just(1), st.none() | float32s | float64s, st.none() | float64s),
        tables,
        st.integers(1, 3),
    ),
    max_size=3,
).map(tuple)
answers = st.builds(Answer, tasks, some_partials | partials_of_tables, st.floats(0, 1e6))
failures = st.builds(Failure, st.text(), st.text(), st.text(), st.none() | tasks)


def vars_of(task: Task) -> dict[str, Any]:
    return encode_ask(task, State(np.empty(0, np.float32), np.empty(0, np.uint8)))[0]["task"]


def bits(array: np.ndarray | None) -> Any:
    return None if array is None else (array.dtype.str, array.shape, array.tobytes())


def bits_of(partial: Partial) -> Any:
    touched = [(bits(each.rows), bits(each.values)) for each in partial.touched]
    return partial.start, partial.stop, bits(partial.vector), bits(partial.sums), touched


@headers
@frames
@quick
@given(task=tasks, parameters=float32s | float64s, buffers=raw)
def test_ask_comes_back_with_the_same_bits(
    header_over: Any, frame_over: Any, task: Task, parameters: np.ndarray, buffers: np.ndarray
) -> None:
    header, sent = encode_ask(task, State(parameters, buffers))
    found, state = decode_ask(header_over(header), [frame_over(array.tobytes()) for array in sent])
    assert found == task
    assert (bits(state.parameters), bits(state.buffers)) == (bits(parameters), bits(buffers))


@headers
@frames
@quick
@given(answer=answers)
def test_answer_comes_back_with_the_same_bits(header_over: Any, frame_over: Any, answer: Answer) -> None:
    header, sent = encode_reply(answer)
    found = decode_reply(header_over(header), [frame_over(array.tobytes()) for array in sent])
    assert isinstance(found, Answer)
    assert (found.task, found.seconds) == (answer.task, answer.seconds)
    assert list(map(bits_of, found.partials)) == list(map(bits_of, answer.partials))


@headers
@quick
@given(failure=failures)
def test_failure_comes_back_equal(header_over: Any, failure: Failure) -> None:
    header, sent = encode_reply(failure)
    assert decode_reply(header_over(header), sent) == failure


def test_arrays_are_sent_and_received_without_a_copy() -> None:
    state = State(np.arange(4, dtype=np.float32), np.arange(16, dtype=np.uint8))
    header, sent = encode_ask(TASK, state)
    assert [array is part for array, part in zip(sent, (state.parameters, state.buffers), strict=True)] == [True, True]
    _, found = decode_ask(header, sent)
    assert np.shares_memory(found.parameters, state.parameters)
    assert np.shares_memory(found.buffers, state.buffers)


def test_misaligned_read_only_frame_can_be_read_as_a_tensor() -> None:
    sent = np.arange(4, dtype=np.float32)
    _, state = decode_ask({"task": vars_of(TASK), "dtype": "float32"}, [misaligned(sent.tobytes()), b""])
    assert as_tensor(state.parameters).tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("dtype", ["float16", "int64", "object", ">f4"])
def test_dtype_that_is_not_for_the_wire_is_refused(dtype: str) -> None:
    with pytest.raises(WireError, match=f"must be one of .* however one is '{dtype}'"):
        decode_ask({"task": vars_of(TASK), "dtype": dtype}, [b"\0" * 8, b""])
    with pytest.raises(WireError, match="on the wire"):
        decode_reply({"nodes": [(0, 1, dtype, False)], "seconds": 0.0, "task": vars_of(TASK)}, [b"\0" * 8])


@pytest.mark.parametrize(
    ("node", "rows", "values", "found"),
    [
        ([0, 1, "float32", False, [2, "float32"]], [3, 3], [0.0] * 4, "do not rise"),
        ([0, 1, "float32", False, [2, "float32"]], [3, 1], [0.0] * 4, "do not rise"),
        ([0, 1, "float32", False, [2, "float32"]], [-1, 3], [0.0] * 4, "do not rise"),
        ([0, 1, "float32", False, [2, "float32"]], [1, 3], [0.0] * 3, "cannot reshape"),
        ([0, 1, "float32", False, [0, "float32"]], [1, 3], [], "have 0 numbers"),
        ([0, 1, "float32", False, [1 << 80, "float32"]], [], [], "numbers"),
        ([0, 1, "float32", False, ["2", "float32"]], [1], [0.0] * 2, "'2' is not int"),
        ([0, 1, None, False, [2, None]], [1], [0.0] * 2, "must be one of"),
        ([0, 1, "float32", False, [2, "float32"], [2, "float32"]], [1], [0.0] * 2, "arrays are missing"),
    ],
)
def test_rows_that_are_not_of_a_table_are_refused(
    node: list[Any], rows: list[int], values: list[float], found: str
) -> None:
    frames_ = [np.array(rows, np.int64).tobytes(), np.array(values, np.float32).tobytes()]
    vector = [b""] if node[2] is not None else []
    header = {"nodes": [node], "seconds": 0.0, "waited": 0.0, "task": vars_of(TASK)}
    with pytest.raises(WireError, match=found):
        decode_reply(header, [*vector, *frames_])
