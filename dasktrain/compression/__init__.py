"""What is sent in place of gradients and parameters, and when it is made up for."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from dasktrain.codes import Code
from dasktrain.compression.whole import AsItIs
from dasktrain.errors import BadInput
from dasktrain.vector import Layout


class Form(Protocol):
    """How gradients (size,) become what is sent, and back."""

    @property
    def size(self) -> int:
        """Numbers that are sent."""

    @property
    def adds(self) -> bool:
        """Whether a sum of what is sent stands for a sum of gradients.

        If not, what each shard sends is sent by itself, and the driver adds up gradients.
        """

    def sent(self, gradient: Tensor) -> Tensor:
        """Return what is sent of a gradient; perhaps itself."""

    def gradient(self, sent: Tensor) -> Tensor:
        """Return the gradient (size,) that something sent stands for; perhaps itself."""


class Compression(Protocol):
    """How what crosses the network is made small.

    Shards may keep what they have not sent, for a stretch of sums. In the last of it they send gradients of all
    parameters, with all that they have kept, and keep nothing: then nothing is remembered anywhere that is not on the
    driver. Checkpoints are written there, and a run ends there. If a worker is lost before, all go back to where the
    stretch began, and come to the same bits.
    """

    @property
    def every(self) -> int:
        """Sums of a stretch; fewer at the end of an epoch. 1: shards keep nothing."""

    @property
    def code(self) -> Code:
        """Of what is sent: every node of the tree is rounded to its grid."""

    @property
    def last(self) -> Code:
        """Of what is sent in the last sum of a stretch."""

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
    form : Form
        What shards' gradients have become.
    code : Code
        That they are packed by.
    kept : int
        Of so many sums before it shards have kept something.
    """

    form: Form
    code: Code
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
    change : Code
    steps : int
    """

    def __init__(self, compression: Compression, layout: Layout, steps: int, rounds: int) -> None:
        self.change, self.steps = compression.change, steps
        self._sent = compression.form(layout), compression.code
        self._last = AsItIs(layout.size), compression.last
        self._every, self._rounds = compression.every, rounds

    def place(self, round: int) -> int:
        """Return how many sums of its stretch come before the one that begins with a round."""
        return round // self.steps % self._every

    def first(self, round: int) -> int:
        """Return the round with which the stretch of a round begins."""
        return round - round % (self._every * self.steps)

    def begins_to_keep(self, round: int) -> bool:
        """Return whether shards will keep something in the sum that begins with a round, having kept nothing."""
        return not self.place(round) and not self.is_last(round)

    def is_last(self, round: int) -> bool:
        """Return whether the sum that begins with a round ends its stretch."""
        return self.place(round) == self._every - 1 or round + self.steps >= self._rounds

    def sent(self, round: int) -> Sent:
        """Return what is sent in the sum that begins with a round."""
        form, code = self._last if self.is_last(round) else self._sent
        return Sent(form, code, self.place(round))


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
