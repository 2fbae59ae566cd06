"""What the driver gives owners of the parameters: their values, or how they were stepped, if they had those before."""

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dasktrain.cut import Cut
from dasktrain.messages import Header, State, Task, Vector, array_of, encode_part, of_kind, reading
from dasktrain.owned import OPTIMIZERS, fingerprint
from dasktrain.steps import TOGETHER, Mean, Piece, Step, Steps
from dasktrain.wire.channel import Message


class _Owner(NamedTuple):
    """What an owner has: buckets of a mesh, cut in some way, and what is kept of them after so many steps, if it is."""

    mesh: str
    cut: Cut
    steps: int | None


class Handout:
    """On the driver: who has which part of which state, and what each owner is therefore given.

    An owner is given values in the first round of a mesh, and in the second also what the optimizer keeps of them. From
    then on it is told each step, which it takes with the sum that it has added up itself, and a fingerprint of what
    must come of it. If something else does, it says so and is given the values, and no more than these until an epoch
    begins, the next time until twice as many have begun, and so on: parameters are changed between steps, or its
    processor rounds otherwise than the driver's.
    """

    def __init__(self) -> None:
        self._owners: dict[str, _Owner] = {}
        self._epochs = 0
        self._out: dict[str, tuple[int, int]] = {}  # who cannot step: until when, and for how long

    def begin_epoch(self) -> None:
        """Take note that an epoch begins."""
        self._epochs += 1

    def forget(self, worker: str) -> None:
        """Take note of a worker's end."""
        self._owners.pop(worker, None)

    def parts(
        self, worker: str, mesh: str, task: Task, cut: Cut, offsets: Collection[int], state: State
    ) -> Iterator[Message]:
        """Yield what an owner is given of some buckets of a state, of whose steps it is told if that has any."""
        owner = self._next(worker, mesh, cut, state.steps)
        known, self._owners[worker] = self._owners.get(worker), owner
        if state.steps is None or owner.steps is None or known is None:
            yield from values(task, cut, offsets, state)
        elif known.steps is None:
            for offset, (header, arrays) in zip(offsets, values(task, cut, offsets, state), strict=True):
                told, kept = encode_pieces(state.steps.pieces(cut.place(offset)))
                yield header | told, [*arrays, *kept]
        else:
            if owner.steps != known.steps and offsets:
                latest = state.steps.latest()
                assert latest is not None  # or it would own nothing
                yield encode_step(latest), []
            for header, (part,) in values(task, cut, offsets, state):
                yield header | {"made": fingerprint(part)}, [part[:0]]

    def _next(self, worker: str, mesh: str, cut: Cut, steps: Steps | None) -> _Owner:
        """Return what a worker is to have."""
        known, (until, _) = self._owners.get(worker), self._out.get(worker, (0, 0))
        new = _Owner(mesh, cut, None)
        if steps is None or known is None or known[:2] != new[:2] or self._epochs < until:
            return new
        if steps.count and steps.latest() is None:
            return new
        if known.steps is not None and steps.count - known.steps > 1:
            self.unlike(worker)
            return new
        return new._replace(steps=steps.count)

    def unlike(self, worker: str) -> None:
        """Take note that an owner cannot step some bucket as the driver does."""
        if self._owners.pop(worker, None) is not None:
            _, epochs = self._out.get(worker, (0, 0))
            epochs = max(1, 2 * epochs)
            self._out[worker] = self._epochs + epochs, epochs


def values(task: Task, cut: Cut, offsets: Collection[int], state: State) -> Iterator[Message]:
    """Yield the values of some buckets."""
    for offset in offsets:
        yield encode_part(task, offset, state.parameters[cut.place(offset)])


def over(task: Task, offsets: Collection[int]) -> Iterator[Message]:
    """Yield that there are no values of some buckets any more: the round is over."""
    for offset in offsets:
        header, arrays = encode_part(task, offset, np.empty(0, np.float32))
        yield header | {"over": True}, arrays


def encode_step(step: Step) -> Header:
    """Turn a step into a header."""
    mean = [float(step.mean.divisor), float(step.mean.factor), list(step.mean.used)]
    return {"stepped": step.optimizer, "groups": list(step.groups), "mean": mean}


@reading()
def decode_step(header: Header) -> Step:
    """Return a step.

    Raises
    ------
    WireError
        It is not what `encode_step` makes.
    """
    if (optimizer := header["stepped"]) not in OPTIMIZERS:
        raise ValueError(f"{optimizer!r:.80} steps nothing")
    groups = tuple(
        {of_kind(str, name): tuple(value) if isinstance(value, list) else value for name, value in group.items()}
        for group in map(dict, header["groups"])
    )
    divisor, factor, used = header["mean"]
    if not (math.isfinite(of_kind(float, divisor)) and math.isfinite(of_kind(float, factor)) and divisor):
        raise ValueError(f"gradients are divided by {divisor} and multiplied by {factor}")
    return Step(optimizer, groups, Mean(divisor, factor, frozenset(of_kind(int, number) for number in used)))


def encode_pieces(pieces: Sequence[Piece]) -> Message:
    """Turn what a bucket consists of into header and arrays: one, of all that is kept, since frames are few."""
    told = [
        [
            *(piece.parameter, piece.group, piece.place.start, piece.place.stop, piece.before, piece.after),
            {name: isinstance(part, np.ndarray) or part for name, part in piece.kept.items()},
        ]
        for piece in pieces
    ]
    arrays = [part for piece in pieces for part in piece.arrays]
    return {"pieces": told}, [np.concatenate(arrays)] if arrays else []


@reading()
def decode_pieces(header: Header, frames: Sequence[Any]) -> list[Piece]:
    """Return what a bucket consists of.

    Raises
    ------
    WireError
        It is not what `encode_pieces` makes.
    """
    (kept,) = [array_of(frame, header["dtype"]) for frame in frames] or [np.empty(0)]
    pieces, at = [], 0
    for *numbers, told in header["pieces"]:
        parameter, group, start, stop, before, after = (of_kind(int, number) for number in numbers)
        if min(parameter, group, start, before, after) < 0 or start >= stop or max(before, after) >= TOGETHER:
            raise ValueError(f"numbers {start} to {stop} are no piece")
        found: dict[str, Vector | float | None] = {}
        for name, part in dict(told).items():
            found[of_kind(str, name)] = kept[at : (at := at + stop - start)] if part is True else _number(part)
        pieces.append(Piece(parameter, group, slice(start, stop), before, after, found))
    if at != len(kept):
        raise ValueError(f"of {at} numbers {len(kept)} are kept")
    return pieces


def _number(part: Any) -> float | None:
    return None if part is None else of_kind(float, part)
