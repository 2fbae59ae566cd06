"""Parameters across a socket: all of them once, and then what has changed: rows of tables, or all by a little."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dasktrain.codes import unpack
from dasktrain.errors import WireError
from dasktrain.messages import Header, State, Table, Task, Vector, decode_ask, encode_ask, reading

#: rounds whose changes are remembered; who has missed more of them gets all rows
REMEMBERED = 64
#: of a table's rows: if more than one in so many have changed, all are sent
FEW = 4


class Changes:
    """On the driver: what each worker lacks."""

    def __init__(self) -> None:
        self._round = 0
        self._changed: deque[list[Vector | None]] = deque(maxlen=REMEMBERED)  # of each table, of rounds up to this one
        self._has: dict[str, int] = {}  # worker -> round whose state it was sent last

    def begin(self, state: State) -> None:
        """Take note of what a round's state changes; one that knows of no changes goes by, to nobody's loss."""
        if not state.tables and state.change is None:
            return
        self._round += 1
        self._changed.append([table.changed for table in state.tables])

    def forget(self, worker: str) -> None:
        """Send everything next time."""
        self._has.pop(worker, None)

    def encode(self, worker: str, task: Task, state: State) -> tuple[Header, list[Vector]]:
        """Turn a task and the round's state into a message to a worker that gets and applies all of them."""
        since, self._has[worker] = self._has.get(worker), self._round
        if state.change is not None:
            return _change(task, state, since == self._round - 1)
        header, (parameters, buffers) = encode_ask(task, state)
        header["tables"] = [(table.start, table.rows, table.width) for table in state.tables]
        missed = None if since is None else self._since(since, state.tables)
        if missed is None:
            return header, [parameters, buffers]
        arrays = [parameters[: state.tables[0].start], buffers]
        for table, rows in zip(state.tables, missed, strict=True):
            arrays += [rows, table.of(parameters)[rows].reshape(-1)]
        return {**header, "some": True}, arrays

    def _since(self, round: int, tables: Sequence[Table]) -> list[Vector] | None:
        """Return the rows of each table that have changed after a round's state, None if these are too many."""
        missed = self._round - round
        if missed > len(self._changed):
            return None
        found = []
        for place, table in enumerate(tables):
            changed = [round[place] for round in list(self._changed)[len(self._changed) - missed :]]
            known = [rows for rows in changed if rows is not None]
            if len(known) < len(changed) or sum(map(len, known)) * FEW > table.rows:
                return None
            found.append(np.unique(np.concatenate([np.empty(0, dtype=np.int64), *known])))
        return found


def _change(task: Task, state: State, has_others: bool) -> tuple[Header, list[Vector]]:
    """Turn a task and a state into a message to a worker that may have the parameters of the state before."""
    header, (parameters, *rest) = encode_ask(task, state)
    if not has_others or state.change is None or not len(state.change):
        return {**header, "change": False}, [parameters, *rest]
    return {**header, "change": True}, [parameters[:0], *rest, state.change]


class Copy:
    """On a worker: the parameters, in memory of its own as soon as they come by what has changed."""

    def __init__(self) -> None:
        self._parameters: Vector | None = None

    @reading()
    def decode(self, header: Header, frames: Sequence[Any]) -> tuple[Task, State]:
        """Turn what the driver sent into a task and a state, which is good until the next is decoded.

        Raises
        ------
        WireError
            It is not what `Changes.encode`, or `encode_ask`, makes, or not of the parameters that were sent before.
        """
        if "change" in header:
            return self._changed(header, frames)
        tables = [Table(*plain) for plain in header.get("tables", ())]
        task, state = decode_ask(header, frames[:2] if tables else frames)
        if not tables:
            return task, state
        if "some" in header:
            self._update(state.parameters, tables, frames[2:])
        elif self._parameters is None or self._parameters.shape != state.parameters.shape:
            self._parameters = state.parameters.copy()
        else:
            self._parameters[:] = state.parameters
        assert self._parameters is not None
        return task, State(self._parameters, state.buffers)

    def _changed(self, header: Header, frames: Sequence[Any]) -> tuple[Task, State]:
        """Take all parameters, or add what they have changed by."""
        if not header["change"]:
            task, state = decode_ask(header, frames)
            self._parameters = state.parameters.copy()
        elif self._parameters is None:
            raise WireError("Changes must be of parameters that were sent before, however none were; report this")
        else:
            task, state = decode_ask(header, frames[:-1])
            self._parameters += unpack(np.frombuffer(frames[-1], dtype=np.uint8), len(self._parameters))
        return task, replace(state, parameters=self._parameters)

    def _update(self, dense: Vector, tables: Sequence[Table], frames: Sequence[Any]) -> None:
        """Take all that is no table, and of tables some rows."""
        ours = self._parameters
        if ours is None or ours.dtype != dense.dtype or len(frames) != 2 * len(tables) or tables[0].start != len(dense):
            raise WireError("Rows must be of parameters that were sent before, however they are not; report this")
        ours[: len(dense)] = dense
        for table, rows, values in zip(tables, frames[::2], frames[1::2], strict=True):
            numbers = np.frombuffer(rows, dtype=np.int64)
            whole = table.of(ours)
            if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(whole):
                raise WireError(f"Rows must be among {len(whole)}, however {numbers.max()} is not; report this")
            whole[numbers] = np.frombuffer(values, dtype=ours.dtype).reshape(len(numbers), table.width)
