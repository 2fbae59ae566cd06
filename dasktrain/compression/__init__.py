"""What is sent in place of gradients and parameters, and when it is made up for."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from dasktrain.codes import Code, Plain
from dasktrain.errors import BadInput
from dasktrain.vector import Layout


class Form(Protocol):
    """How gradients (size,) become what is sent, and back; what is sent is summed in the tree.

    `place` is that of a sum in its stretch; `common` is what the sums before it have taught, which the driver and all
    shards have: numbers of an int8 grid, which are sent along with the parameters.
    """

    def first(self) -> Tensor:
        """Return what all have in common when a stretch begins."""

    def size(self, place: int) -> int:
        """Return how many numbers are sent."""

    def common(self, place: int) -> int:
        """Return how many numbers all have in common."""

    def sent(self, gradient: Tensor, place: int, common: Tensor) -> Tensor:
        """Return what is sent of a gradient; perhaps itself."""

    def whole(self, sent: Tensor, place: int, common: Tensor) -> Tensor:
        """Return the gradient (size,) that something sent, or a sum of such, stands for; perhaps itself."""

    def next(self, total: Tensor, place: int, common: Tensor) -> Tensor:
        """Return what all have in common in the next round, from the sum of what was sent in this one."""


class Compression(Protocol):
    """How what crosses the network is made small.

    Rounds go in stretches. The last sum of a stretch is sent whole, with all that shards have kept to themselves, and
    so are the parameters that the next begins with: then nothing is remembered anywhere that is not in the state of
    record. Checkpoints are written there, and a run ends there.
    """

    @property
    def every(self) -> int:
        """Sums of a stretch; fewer at the end of an epoch."""

    @property
    def remembers(self) -> bool:
        """Whether a shard keeps what it has not sent.

        If it is lost with its worker, all go back to where the stretch began, and come to the same bits.
        """

    @property
    def code(self) -> Code:
        """Of what is sent: every node of the tree is rounded to its grid."""

    @property
    def change(self) -> Code:
        """Of what parameters change by; the driver keeps what is rounded away."""

    def form(self, layout: Layout) -> Form:
        """Return how gradients of a layout become what is sent."""


@dataclass(frozen=True)
class Sent:
    """What the vectors of a sum are like.

    Attributes
    ----------
    code : Code
        That they are packed by.
    size : int
        Numbers of each.
    kept : int
        Of so many sums before it shards have kept something.
    """

    code: Code
    size: int
    kept: int


class Stretches:
    """Where the sums of a run lie in their stretches, and what is sent in each.

    Parameters
    ----------
    layout
        Of gradients.
    steps
        Rounds of a sum.
    rounds
        Of an epoch, with which a stretch ends.

    Attributes
    ----------
    remembers : bool
        See :class:`Compression`.
    change : Code
    form : Form
    steps : int
    """

    def __init__(self, compression: Compression, layout: Layout, steps: int, rounds: int) -> None:
        self.remembers, self.change, self.form = compression.remembers, compression.change, compression.form(layout)
        self._code, self._every, self._size = compression.code, compression.every, layout.size
        self.steps, self._rounds = steps, rounds

    def place(self, round: int) -> int:
        """Return how many sums of its stretch come before the one that begins with a round."""
        return round // self.steps % self._every

    def first(self, round: int) -> int:
        """Return the round with which the stretch of a round begins."""
        return round - round % (self._every * self.steps)

    def begins_to_keep(self, round: int) -> bool:
        """Return whether shards will keep something in the sum that begins with a round, having kept nothing."""
        return self.remembers and not self.place(round) and not self.is_whole(round)

    def is_whole(self, round: int) -> bool:
        """Return whether the sum that begins with a round ends its stretch."""
        return self.place(round) == self._every - 1 or round + self.steps >= self._rounds

    def sent(self, round: int) -> Sent:
        """Return what is sent in the sum that begins with a round."""
        place = self.place(round)
        kept = place if self.remembers else 0
        if self.is_whole(round):
            return Sent(Plain(), self._size, kept)
        return Sent(self._code, self.form.size(place), kept)


def checked(compression: Any) -> Compression | None:
    """Return a compression, or None for none; raise BadInput if it is something else."""
    if compression is not None and (isinstance(compression, type) or not hasattr(compression, "form")):
        raise BadInput(
            f"compression must be like dt.Rounding(), dt.TopK() or dt.PowerSGD(), however it is {compression!r}"
        )
    found: Compression | None = compression
    return found


def check_count(name: str, value: int) -> None:
    """Raise BadInput if a number of something is none."""
    if type(value) is not int or value < 1:
        raise BadInput(f"{name} must be a whole number and at least 1, however it is {value!r}")
