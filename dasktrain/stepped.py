"""Takes note of what the driver's optimizer does, as far as others can do it."""

from bisect import bisect_left, bisect_right
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from dasktrain.messages import Vector
from dasktrain.optimizers import FUSED
from dasktrain.steps import TOGETHER, Mean, Piece, Step
from dasktrain.vector import FlatParameters

#: values that others can be told
PLAIN = (bool, int, float, str, type(None))


class Stepped:
    """The steps of an optimizer, see :class:`dasktrain.steps.Steps`.

    Others can take them if they go number by number and are fused: then torch steps each number by the same formula,
    wherever it lies, but for those left over at the end of a parameter.

    Parameters
    ----------
    optimizer
        Of the parameters.
    parameters
        Some of which it steps.

    Attributes
    ----------
    can_be_told : bool
        Whether others can take such steps, as far as that is known before the first.
    """

    def __init__(self, optimizer: Optimizer, parameters: FlatParameters) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        self.count = 0
        self._mean: Mean | None = None
        self._groups: list[dict[str, Any]] = []
        self._places = list(parameters.layout.places.items())
        self.can_be_told = (
            type(optimizer) in FUSED
            and not parameters.tables
            and all(part.dtype == parameters.vector.dtype for part in parameters.parameters.values())
            and all(group.get("fused") and _is_plain(group) for group in optimizer.param_groups)
        )
        self._starts = [place.start for _, place in self._places]
        self._group_of = {
            id(part): number for number, group in enumerate(optimizer.param_groups) for part in group["params"]
        }

    def note(self, mean: Mean | None) -> None:
        """Take note that parameters are stepped now; None: that they change in a way that nobody else can."""
        self.count += 1
        self._mean = mean
        self._groups = [dict(group) for group in self._optimizer.param_groups]

    def latest(self) -> Step | None:
        """Return the last one; None if nobody else can take it."""
        if self._mean is None or not all(map(_is_plain, self._groups)):
            return None
        groups = tuple({name: group[name] for name in _told(group)} for group in self._groups)
        return Step(type(self._optimizer).__name__, groups, self._mean)

    def pieces(self, place: slice) -> list[Piece]:
        """Return what a bucket at some place of the parameters consists of, as far as the optimizer steps it."""
        within = range(bisect_right(self._starts, place.start) - 1, bisect_left(self._starts, place.stop))
        found = (self._piece(number, place) for number in within)
        return [piece for piece in found if piece is not None]

    def _piece(self, number: int, bucket: slice) -> Piece | None:
        """Return what a bucket has of a parameter, if anything does, and the optimizer steps it."""
        name, whole = self._places[number]
        parameter = self._parameters.parameters[name]
        start, stop = max(bucket.start - whole.start, 0), min(bucket.stop, whole.stop) - whole.start
        group = self._group_of.get(id(parameter))
        if group is None or start >= stop:
            return None
        place = slice(whole.start + start - bucket.start, whole.start + stop - bucket.start)
        before, after = start % TOGETHER, min(-stop % TOGETHER, parameter.numel() - stop)
        return Piece(number, group, place, before, after, self._kept(parameter, slice(start, stop)))

    def _kept(self, parameter: Tensor, place: slice) -> dict[str, Any]:
        """Return what the optimizer keeps of some numbers of a parameter."""
        state = self._optimizer.state.get(parameter, {})
        return {name: value if value is None else _part(name, value, place) for name, value in state.items()}


def _part(name: str, value: Tensor, place: slice) -> Vector | float:
    """Return what is kept of some numbers, or of all of them: how often they were stepped."""
    return float(value) if name == "step" else value.reshape(-1)[place].numpy()


def _told(group: dict[str, Any]) -> list[str]:
    return [name for name in group if name not in ("params", "param_names")]


def _is_plain(group: dict[str, Any]) -> bool:
    values = (group[name] for name in _told(group))
    return all(
        all(isinstance(each, PLAIN) for each in (value if isinstance(value, tuple | list) else [value]))
        for value in values
    )
