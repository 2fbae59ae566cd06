"""What workers are told of the parameters where it is made small, and what is made of what they send."""

from dataclasses import replace

import numpy as np
import torch

from dasktrain.codes import INT8, pack, rounded
from dasktrain.compression import Stretches
from dasktrain.domain import pinned
from dasktrain.errors import BadInput, ModelError
from dasktrain.messages import Partial, State, Vector
from dasktrain.players import Players
from dasktrain.state import TrainState
from dasktrain.topology import Reduction
from dasktrain.vector import Memory, tensor_in

NOTHING: Vector = np.empty(0, dtype=np.uint8)


class Following:
    """Parameters that follow those of record: whole when a stretch begins, and then by changes on a coarser grid.

    What a change leaves out is in the next one, since that is from where workers are to where parameters are.

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
        self.stretches, self._form, self._state = stretches, stretches.form, state
        self._there = tensor_in(memory, state.parameters.layout.size, torch.float32).numpy()
        with pinned(1):  # whatever the driver has
            self._first = self._common = self._form.first()

    def message(self, round: int) -> State:
        """Return what the sum that begins with a round starts from; once for each, in order."""
        state = self._state.whole()
        if self.stretches.place(round):
            change = rounded(self.stretches.change, state.parameters - self._there)
            self._there += change
            packed = pack(self.stretches.change, change)
        else:
            self._there[:], packed, self._common = state.parameters, NOTHING, self._first
        common = pack(INT8, self._common.numpy()) if len(self._common) else None
        return State(self._there, state.buffers, change=packed, common=common)

    def whole(self, round: int, total: Partial) -> Partial:
        """Return the gradient that the sum of what was sent stands for; once for each round, in order."""
        if total.vector is None or self.stretches.is_whole(round):
            return total
        place, sent = self.stretches.place(round), torch.tensor(total.vector)
        whole = self._form.whole(sent, place, self._common)
        self._common = self._form.next(sent, place, self._common)
        return replace(total, vector=whole.numpy())


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
    if reduction == "sharded":
        raise BadInput(
            'Compressed payloads must be reduced by the driver, however reduction is "sharded"; leave one of them out'
        )
