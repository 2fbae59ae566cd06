"""What crosses the wire during a run: numbers and text, never pickles.

A message travels as a header of plain values (msgpack or JSON will do) and a list of flat arrays.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dasktrain.errors import WireError

Header = dict[str, Any]
Vector = NDArray[Any]
Kind = Literal["train", "evaluate"]
DTYPES = ("float32", "float64", "uint8")


@dataclass(frozen=True, slots=True)
class Task:
    """Compute shards [start, stop) of one round of a run."""

    run: str
    kind: Kind
    epoch: int
    round: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class State:
    """What a round starts from: flat parameters (float32 or float64) and the bytes of all buffers (uint8)."""

    parameters: Vector
    buffers: Vector


@dataclass(frozen=True, slots=True)
class Partial:
    """The sum over the shards of one node [start, stop) of the tree; None is the sum of nothing."""

    start: int
    stop: int
    vector: Vector | None  # (parameters,), the gradient of the loss's sum
    sums: Vector | None  # (scalars,), float64: loss, weight, rows, metrics, changes of buffers


@dataclass(frozen=True, slots=True)
class Answer:
    """What one worker found for one task; `seconds` is the time it worked."""

    task: Task
    partials: tuple[Partial, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """What a worker raised: the class of errors.py (others become ReplicaError), its text, the traceback."""

    error: str
    text: str
    traceback: str = ""
    task: Task | None = field(default=None)


def encode_ask(task: Task, state: State) -> tuple[Header, list[Vector]]:
    """Turn a task and its state into header and arrays."""
    return {"task": asdict(task), "dtype": str(state.parameters.dtype)}, [state.parameters, state.buffers]


def decode_ask(header: Header, frames: Sequence[Any]) -> tuple[Task, State]:
    """Turn header and raw frames back into a task and its state; the arrays are views of the frames."""
    parameters, buffers = frames
    return Task(**header["task"]), State(_array(parameters, header["dtype"]), _array(buffers, "uint8"))


def encode_reply(reply: Answer | Failure) -> tuple[Header, list[Vector]]:
    """Turn an answer or a failure into header and arrays."""
    task = asdict(reply.task) if reply.task else None
    if isinstance(reply, Failure):
        return {"error": reply.error, "text": reply.text, "traceback": reply.traceback, "task": task}, []
    arrays: list[Vector] = []
    nodes = []
    for partial in reply.partials:
        parts = [part for part in (partial.vector, partial.sums) if part is not None]
        dtype = str(partial.vector.dtype) if partial.vector is not None else None
        nodes.append((partial.start, partial.stop, dtype, partial.sums is not None))
        arrays += parts
    return {"nodes": nodes, "seconds": reply.seconds, "task": task}, arrays


def decode_reply(header: Header, frames: Sequence[Any]) -> Answer | Failure:
    """Turn header and raw frames back into an answer or a failure."""
    task = Task(**header["task"]) if header["task"] else None
    if "error" in header or task is None:
        return Failure(header["error"], header["text"], header["traceback"], task)
    rest = iter(frames)
    partials = tuple(
        Partial(
            start,
            stop,
            _array(next(rest), dtype) if dtype else None,
            _array(next(rest), "float64") if sums else None,
        )
        for start, stop, dtype, sums in header["nodes"]
    )
    return Answer(task, partials, header["seconds"])


def _array(frame: Any, dtype: str) -> Vector:
    if dtype not in DTYPES:
        raise WireError(f"Arrays on the wire must be one of {DTYPES}, however one is {dtype!r}")
    return np.frombuffer(frame, dtype=dtype) if memoryview(frame).nbytes else np.empty(0, dtype=dtype)
