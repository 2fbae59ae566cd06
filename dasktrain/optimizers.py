"""Several optimizers as one, and whether one can step tables by their rows."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dasktrain.errors import ModelError
from dasktrain.sparse import Tables, no_rows

#: optimizers that leave rows alone that no gradient touches
OF_ROWS_ALONE = (torch.optim.SGD, torch.optim.Adagrad, torch.optim.SparseAdam)
#: optimizers that have a fused implementation for the CPU
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
MakeOptimizer = Callable[[Any], Optimizer]
MakeScheduler = Callable[[Optimizer], Any]


class Optimizers(Optimizer):
    """Several optimizers as one: each steps the groups that name it.

    Parameters
    ----------
    params
        Parameter groups, each with the name of its optimizer, ``{"params": [...], "optimizer": "dense"}``. Where a
        module has embeddings that are ``sparse=True`` and no groups are given, a Trainer makes two, ``"dense"`` and
        ``"sparse"``.
    makers
        Name -> callable that makes an optimizer of groups; a name that no group has is passed over.

    Raises
    ------
    ModelError
        A group names none of them.

    Examples
    --------
    >>> from functools import partial
    >>> import torch
    >>> from torch.optim import AdamW, SparseAdam
    >>> groups = [
    ...     {"params": [torch.nn.Parameter(torch.ones(2))], "optimizer": "dense"},
    ...     {"params": [torch.nn.Parameter(torch.ones(3, 2))], "optimizer": "sparse"},
    ... ]
    >>> makers = {"dense": partial(AdamW, lr=1e-3), "sparse": partial(SparseAdam, lr=1e-2)}
    >>> [group["lr"] for group in Optimizers(groups, makers).param_groups]
    [0.001, 0.01]
    """

    def __init__(self, params: Iterable[Any], makers: Mapping[str, MakeOptimizer]) -> None:
        named: dict[str, list[Any]] = {name: [] for name in makers}
        for group in params:
            name = group.get("optimizer") if isinstance(group, dict) else None
            if name not in named:
                raise ModelError(
                    f"Every parameter group must name its optimizer, one of {list(named)}, however one names {name}; "
                    'use groups= that return {"params": [...], "optimizer": ...}'
                )
            named[name].append(group)
        self.optimizers = {name: makers[name](groups) for name, groups in named.items() if groups}
        super().__init__([group for each in self.optimizers.values() for group in each.param_groups], {})
        for each in self.optimizers.values():
            self.state.update(each.state)
        self._share()

    def _share(self) -> None:
        """Have all of them work on the groups and the state that are seen here."""
        for name, each in self.optimizers.items():
            each.state = self.state
            each.param_groups = [group for group in self.param_groups if group["optimizer"] == name]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step each of them."""
        for each in self.optimizers.values():
            each.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what ``state_dict()`` returned."""
        super().load_state_dict(state_dict)
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "optimizers": self.optimizers}


def each_of(optimizer: Optimizer) -> Iterator[Optimizer]:
    """Yield those that an optimizer is made of, or itself."""
    if isinstance(optimizer, Optimizers):
        yield from optimizer.optimizers.values()
    else:
        yield optimizer


def check_optimizer(optimizer: Optimizer, trained: Iterable[nn.Parameter]) -> None:
    """Raise ModelError if this is no optimizer of these parameters that steps once a round."""
    if not isinstance(optimizer, Optimizer):
        raise ModelError(
            f"optimizer must be a callable that returns a torch optimizer, however it returned "
            f"{type(optimizer)}; for example partial(torch.optim.AdamW, lr=1e-3)"
        )
    if any(isinstance(each, torch.optim.LBFGS) for each in each_of(optimizer)):
        raise ModelError("An optimizer must step once a round, however LBFGS calls a closure; use another")
    known = set(map(id, trained))
    for group in optimizer.param_groups:
        if any(id(parameter) not in known for parameter in group["params"] if parameter.requires_grad):
            raise ModelError("Parameter groups must hold parameters of the module, however one is foreign")


def settle(optimizer: Optimizer, tables: Iterable[nn.Parameter] = ()) -> None:
    """Have one implementation for the whole run, and not whichever torch prefers for the device.

    The fused ones pass over memory once, and give the same bits for any number of threads; they take no tables.
    """
    rows = set(map(id, tables))
    for each in each_of(optimizer):
        for group in each.param_groups:
            if group.get("foreach") is not None or group.get("fused"):
                continue
            plain = type(each) in FUSED and not (group.get("differentiable") or group.get("capturable"))
            plain = plain and not any(id(parameter) in rows for parameter in group["params"])
            if plain and group.get("fused") is None and not isinstance(group["lr"], Tensor):
                group["fused"] = True
            else:
                group["foreach"] = False


def take_step(optimizer: Optimizer) -> None:
    """Have an optimizer step.

    Parameters whose momentum begins later than that of others step apart, as torch's fused SGD takes either kind alone.
    """
    late = {id(part) for each in each_of(optimizer) if type(each) is torch.optim.SGD for part in _late(each)}
    if not late:
        optimizer.step()
        return
    gradients = [(part, part.grad) for group in optimizer.param_groups for part in group["params"]]
    for turn in (False, True):
        for part, gradient in gradients:
            part.grad = gradient if (id(part) in late) == turn else None
        optimizer.step()
    for part, gradient in gradients:
        part.grad = gradient


def _late(optimizer: torch.optim.SGD) -> list[nn.Parameter]:
    """Return the parameters of fused groups that have a gradient and no momentum, where others have some."""
    late: list[nn.Parameter] = []
    for group in optimizer.param_groups:
        if group.get("fused") and group["momentum"]:
            parts = [part for part in group["params"] if part.grad is not None]
            new = [part for part in parts if optimizer.state.get(part, {}).get("momentum_buffer") is None]
            late += new if len(new) < len(parts) else []
    return late


def check_steps_rows(optimizer: Optimizer, tables: Tables) -> None:
    """Try a step with a copy whose parameters have one row.

    Raises
    ------
    ModelError
        It does not take sparse gradients, or would remember more rows every round.
    """
    rows = {id(table) for table in tables.values()}
    small: dict[int, Any] = {}
    for parameter in (part for group in optimizer.param_groups for part in group["params"]):
        shape = (1, *parameter.shape[1:]) if id(parameter) in rows else (1,) * parameter.ndim
        stand_in = nn.Parameter(parameter.new_zeros(shape))
        stand_in.grad = no_rows(stand_in) if id(parameter) in rows else torch.zeros_like(stand_in)
        small[id(parameter)] = stand_in
        for kept in optimizer.state.get(parameter, {}).values():
            if isinstance(kept, Tensor) and kept.shape == parameter.shape:
                small[id(kept)] = torch.zeros_like(stand_in)
    trial = copy.deepcopy(optimizer, small)
    names = " and ".join(type(each).__name__ for each in each_of(optimizer))
    try:
        trial.step()
    except Exception as error:
        raise _cannot(f"{names} raised {type(error).__name__}: {error}", tables) from error
    kept = (value for values in trial.state.values() for value in values.values())
    if any(isinstance(value, Tensor) and value.layout is not torch.strided for value in kept):
        raise _cannot(f"{names} would remember more of them every round", tables)


def steps_rows_alone(optimizer: Optimizer, tables: Tables) -> bool:
    """Return whether a step is known to change no row of a table but those that have a gradient."""
    ids = {id(table) for table in tables.values()}
    return all(
        type(each) in OF_ROWS_ALONE
        for each in each_of(optimizer)
        if any(id(parameter) in ids for group in each.param_groups for parameter in group["params"])
    )


def _cannot(found: str, tables: Tables) -> ModelError:
    return ModelError(
        f"An optimizer must step the touched rows of {', '.join(tables)}, however {found}; use SparseAdam, "
        "Adagrad or SGD, without weight decay and momentum, for them, dt.Optimizers to have another for the rest, or "
        "sparse=False"
    )
