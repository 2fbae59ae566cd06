"""Several players that train one model against each other: whose turn it is changes no bit that it should not."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from distributed import Client
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.domain import pinned
from dasktrain.errors import BadInput, ModelError
from dasktrain.plan import Plan, rows_only, shard_seed
from dasktrain.state import digest
from tests.chaos_wire import ChaosWire, Clock
from tests.problems import PROBLEMS

X, Y = PROBLEMS[2].arrays
DATA = PROBLEMS[2].data
SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 100, "shards": 4}


class Game(nn.Module):
    """A generator of rows and a critic that tells them from real ones, with dropout and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6))
        self.critic = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        made_up = self.generator(torch.randn(len(rows), 4))
        return self.critic(rows)[:, 0], self.critic(made_up)[:, 0]


def critic_loss(output: Any, target: Tensor) -> Tensor:
    return F.softplus(-output[0]) + F.softplus(output[1])


def generator_loss(output: Any, target: Tensor) -> Tensor:
    return F.softplus(-output[1])


LOSSES = {"critic": critic_loss, "generator": generator_loss}
OPTIMIZERS: dict[str, Any] = {
    "critic": partial(torch.optim.AdamW, lr=0.01),
    "generator": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
}


def trainer(**settings: Any) -> dt.Trainer:
    torch.manual_seed(3)
    given: dict[str, Any] = {"loss": LOSSES, "optimizer": OPTIMIZERS, "observers": []}
    return dt.Trainer(Game(), **(given | settings))


def played(wire: Any, turns: Sequence[str] | None = None, **settings: Any) -> dt.Result:
    return trainer(turns=turns).fit(DATA, client=wire, **(SETTINGS | settings))


def plainly_played(
    plan: Plan,
    losses: Mapping[str, Callable[..., Tensor]],
    makers: Mapping[str, Any],
    turns: Sequence[str],
    epochs: int,
) -> str:
    """Play in one process and as plainly as can be, and return the digest."""
    torch.manual_seed(3)
    model = Game().train()
    mine = {name: list(getattr(model, name).parameters()) for name in losses}
    optimizers = {name: make(mine[name]) for name, make in makers.items()}
    for optimizer in optimizers.values():
        optimizer.param_groups[0]["fused"] = True
    starts = np.concatenate([[0], np.cumsum(plan.strata.sum(axis=1))])
    buffers = list(model.buffers())

    def shard(number: int) -> list[Tensor]:
        rows = plan.rows(epoch, round, number)
        places = starts[rows.partition] + rows.row
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        torch.manual_seed(shard_seed(plan.seed, epoch, round * len(turns) + turn, number))
        loss = losses[player](model(torch.from_numpy(X[places])), torch.from_numpy(Y[places])).sum()
        gradients = torch.autograd.grad(loss, mine[player])
        changes = [
            (buffer.double() - value.double()) * len(rows) for buffer, value in zip(buffers, before, strict=True)
        ]
        return [*gradients, *changes]

    def node(start: int, stop: int) -> list[Tensor]:
        if stop - start == 1:
            return shard(start)
        middle = (start + stop) // 2
        return [one + other for one, other in zip(node(start, middle), node(middle, stop), strict=True)]

    for epoch in range(epochs):  # noqa: B007 - shard() reads it
        for round in range(plan.rounds):
            for turn, player in enumerate(turns):  # noqa: B007 - so with the turn
                before = [buffer.clone() for buffer in buffers]
                sums = node(0, plan.shards)
                rows = float(plan.rows_of_round(round))
                for parameter, gradient in zip(mine[player], sums, strict=False):
                    parameter.grad = gradient / rows
                optimizers[player].step()
                for buffer, value, change in zip(buffers, before, sums[len(mine[player]) :], strict=True):
                    buffer.copy_(value.double() + change / rows)
    kept = {key: value for optimizer in optimizers.values() for key, value in optimizer.state.items()}
    return digest(model, SimpleNamespace(state=kept))


@pytest.mark.parametrize("turns", [None, ("critic", "critic", "generator")])
def test_players_have_the_bits_of_a_plain_loop_on_any_number_of_workers(turns: Sequence[str] | None) -> None:
    plan = Plan(rows_only(DATA.X.chunks[0]), 4, 100)
    with pinned(1):
        wanted = plainly_played(plan, LOSSES, OPTIMIZERS, turns or tuple(LOSSES), SETTINGS["epochs"])
    for workers in (1, 2, 3):
        assert played(dt.LocalWire(workers), turns).digest == wanted


def test_players_have_the_same_bits_on_a_cluster(clean: Client) -> None:
    assert played(clean).digest == played(dt.LocalWire()).digest


@pytest.mark.parametrize("seed", range(4))
def test_workers_that_die_between_turns_change_no_bit(seed: int) -> None:
    clock = Clock()
    wire = ChaosWire(Random(seed), 3, clock)
    with clock.ticking():
        found = played(wire)
    assert found.digest == played(dt.LocalWire()).digest
    assert sum(wire.happened.values()) > 3


