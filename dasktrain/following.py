"""What workers are told of the parameters where it is made small."""

from typing import Any

import numpy as np
import torch

from dasktrain.codes import Plain, pack, rounded
from dasktrain.compression import Stretches
from dasktrain.errors import BadInput, ModelError
from dasktrain.messages import State, Vector
from dasktrain.players import Players
from dasktrain.state import TrainState
from dasktrain.topology import AMONG, Reduction
from dasktrain.vector import Memory, tensor_in

NOTHING: Vector = np.empty(0, dtype=np.uint8)


class Following:
    """Parameters that follow those of record, by changes on a coarser grid.

    What a change leaves out is in the next one, since that is from where workers are to where parameters are. Where
    they are is part of what a run goes on from.

    Parameters
    ----------
    state
        Of record, float32.
    memory
        Where the parameters lie that workers have.

    Attributes
    ----------
    stretches : Stretches
    """

    def __init__(self, stretches: Stretches, state: TrainState, memory: Memory) -> None:
        self.stretches, self._state = stretches, state
        self._there = tensor_in(memory, state.parameters.layout.size, torch.float32).numpy()
        self._before = np.empty_like(self._there)  # the step under way
        self.begin()

    def begin(self) -> None:
        """Have workers begin where parameters are now."""
        self._before[:] = self._state.parameters.vector.numpy()
        self._know_where = False  # workers, where they are

    def message(self) -> State:
        """Return what the next sum starts from; once for each step, in order."""
        state = self._state.whole()
        change = self._follow(state.parameters)
        if not self._know_where:
            change, self._know_where = NOTHING, True
        return State(self._there, state.buffers, change=change)

    def _follow(self, parameters: Vector) -> Vector:
        """Have workers' parameters follow; return by what, packed."""
        code = self.stretches.change
        if code == Plain():  # there is no need for a difference, which would be rounded
            self._there[:] = parameters
            return NOTHING
        change = rounded(code, parameters - self._before)
        np.add(self._before, change, out=self._there)
        return pack(code, change)

    def stepped(self) -> None:
        """Take note of a step: the next starts from where workers are now."""
        self._before[:] = self._there

    def state_dict(self) -> dict[str, Any]:
        """Return where workers were for the latest step that is done."""
        return {"parameters": torch.tensor(self._before)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Have workers be where they were: what they are sent next is whole."""
        self._before[:] = state["parameters"].numpy()
        self._know_where = False


def check_compression(state: TrainState, players: Players, reduction: Reduction) -> None:
    """Raise an error if what crosses the network cannot be made small."""
    if players.several:
        raise BadInput(
            f"One player must step the whole model where payloads are compressed, however there are "
            f"{list(players.losses)}; leave compression out"
        )
    if named := ", ".join(state.parameters.tables):
        raise ModelError(
            f"Parameters must be dense where payloads are compressed, however {named} is sparse; "
            "use sparse=False, or leave compression out"
        )
    if state.parameters.vector.dtype != torch.float32:
        raise ModelError(
            f"Parameters must be float32 or narrower where payloads are compressed, however some are "
            f"{state.parameters.vector.dtype}; leave compression out"
        )
    if reduction in AMONG:
        raise BadInput(
            f'Compressed payloads must be reduced by the driver, however reduction is "{reduction}"; leave one of them '
            "out"
        )
