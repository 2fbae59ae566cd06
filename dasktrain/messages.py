"""What crosses the wire during a run: numbers and text, never pickles.

A message travels as a header of plain values (msgpack or JSON will do) and a list of flat arrays.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from dasktrain.cut import Cut
from dasktrain.errors import WireError
from dasktrain.steps import Steps
from dasktrain.touched import Touched

Header = dict[str, Any]
Vector = NDArray[Any]
Kind = Literal["train", "evaluate"]
T = TypeVar("T")
WIDEST = 1 << 31  # numbers in a row of a table
DTYPES = ("float32", "float64", "uint8")


@dataclass(frozen=True, slots=True)
class Task:
    """Compute shards [start, stop) of one round of a run, or of one turn of it, if several players share it.

    Or of several `rounds`, which each shard does by itself, one after another.
    """

    run: str
    kind: Kind
    epoch: int
    round: int
    start: int
    stop: int
    turn: int = 0
    rounds: int = 1


@dataclass(frozen=True, slots=True)
class Table:
    """A part of the parameters of which a round changes few rows.

    Attributes
    ----------
    start : int
        Of its first number in the parameters.
    rows, width : int
        Its shape.
    changed : Vector or None
        int64, rows that are not as in the state before; None: any of them may not be.
    """

    start: int
    rows: int
    width: int
    changed: Vector | None = None

    def of(self, parameters: Vector) -> Vector:
        """Return its part (rows, width) of the parameters, in the same memory."""
        return parameters[self.start : self.start + self.rows * self.width].reshape(self.rows, self.width)


@dataclass(frozen=True, slots=True)
class State:
    """What a round starts from: flat parameters (float32 or float64) and the bytes of all buffers (uint8).

    Tables are the last of the parameters.

    Attributes
    ----------
    change : Vector or None
        (any,) uint8, packed: what was added to the parameters of the state before; empty: they are anew. None: nobody
        keeps count of changes.
    steps : Steps or None
        How parameters were stepped, if others can do that as well.
    """

    parameters: Vector
    buffers: Vector
    tables: tuple[Table, ...] = ()
    change: Vector | None = None
    steps: Steps | None = None

    @property
    def is_told_in_changes(self) -> bool:
        """Whether workers are told what has changed, as far as they have the rest."""
        return bool(self.tables) or self.change is not None


@dataclass(frozen=True, slots=True)
class Partial:
    """The sum over the shards of one node [start, stop) of the tree; None is the sum of nothing."""

    start: int
    stop: int
    vector: Vector | None  # (parameters,), the gradient of the loss's sum, tables left out
    sums: Vector | None  # (scalars,), float64: loss, weight, rows, metrics, changes of buffers
    touched: tuple[Touched, ...] = ()  # the gradient of each table, in the vector's dtype


@dataclass(frozen=True, slots=True)
class Answer:
    """What one worker found for one task; it worked for `seconds`, of which it waited for data for `waited`."""

    task: Task
    partials: tuple[Partial, ...]
    seconds: float
    waited: float = 0.0


@dataclass(frozen=True, slots=True)
class Bucket:
    """A part of the vector of node [start, stop), sent before the answer that the node belongs to."""

    task: Task
    start: int
    stop: int
    offset: int  # of its first number in the vector
    values: Vector


@dataclass(frozen=True, slots=True)
class Failure:
    """What a worker raised: the class of errors.py (others become ReplicaError), its text, the traceback."""

    error: str
    text: str
    traceback: str = ""
    task: Task | None = field(default=None)


@dataclass(frozen=True, slots=True)
class Stream:
    """What gradients are like that are sent in buckets: leaves of the tree, where they are cut, and their dtype."""

    shards: int
    cut: Cut
    dtype: str


def encode_ask(task: Task, state: State) -> tuple[Header, list[Vector]]:
    """Turn a task and its state into header and arrays."""
    return {"task": _plain(task), "dtype": state.parameters.dtype.name}, [state.parameters, state.buffers]


@contextmanager
def reading() -> Iterator[None]:
    """Have whatever a message lacks, or has of another kind, be a WireError."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(
            f"A message must have the parts of its kind, however {type(error).__name__}: {error}; "
            "see that only drivers and workers of one run are connected"
        ) from error