def test_a_player_alone_is_a_trainer_as_ever() -> None:
    rows = {"loss": nn.CrossEntropyLoss(), "optimizer": partial(torch.optim.AdamW, lr=0.01)}

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.only = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))

        def forward(self, rows: Tensor) -> Tensor:
            found: Tensor = self.only(rows)
            return found

    one = dt.Trainer(Wrapped(), observers=[], **rows)
    named = {name: {"only": each} for name, each in rows.items()}
    other = dt.Trainer(Wrapped(), observers=[], **named)
    results = [each.fit(DATA, client=dt.LocalWire(), **SETTINGS) for each in (one, other)]
    assert len({result.digest for result in results}) == 1
    assert results[1].history[-1]["only_loss"] == results[0].history[-1]["loss"]


def test_the_history_has_each_players_loss() -> None:
    def fooled(output: Any, target: Tensor) -> Tensor:
        return output[1] > 0

    result = trainer(metrics={"fooled": fooled}, strategy=dt.GradientAveraging(clip_norm=1.0)).fit(
        DATA, dt.Arrays(X[:50], Y[:50]), client=dt.LocalWire(2), **SETTINGS
    )
    epoch, record = result.history[-1], result.history.rounds[0]
    assert epoch["loss"] == pytest.approx(epoch["critic_loss"] + epoch["generator_loss"])
    assert {"valid_loss", "valid_critic_loss", "valid_generator_loss", "valid_fooled"} <= epoch.keys()
    assert 0 < epoch["fooled"] < 1
    assert record["critic_gradient_norm"] != record["generator_gradient_norm"]
    parts = sum(record[part] for part in ("wait_data", "compute", "wire", "reduce", "step"))
    assert parts == pytest.approx(record["seconds"])


class Counted:
    """A metric that counts the rows it is called with."""

    rows: list[int] = []  # noqa: RUF012 - the replicas' are copies of the metric

    def __call__(self, output: Any, target: Tensor) -> Tensor:
        self.rows.append(len(target))
        return torch.as_tensor(output[1] > 0)


def test_metrics_are_of_one_turn_alone() -> None:
    Counted.rows = []
    trainer(metrics={"counted": Counted()}).fit(DATA, client=dt.LocalWire(), **(SETTINGS | {"epochs": 1}))
    assert sum(Counted.rows[1:]) == len(X)  # the first is tried before the run


def test_a_run_of_players_goes_on_from_its_checkpoint(tmp_path: Any) -> None:
    url = str(tmp_path / "game")
    whole = played(dt.LocalWire(), epochs=3)
    writing = trainer(observers=[dt.Checkpoint(url, every="1 round")])
    writing.fit(DATA, client=dt.LocalWire(2), **(SETTINGS | {"max_rounds": 7}))
    assert played(dt.LocalWire(3), epochs=3, resume=url).digest == whole.digest
    with pytest.raises(BadInput, match="turns"):
        played(dt.LocalWire(), ("critic", "critic", "generator"), epochs=3, resume=url)


def test_games_are_searched_beside_models_with_one_player() -> None:
    def make(turns: Sequence[str] | None) -> dt.Trainer:
        return trainer(turns=turns)

    candidates = [{"turns": None}, {"turns": ("critic", "critic", "generator")}]
    found = dt.search(make, candidates, DATA, client=dt.LocalWire(2), **SETTINGS)
    for candidate, result in zip(candidates, found.results, strict=True):
        assert result is not None
        assert result.digest == played(dt.LocalWire(), candidate["turns"]).digest


class Frozen(Game):
    """A game with a part that nobody steps."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"optimizer": OPTIMIZERS["critic"]}, BadInput, "Every player must have a loss and an optimizer"),
        ({"optimizer": {"critic": OPTIMIZERS["critic"]}}, BadInput, "Every player must have a loss and an optimizer"),
        ({"turns": ("critic",)}, BadInput, r"Every player must have a turn, however \['generator'\] have none"),
        ({"turns": ("critic", "generater")}, BadInput, "did you mean 'generator'"),
        ({"loss": {}}, BadInput, "There must be a player with a loss"),
        ({"loss": LOSSES | {"critic": 3}}, BadInput, r"loss\['critic'\] must be callable"),
        ({"metrics": {"critic_loss": critic_loss}}, BadInput, "must not be named like a figure of the history"),
    ],
)
def test_what_does_not_make_a_game_is_refused(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        trainer(**settings)


@pytest.mark.parametrize(
    ("model", "names", "message"),
    [
        (Frozen(), ("critic", "generator"), "Every parameter must be stepped by one player, however 'scale.weight'"),
        (Game(), ("critic", "generator", "generator.0"), "belongs to 2"),
        (Game(), ("critic", "generater"), "A player must be a part of the model"),
    ],
)
def test_players_share_out_the_models_parameters(model: nn.Module, names: Sequence[str], message: str) -> None:
    losses, optimizers = dict.fromkeys(names, critic_loss), dict.fromkeys(names, OPTIMIZERS["critic"])
    with pytest.raises(ModelError, match=message):
        dt.Trainer(model, losses, optimizers, observers=[]).fit(DATA, client=dt.LocalWire(), **SETTINGS)
