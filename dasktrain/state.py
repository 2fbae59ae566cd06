"""The state of record: module, optimizer and scheduler on the driver. Everything else is disposable."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dasktrain.buffers import FlatBuffers
from dasktrain.messages import State, Table
from dasktrain.optimizers import (
    MakeOptimizer,
    MakeScheduler,
    check_optimizer,
    check_steps_rows,
    settle,
    steps_rows_alone,
    take_step,
)
from dasktrain.sparse import Changed, no_rows, tables
from dasktrain.stepped import Stepped
from dasktrain.steps import Mean
from dasktrain.touched import Touched
from dasktrain.vector import FlatParameters, Memory, plain_memory, trainable

#: parameters from which on a step takes longer than waking threads, which then spin for a while
LARGE = 1 << 19


@dataclass(frozen=True)
class Snapshot:
    """A copy of everything that training changes."""

    parameters: Tensor
    buffers: Tensor
    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None


@dataclass
class Cursor:
    """How far a run has come: rounds before `round` of `epoch` are done, `done` of them in all.

    Attributes
    ----------
    sums : ndarray or None
        (scalars,) float64: the sums of the running epoch's rounds.
    wished : bool
        Whether an observer asked to stop.
    settled : bool
        False while a step is under way, and while shards keep something that nobody else has.
    ended : str
        Why the run ended: "epochs", "max_rounds", "observer", "interrupt", or what made it leave a search; "" while it
        goes on, and if it failed.
    """

    epoch: int = 0
    round: int = 0
    done: int = 0
    sums: np.ndarray | None = None
    wished: bool = False
    settled: bool = True
    ended: str = ""


class TrainState:
    """A module with its optimizer and scheduler; parameters and buffers also as flat vectors.

    Parameters
    ----------
    module
        Taken over: its parameters become views of one vector.
    make_optimizer
        Called with the parameters that require gradients (or with what `groups` makes of the module). Where some of
        them are tables, with a group of all others and one of these, which name an optimizer ``"dense"`` and
        ``"sparse"``.
    make_scheduler
        Called with the optimizer; None for a constant learning rate.
    groups
        ``groups(module)`` returns torch parameter groups, a list of dicts.
    memory
        Where the vectors lie.
    """

    def __init__(
        self,
        module: nn.Module,
        make_optimizer: MakeOptimizer,
        make_scheduler: MakeScheduler | None = None,
        groups: Callable[[nn.Module], Iterable[Any]] | None = None,
        memory: Memory = plain_memory,
    ) -> None:
        self.module = module
        self.parameters = FlatParameters(module, memory)
        self.buffers = FlatBuffers(module, memory)
        self._changed = Changed(self.parameters.tables)
        self.optimizer = make_optimizer(list(groups(module)) if groups else self._groups())
        check_optimizer(self.optimizer, self.parameters.parameters.values())
        settle(self.optimizer, self.parameters.tables.values())
        if self.parameters.tables:
            check_steps_rows(self.optimizer, self.parameters.tables)
        self._rows_alone = steps_rows_alone(self.optimizer, self.parameters.tables)
        self._stepped = Stepped(self.optimizer, self.parameters)
        self.scheduler = make_scheduler(self.optimizer) if make_scheduler else None

    def _groups(self) -> list[Any]:
        """Return all parameters, tables apart: no fused implementation steps them."""
        tables = list(self.parameters.tables.values())
        others = list(self.parameters.parameters.values())[: len(self.parameters.gradient.shapes)]
        if not tables:
            return others
        parts = ("dense", others), ("sparse", tables)
        return [{"params": part, "optimizer": name} for name, part in parts if part]

    def threads(self, pinned: int) -> int:
        """Return how many threads to step with: as many as torch has if they are worth it and change no bits."""
        fused = all(group.get("fused") for group in self.optimizer.param_groups)
        return torch.get_num_threads() if fused and self.parameters.layout.size >= LARGE else pinned

    def message(self) -> State:
        """Return what a round starts from, and what of its tables has changed since the last; arrays share memory."""
        state = self.whole()
        changed = zip(state.tables, self._changed.take(), strict=True)
        return replace(state, tables=tuple(replace(table, changed=rows) for table, rows in changed))

    def whole(self) -> State:
        """Return what a round starts from, as if all of its tables had changed; the arrays share memory."""
        parameters = self.parameters
        tables = (
            Table(parameters.layout.places[name].start, len(table), table.shape[1])
            for name, table in parameters.tables.items()
        )
        steps = self._stepped if self._stepped.can_be_told else None
        return State(parameters.vector.numpy(), self.buffers.vector.numpy(), tuple(tables), steps=steps)

    def step(self, touched: Sequence[Touched], mean: Mean | None = None) -> None:
        """Have the optimizer step parameters that have their gradients, which for tables are of the rows touched.

        `mean`: how the sum of a round became these gradients, if there is nothing else to know.
        """
        self._stepped.note(mean)
        with self._changed.by_step(touched if self._rows_alone else None):
            take_step(self.optimizer)
        self.parameters.store()

    @property
    def learning_rate(self) -> float:
        """Of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def digest(self) -> str:
        """sha256 over the state, see :func:`digest`."""
        return digest(self.module, self.optimizer)

    def optimizer_bytes(self) -> int:
        """Bytes that the optimizer will keep."""
        return optimizer_bytes(self.module, self.optimizer)

    def snapshot(self) -> Snapshot:
        """Copy everything that training changes."""
        return copy.deepcopy(
            Snapshot(
                self.parameters.vector,
                self.buffers.vector,
                self.optimizer.state_dict(),
                self.scheduler.state_dict() if self.scheduler else None,
            )
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this state."""
        snapshot = copy.deepcopy(snapshot)
        self._stepped.note(None)
        self.parameters.vector.copy_(snapshot.parameters)
        self.parameters.load()
        self._changed = Changed(self.parameters.tables)
        self.buffers.vector.copy_(snapshot.buffers)
        self.buffers.load()
        self.optimizer.load_state_dict(snapshot.optimizer)
        if self.scheduler and snapshot.scheduler is not None:
            self.scheduler.load_state_dict(snapshot.scheduler)


def optimizer_bytes(module: nn.Module, optimizer: Optimizer) -> int:
    """Return the bytes that an optimizer of a module will keep, from a step that a copy takes."""
    module, optimizer = copy.deepcopy((module, optimizer))
    rows = tables(module)
    for name, parameter in trainable(module).items():
        parameter.grad = no_rows(parameter) if name in rows else torch.zeros_like(parameter)
    optimizer.step()
    kept = (value for values in optimizer.state.values() for value in values.values())
    return sum(value.nbytes for value in kept if isinstance(value, Tensor))


def named_state(module: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters, buffers and optimizer state by name, in an order of their own."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    yield from ((f"parameters/{name}", parameter.detach()) for name, parameter in sorted(module.named_parameters()))
    yield from ((f"buffers/{name}", buffer) for name, buffer in sorted(module.named_buffers()))
    state = {names[id(parameter)]: kept for parameter, kept in optimizer.state.items()}
    for name, kept in sorted(state.items()):
        for key, value in sorted(kept.items()):
            if value is not None:
                yield f"optimizer/{name}/{key}", torch.as_tensor(value)


def digest(module: nn.Module, optimizer: Optimizer) -> str:
    """Return the hex sha256 of a training state.

    It covers names, dtypes, shapes and bytes of parameters, buffers and optimizer state. Two runs with one
    digest are the same to the last bit.
    """
    return digest_of(named_state(module, optimizer))


def digest_of(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return the hex sha256 of named tensors, in the order given."""
    total = hashlib.sha256()
    for name, tensor in named:
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