@reading()
def decode_ask(header: Header, frames: Sequence[Any]) -> tuple[Task, State]:
    """Turn header and raw frames back into a task and its state; the arrays are views of the frames.

    Raises
    ------
    WireError
        They are not what `encode_ask` makes.
    """
    parameters, buffers = frames
    return _task(header["task"]), State(array_of(parameters, header["dtype"]), array_of(buffers, "uint8"))


def encode_mark(mark: str, task: Task, places: Sequence[int] = ()) -> Header:
    """Turn what is told of a task, and of which peers, into a header."""
    return {"mark": mark, "task": _plain(task)} | ({"places": list(places)} if places else {})


@reading()
def decode_mark(header: Header) -> tuple[str, Task]:
    """Return what is told, and of which task."""
    return of_kind(str, header["mark"]), _task(header["task"])


@reading()
def decode_places(header: Header, name: str = "places") -> frozenset[int]:
    """Return the peers that something is told of."""
    return frozenset(of_kind(int, place) for place in header.get(name, ()))


def encode_part(task: Task, offset: int, values: Vector) -> tuple[Header, list[Vector]]:
    """Turn a part of a round's parameters into header and arrays."""
    return {"part": offset, "task": _plain(task), "dtype": values.dtype.name}, [values]


@reading()
def decode_part(header: Header, frames: Sequence[Any]) -> tuple[Task, int, Vector]:
    """Return what a part of the parameters is for, its first number and its values."""
    (values,) = frames
    return _task(header["task"]), of_kind(int, header["part"]), array_of(values, header["dtype"])


def encode_end(task: Task, ended: Sequence[tuple[int, int]], nothing: Sequence[tuple[int, int]]) -> Header:
    """Turn the nodes of which no buckets follow, and those that are the sum of nothing, into a header."""
    return {"ended": list(ended), "nothing": list(nothing), "task": _plain(task)}


@reading()
def decode_end(header: Header) -> tuple[Task, list[tuple[int, int]], list[tuple[int, int]]]:
    """Return what nodes are of, those of which no buckets follow, and those that are the sum of nothing."""
    ended, nothing = (
        [(of_kind(int, start), of_kind(int, stop)) for start, stop in header[name]] for name in ("ended", "nothing")
    )
    return _task(header["task"]), ended, nothing


def encode_cut(bucket: int) -> Header:
    """Turn how many numbers a bucket is to have into a header."""
    return {"bucket": bucket}


@reading()
def decode_cut(header: Header) -> int:
    """Return how many numbers a bucket is to have."""
    if (bucket := of_kind(int, header["bucket"])) < 1:
        raise ValueError(f"a bucket has {bucket} numbers")
    return bucket


def encode_attach(task: Task, replica: bytes, keys: bytes, steps: bool) -> tuple[Header, list[bytes]]:
    """Turn the task that a lease is to get ready for, its replica and its keys, both packed, into its first message.

    `steps`: whether it may own parameters and step them.
    """
    return {"stage": _plain(task), "steps": steps}, [replica, keys]


@reading()
def decode_attach(header: Header, frames: Sequence[Any]) -> tuple[Task, bytes, bytes, bool]:
    """Return what `encode_attach` was given."""
    replica, keys = map(bytes, frames)
    return _task(header["stage"]), replica, keys, of_kind(bool, header["steps"])


#: what a worker sends
Reply = Answer | Failure | Bucket


def encode_reply(reply: Reply) -> tuple[Header, list[Vector]]:
    """Turn an answer, a part of one, or a failure into header and arrays."""
    task = _plain(reply.task) if reply.task else None
    if isinstance(reply, Bucket):
        place = reply.start, reply.stop, reply.offset, reply.values.dtype.name
        return {"bucket": place, "task": task}, [reply.values]
    if isinstance(reply, Failure):
        return {"error": reply.error, "text": reply.text, "traceback": reply.traceback, "task": task}, []
    arrays: list[Vector] = []
    nodes = []
    for partial in reply.partials:
        parts = [part for part in (partial.vector, partial.sums) if part is not None]
        dtype = partial.vector.dtype.name if partial.vector is not None else None
        tables = [(each.values.shape[1], each.values.dtype.name) for each in partial.touched]
        nodes.append((partial.start, partial.stop, dtype, partial.sums is not None, *tables))
        arrays += [*parts, *(part for each in partial.touched for part in (each.rows, each.values))]
    return {"nodes": nodes, "seconds": reply.seconds, "waited": reply.waited, "task": task}, arrays


