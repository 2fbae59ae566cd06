"""What shards send in place of their gradients, and what each keeps for its next."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dasktrain.accumulate import Flat, Gradients, Sum, parts
from dasktrain.codes import pack, rounded
from dasktrain.compression import Stretches
from dasktrain.domain import make_up
from dasktrain.messages import Partial, Task
from dasktrain.plan import Plan
from dasktrain.reduce import Node, subtrees
from dasktrain.vector import Layout


@dataclass(frozen=True, slots=True)
class _Rest:
    """What a shard has not sent, of a sum over so many rows, and which parameters it is of.

    It waits for a round of an epoch.
    """

    vector: Tensor | None
    used: np.ndarray  # (parameters,) as in a shard's scalars
    rows: int
    epoch: int
    round: int


class Packer:
    """What a worker sends of the gradients of its shards.

    Parameters
    ----------
    layout
        Of gradients, float32.
    sums
        Of a shard's scalars.
    plan
        Of the training.
    """

    def __init__(self, stretches: Stretches, layout: Layout, sums: Layout, plan: Plan) -> None:
        self._stretches, self._layout, self._sums, self._plan = stretches, layout, sums, plan
        self._rests: dict[int, _Rest] = {}

    def begin(self, task: Task) -> bool:
        """Begin with a sum; return whether all is known that its shards have kept until now."""
        self._task = task
        self._sent, self._is_last = self._stretches.sent(task.round), self._stretches.is_last(task.round)
        self._rows = sum(self._plan.rows_of_round(task.round + done) for done in range(task.rounds))
        now = task.epoch, task.round
        self._rests = {shard: rest for shard, rest in self._rests.items() if (rest.epoch, rest.round) >= now}
        if not self._sent.kept:
            return True
        rests = [self._rests.get(shard) for shard in range(task.start, task.stop)]
        return all(rest is not None and (rest.epoch, rest.round) == now for rest in rests)

    def trial(self) -> Tensor:
        """Return what is sent of a made-up gradient."""
        gradient = torch.empty(self._layout.size)
        make_up(self._layout.views(gradient).values())
        return self._stretches.sent(0).form.sent(gradient)

    def nodes(self, task: Task) -> list[Node]:
        """Return the nodes of the tree whose sums are sent."""
        if self._sent.form.adds:
            return list(subtrees(task.start, task.stop, self._plan.shards))
        return [(shard, shard + 1) for shard in range(task.start, task.stop)]

    def forget(self, task: Task) -> None:
        """Keep nothing of a task's shards."""
        for shard in range(task.start, task.stop):
            self._rests.pop(shard, None)

    def leaf(self, shard: int, found: Sum | None) -> Sum | None:
        """Return what is sent of one shard's gradient, if there is something, and keep the rest."""
        scalars = np.zeros(self._sums.size) if found is None else found.scalars
        used = self._sums.views(scalars)["used"]
        rest = self._rests.pop(shard, None) if self._sent.kept else None
        vector = None if found is None or found.gradients is None else self._flat(found.gradients)
        if rest is not None and rest.vector is not None:
            np.maximum(used, rest.used, out=used)
            left = rest.vector * (self._rows / rest.rows)  # steps are by means over rows
            vector = left if vector is None else left + vector
        sent = None if vector is None else self._rounded(self._sent.form.sent(vector))
        if not self._is_last:
            self._keep(shard, vector, sent, used.copy())
        return None if sent is None else Sum([sent], scalars)

    def _rounded(self, vector: Tensor) -> Tensor:
        return torch.from_numpy(rounded(self._sent.code, vector.numpy()))

    def _keep(self, shard: int, vector: Tensor | None, sent: Tensor | None, used: np.ndarray) -> None:
        left = None if vector is None or sent is None else vector - self._sent.form.gradient(sent)
        self._rests[shard] = _Rest(left, used, self._rows, self._task.epoch, self._task.round + self._task.rounds)

    def _flat(self, gradients: Flat | Gradients) -> Tensor:
        """Return a shard's gradient as one vector of its own."""
        vector = torch.zeros(self._layout.size)
        for out, part in zip(self._layout.views(vector).values(), parts(gradients), strict=True):
            if part is not None:
                out.copy_(part)
        return vector

    def add(self, left: Sum, right: Sum) -> Sum:
        """Return left + right, rounded."""
        left.scalars += right.scalars
        return Sum([self._rounded(_vector(left) + _vector(right))], left.scalars)

    def partial(self, start: int, stop: int, node: Sum | None) -> Partial:
        """Return the sum of a node, packed."""
        if node is None:
            return Partial(start, stop, None, None)
        return Partial(start, stop, pack(self._sent.code, _vector(node).numpy()), node.scalars)


def _vector(node: Sum) -> Tensor:
    """Return what is summed of a node."""
    assert isinstance(node.gradients, list)
    (vector,) = node.gradients
    assert vector is not None
    return vector
