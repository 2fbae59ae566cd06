"""The state of record: its digest, its snapshots, and the optimizers it takes."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from dasktrain.domain import made_up, pinned
from dasktrain.errors import ModelError
from dasktrain.state import TrainState, digest

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAMW = partial(torch.optim.AdamW, lr=0.01)


class Small(nn.Module):
    """Parameters of two dtypes, a frozen one, and buffers that change."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.narrow = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        self.frozen = nn.Parameter(torch.tensor(7.0), requires_grad=False)
        self.register_buffer("mean", torch.tensor([0.5, 0.25]))
        self.register_buffer("count", torch.tensor(3))


class Forgetful(nn.Module):
    """A buffer that state_dict() leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("mean", torch.zeros(1), persistent=False)


def train(state: TrainState, steps: int, first: int = 0) -> None:
    """Step on made-up gradients, and change the buffers as a round does."""
    for step in range(first, first + steps):
        random = torch.Generator().manual_seed(step)
        for parameter in state.parameters.parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=random).to(parameter.dtype)
        state.optimizer.step()
        state.parameters.store()
        state.buffers.add(torch.ones(state.buffers.layout.size, dtype=torch.float64))
        if state.scheduler:
            state.scheduler.step()


# -- the digest -------------------------------------------------------------------------------------------------

Tensors = dict[str, Tensor]
Change = Callable[[Tensors, Tensors, Tensors], object]


def next_up(tensor: Tensor) -> None:
    """Change the last bit of the first element."""
    first = tensor.reshape(-1)[:1]
    first.copy_(torch.nextafter(first, torch.full_like(first, torch.inf)))


def digest_after(change: Change) -> str:
    """Change named parameters, buffers or optimizer state, and return the digest of what they make."""
    parameters = {"a": torch.arange(4.0), "b": torch.ones(2, 2)}
    buffers = {"count": torch.tensor(1), "mean": torch.ones(2)}
    momenta = {"a": torch.full((4,), 0.5), "b": torch.ones(2, 2)}
    change(parameters, buffers, momenta)
    module = nn.Module()
    for name, tensor in parameters.items():
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=name == "a"))
    for name, tensor in buffers.items():
        module.register_buffer(name, tensor)
    optimizer = SGD(list(module.parameters()))
    for name, tensor in momenta.items():
        optimizer.state[module.get_parameter(name)] = {"momentum_buffer": tensor, "unset": None}
    return digest(module, optimizer)


def reordered(tensors: Tensors) -> None:
    for name in sorted(tensors, reverse=True):
        tensors[name] = tensors.pop(name)


CHANGES: dict[str, Change] = {
    "bit of a parameter": lambda p, b, m: next_up(p["a"]),
    "bit of a frozen parameter": lambda p, b, m: next_up(p["b"]),
    "bit of a buffer": lambda p, b, m: next_up(b["mean"]),
    "bit of the optimizer": lambda p, b, m: next_up(m["a"]),
    "sign of zero": lambda p, b, m: p["a"][0].neg_(),
    "dtype of a parameter": lambda p, b, m: p.update(a=p["a"].double()),
    "dtype of the same bytes": lambda p, b, m: b.update(mean=b["mean"].view(torch.int32)),
    "shape of a parameter": lambda p, b, m: p.update(b=p["b"].reshape(4)),
    "shape of a scalar": lambda p, b, m: b.update(count=b["count"].reshape(1)),
    "name of a parameter": lambda p, b, m: (p.update(c=p.pop("b")), m.update(c=m.pop("b"))),
    "name of a buffer": lambda p, b, m: b.update(total=b.pop("count")),
    "buffer that was a parameter": lambda p, b, m: (b.update(b=p.pop("b")), m.pop("b")),
    "buffer more": lambda p, b, m: b.update(empty=torch.empty(0)),
    "no optimizer state": lambda p, b, m: m.clear(),
    "optimizer state less": lambda p, b, m: m.pop("b"),
}
SAME: dict[str, Change] = {
    "order of registration": lambda p, b, m: (reordered(p), reordered(b), reordered(m)),
    "layout in memory": lambda p, b, m: p.update(b=p["b"].t().contiguous().t()),
    "view of something larger": lambda p, b, m: p.update(a=torch.arange(-3.0, 9.0)[3:7]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_digest_is_another_after_any_change(change: Change) -> None:
    assert digest_after(change) != digest_after(lambda *_: None)


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_digest_is_the_same_whatever_does_not_matter(change: Change) -> None:
    assert digest_after(change) == digest_after(lambda *_: None)


def test_digest_of_a_state_is_that_of_its_module_and_optimizer() -> None:
    state = TrainState(Small(), ADAMW)
    train(state, 2)
    copied = copy.deepcopy((state.module, state.optimizer))
    assert state.digest == digest(*copied)
    assert len(bytes.fromhex(state.digest)) == 32


# -- snapshots --------------------------------------------------------------------------------------------------

SCHEDULERS: dict[str, Any] = {
    "constant": None,
    "steps": partial(lr_scheduler.StepLR, step_size=2, gamma=0.5),
    "one cycle": partial(lr_scheduler.OneCycleLR, max_lr=0.5, total_steps=20),
}


@pytest.mark.parametrize("make_scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("make_optimizer", [SGD, ADAMW], ids=["SGD", "AdamW"])
def test_training_goes_on_from_a_snapshot_as_it_did_the_first_time(make_optimizer: Any, make_scheduler: Any) -> None:
    state = TrainState(Small(), make_optimizer, make_scheduler)
    train(state, 3)
    kept, at_snapshot = state.snapshot(), (state.digest, state.learning_rate)
    train(state, 4, first=3)
    ends = [(state.digest, state.learning_rate)]
    for _ in range(2):  # twice: a restored state must not share memory with the snapshot
        state.restore(kept)
        assert (state.digest, state.learning_rate) == at_snapshot
        train(state, 4, first=3)
        ends.append((state.digest, state.learning_rate))
    assert ends == [ends[0]] * 3


def test_restored_vectors_are_those_of_the_module() -> None:
    state = TrainState(Small(), SGD)
    kept, before = state.snapshot(), copy.deepcopy(state.message())
    train(state, 1)
    state.restore(kept)
    assert state.message().parameters.tolist() == before.parameters.tolist()
    assert state.message().buffers.tolist() == before.buffers.tolist()


def test_buffer_that_is_not_persistent_is_restored_as_well() -> None:
    state = TrainState(Forgetful(), SGD)
    kept, before = state.snapshot(), state.digest
    train(state, 1)
    state.restore(kept)
    assert state.module.mean.tolist() == [0.0]
    assert state.digest == before


def test_message_shares_memory_with_the_state() -> None:
    state = TrainState(Small(), SGD)
    message = state.message()
    state.parameters.vector.fill_(2.0)
    state.buffers.vector.fill_(3)
    assert set(message.parameters) == {2.0}
    assert set(message.buffers) == {3}


# -- optimizers -------------------------------------------------------------------------------------------------


def test_optimizer_is_given_what_requires_gradients() -> None:
    state = TrainState(Small(), SGD)
    (group,) = state.optimizer.param_groups
    assert [id(part) for part in group["params"]] == [id(state.module.weight), id(state.module.narrow)]


def test_parameter_groups_step_with_their_own_settings() -> None:
    module = Small()
    before = module.weight.detach().clone()
    state = TrainState(
        module, SGD, groups=lambda small: [{"params": [small.narrow], "lr": 0.5}, {"params": [small.weight], "lr": 0.0}]
    )
    train(state, 2)
    assert state.learning_rate == 0.5
    assert torch.equal(module.weight, before)
    assert (module.narrow != 1).all()


@pytest.mark.parametrize(
    ("chosen", "foreach", "fused"),
    [
        ({}, None, True),
        ({"foreach": True}, True, None),
        ({"fused": True}, None, True),
        ({"fused": False}, False, False),
        ({"lr": torch.tensor(0.1)}, False, None),
    ],
)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_implementation_is_pinned_unless_it_was_chosen(
    optimizer: Any, chosen: dict[str, Any], foreach: bool | None, fused: bool | None
) -> None:
    state = TrainState(nn.Linear(1, 1), partial(optimizer, **({"lr": 0.1} | chosen)))
    assert [(group["foreach"], group["fused"]) for group in state.optimizer.param_groups] == [(foreach, fused)]
    assert state.threads(7) == 7  # too few parameters for more


def test_implementation_is_pinned_where_none_is_fused() -> None:
    state = TrainState(nn.Linear(1, 1), torch.optim.RMSprop)
    assert state.optimizer.param_groups[0]["foreach"] is False


def test_step_uses_all_threads_where_that_changes_no_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dasktrain.state.LARGE", 1)
    assert TrainState(nn.Linear(1, 1), torch.optim.SGD).threads(7) == torch.get_num_threads()
    assert TrainState(nn.Linear(1, 1), torch.optim.RMSprop).threads(7) == 7


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
def test_fused_step_has_the_same_bits_on_any_number_of_threads(optimizer: Any) -> None:
    def stepped(threads: int) -> str:
        module = nn.Linear(999, 101)
        with torch.no_grad():
            module.weight.copy_(made_up(101, 999))
            module.bias.zero_()
        state = TrainState(module, partial(optimizer, lr=0.1, weight_decay=0.01))
        with pinned(threads):
            for salt in range(3):
                module.weight.grad, module.bias.grad = made_up(101, 999, salt=salt), made_up(101, salt=salt)
                state.optimizer.step()
        return state.digest

    assert len({stepped(threads) for threads in (1, 2, 3)}) == 1


@pytest.mark.parametrize(
    ("make_optimizer", "message"),
    [
        (lambda _: SGD([nn.Parameter(torch.ones(1))]), "must hold parameters of the module, however one is foreign"),
        (torch.optim.LBFGS, "must step once a round, however LBFGS calls a closure"),
        (lambda _: None, "must be a callable that returns a torch optimizer, however it returned .*NoneType"),
        (lambda _: SGD, "however it returned .*partial.*; for example partial"),
    ],
    ids=["foreign", "LBFGS", "nothing", "class"],
)
def test_optimizer_that_cannot_be_used_is_refused(make_optimizer: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        TrainState(nn.Linear(1, 1), make_optimizer)
