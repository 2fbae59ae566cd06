"""Who steps: one player, or several that take turns on the rows of each round."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dasktrain.errors import BadInput, ModelError, nearest
from dasktrain.objective import Measure
from dasktrain.sparse import tables
from dasktrain.vector import trainable


@dataclass(frozen=True)
class Players:
    """The losses that a model is trained by, and whose turn it is when.

    Attributes
    ----------
    losses : mapping
        Player -> loss. A player is a part of the model, by its name, and steps the parameters of that part to make its
        own loss less; ``""`` is the whole model, and then there is no other.
    turns : tuple of str
        The players in the order in which they step within a round. Each turn starts from what the one before made.
    """

    losses: Mapping[str, Measure]
    turns: tuple[str, ...]

    @classmethod
    def of(cls, loss: Measure | Mapping[str, Measure], turns: Sequence[str] | None = None) -> "Players":
        """Take what a Trainer was given.

        Raises
        ------
        BadInput
            Turns name another player, or leave one out.
        """
        losses = dict(loss) if isinstance(loss, Mapping) else {"": loss}
        if not losses:
            raise BadInput("There must be a player with a loss, however loss is an empty mapping")
        order = tuple(losses if turns is None else turns)
        for name in order:
            if name not in losses:
                raise BadInput(
                    f"Turns must be of players with a loss, however one is of {name!r}; {nearest(name, list(losses))}"
                )
        if idle := set(losses) - set(order):
            raise BadInput(f"Every player must have a turn, however {sorted(idle)} have none; add them to turns=")
        return cls(losses, order)

    @property
    def several(self) -> bool:
        """Whether there may be others than one that steps the whole model."""
        return "" not in self.losses

    @property
    def figures(self) -> list[str]:
        """The name of each one's loss in the history."""
        return [f"{name}_loss" if name else "loss" for name in self.losses]

    def number(self, turn: int) -> int:
        """Return which of the players has a turn."""
        return list(self.losses).index(self.turns[turn])

    def is_last(self, turn: int) -> bool:
        """Return whether a round is over after a turn."""
        return turn == len(self.turns) - 1

    def parameters(self, module: nn.Module) -> list[list[int]]:
        """Return each one's parameters, as places among those that are trainable.

        Raises
        ------
        ModelError
            A parameter belongs to none of them, or to two; a player has none.
        """
        names = list(trainable(module))
        if not self.several:
            return [list(range(len(names)))]
        found = [[at for at, name in enumerate(names) if name.startswith(f"{player}.")] for player in self.losses]
        for player, mine in zip(self.losses, found, strict=True):
            if not mine:
                parts = [name for name, _ in module.named_children()]
                raise ModelError(
                    f"A player must be a part of the model with parameters to train, however {player!r} is none; "
                    f"{nearest(player, parts)}"
                )
        taken = Counter(at for mine in found for at in mine)
        for at, name in enumerate(names):
            if taken[at] != 1:
                raise ModelError(
                    f"Every parameter must be stepped by one player, however {name!r} belongs to {taken[at]} of "
                    f"{list(self.losses)}; have players be parts that do not overlap, or freeze it with "
                    "requires_grad_(False)"
                )
        return found

    def groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Return parameter groups that name each player's optimizer; tables apart, which no fused one steps."""
        parameters, last = list(trainable(module).values()), len(tables(module))
        first = len(parameters) - last
        groups = []
        for player, mine in zip(self.losses, self.parameters(module), strict=True):
            for part in ([at for at in mine if at < first], [at for at in mine if at >= first]):
                if part:
                    groups.append({"params": [parameters[at] for at in part], "optimizer": player})
        return groups