@reading()
def decode_reply(header: Header, frames: Sequence[Any]) -> Reply:
    """Turn header and raw frames back into an answer, a part of one, or a failure.

    Raises
    ------
    WireError
        They are not what `encode_reply` makes.
    """
    task = _task(header["task"]) if header["task"] is not None else None
    if "error" in header or task is None:
        error, text, traceback = (of_kind(str, header[name]) for name in ("error", "text", "traceback"))
        return Failure(error, text, traceback, task)
    if "bucket" in header:
        start, stop, offset, dtype = header["bucket"]
        (values,) = frames
        return Bucket(task, of_kind(int, start), of_kind(int, stop), of_kind(int, offset), array_of(values, dtype))
    rest = list(frames)[::-1]
    partials = tuple(_partial(node, rest) for node in header["nodes"])
    seconds, waited = (of_kind(float, header[name]) for name in ("seconds", "waited"))
    if rest or not math.isfinite(seconds + waited):
        raise ValueError(f"{len(rest)} frames belong to no node, after {seconds} seconds, {waited} without data")
    return Answer(task, partials, seconds, waited)


def _partial(node: Any, rest: list[Any]) -> Partial:
    """Return a node of the tree, whose arrays are the last of `rest`."""
    start, stop, dtype, sums, *tables = node
    if len(rest) < (dtype is not None) + bool(sums) + 2 * len(tables):
        raise ValueError("a node's arrays are missing")
    vector = array_of(rest.pop(), dtype) if dtype is not None else None
    found = array_of(rest.pop(), "float64") if sums else None
    touched = tuple(_touched(rest.pop(), rest.pop(), *table) for table in tables)
    return Partial(of_kind(int, start), of_kind(int, stop), vector, found, touched)


def _touched(numbers: Any, frame: Any, width: Any, dtype: Any) -> Touched:
    """Return rows of a table, whose numbers rise."""
    rows = np.frombuffer(numbers, dtype=np.int64) if memoryview(numbers).nbytes else np.empty(0, dtype=np.int64)
    if (len(rows) and rows[0] < 0) or (rows[1:] <= rows[:-1]).any():
        raise ValueError("rows of a table do not rise")
    if not 1 <= of_kind(int, width) <= WIDEST:
        raise ValueError(f"rows of a table have {width} numbers")
    return Touched(rows, array_of(frame, dtype).reshape(len(rows), width))


def _plain(task: Task) -> list[str | int]:
    return [task.run, task.kind, task.epoch, task.round, task.start, task.stop, task.turn, task.rounds]


def _task(plain: Any) -> Task:
    task = Task(*plain)
    for number in (task.epoch, task.round, task.start, task.stop, task.turn, task.rounds):
        of_kind(int, number)
    if of_kind(str, task.kind) not in get_args(Kind):
        raise ValueError(f"a task is of kind {task.kind!r}")
    of_kind(str, task.run)
    return task


def of_kind(kind: type[T], value: Any) -> T:
    """Return a value that must be of exactly this type."""
    if type(value) is not kind:
        raise TypeError(f"{value!r:.80} is not {kind.__name__}")
    return value


def array_of(frame: Any, dtype: str) -> Vector:
    """Return the numbers of a frame.

    Raises
    ------
    WireError
        They are of another kind than messages have.
    """
    if dtype not in DTYPES:
        raise WireError(f"Arrays on the wire must be one of {DTYPES}, however one is {dtype!r}")
    return np.frombuffer(frame, dtype=dtype) if memoryview(frame).nbytes else np.empty(0, dtype=dtype)
