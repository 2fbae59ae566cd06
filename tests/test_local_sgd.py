"""Shards that step by themselves: against a plain loop, to the bit, and against averaging where that is the same."""

import copy
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.checkpoint import Store
from dasktrain.domain import pinned
from dasktrain.errors import BadInput, ModelError
from dasktrain.inner import Schedule, Stepping
from dasktrain.plan import Plan, rows_only, shard_seed
from dasktrain.state import digest
from tests.reference import tree_sum

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS, SHARDS, BATCH, EPOCHS = 61, 4, 9, 3
RNG = np.random.default_rng(7)
X, Y = RNG.normal(size=(ROWS, 3)).astype(np.float32), RNG.integers(0, 2, ROWS)
PARTITIONS = [30, 0, 31]
DATA = dt.Arrays(da.from_array(X, chunks=(tuple(PARTITIONS), 3)), da.from_array(Y, chunks=(tuple(PARTITIONS),)))
adamw = partial(torch.optim.AdamW, lr=0.01)
falling = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)
nesterov = partial(torch.optim.SGD, lr=1.0, momentum=0.5, nesterov=True)


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 2))


@cache
@pinned(1)
def plain(
    steps: int,
    make_outer: Callable[[Any], torch.optim.Optimizer],
    every: str | None = None,
    shards: int = SHARDS,
    batch: int = BATCH,
    warmup: float = 0.0,
) -> str:
    """Do what DiLoCo says, as plainly as can be."""
    plan, starts = Plan(rows_only(PARTITIONS), shards, batch, 0), np.cumsum([0, *PARTITIONS])
    model = build().train()
    parameters, buffers = list(model.parameters()), list(model.buffers())
    outer = make_outer(parameters)
    outer.param_groups[0]["fused"] = True

    def shard(number: int) -> list[Tensor] | None:
        own = copy.deepcopy(model)
        for buffer, value in zip(own.buffers(), buffers, strict=True):
            buffer.copy_(value)
        inner = adamw(own.parameters())
        inner.param_groups[0]["fused"] = True
        rows = torch.zeros(1, dtype=torch.float64)
        for round in range(first, last):
            mine = plan.rows(epoch, round, number)
            if not len(mine):
                continue
            rate = 0.01
            if every is not None:
                for _ in range(epoch if every == "epoch" else epoch * plan.rounds + round):
                    rate *= 0.9
            inner.param_groups[0]["lr"] = rate * min(1.0, (round - first + 1) / (steps * warmup)) if warmup else rate
            torch.manual_seed(shard_seed(0, epoch, round, number))
            rows_read = starts[mine.partition] + mine.row
            output, target = own(torch.from_numpy(X[rows_read])), torch.from_numpy(Y[rows_read])
            loss = F.cross_entropy(output, target, reduction="none").sum()
            for parameter, gradient in zip(
                own.parameters(), torch.autograd.grad(loss, list(own.parameters())), strict=True
            ):
                parameter.grad = gradient / float(len(mine))
            inner.step()
            rows += len(mine)
        if not rows:
            return None
        come = [(p - q).detach() * float(rows) for p, q in zip(parameters, own.parameters(), strict=True)]
        changes = [(b.double() - a.double()) * float(rows) for a, b in zip(buffers, own.buffers(), strict=True)]
        return [rows, *come, *changes]

    for epoch in range(EPOCHS):  # noqa: B007 - shard() reads it
        for first in range(0, plan.rounds, steps):
            last = min(first + steps, plan.rounds)
            total = tree_sum(shard, 0, shards)
            assert total is not None
            rows, *sums = total
            for parameter, come in zip(parameters, sums, strict=False):
                parameter.grad = come / float(rows)
            outer.step()
            for buffer, change in zip(buffers, sums[len(parameters) :], strict=True):
                exact = buffer.double() + change / float(rows)
                buffer.copy_(exact if buffer.is_floating_point() else exact.round())
    return digest(model, outer)


def trained(strategy: Any, workers: int = 1, **trainer: Any) -> dt.Result:
    settings: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, "shards": SHARDS}
    settings |= {name: trainer.pop(name) for name in ("resume", "max_rounds", "batch_size") if name in trainer}
    given: dict[str, Any] = {"optimizer": adamw, "observers": [], "strategy": strategy} | trainer
    made = dt.Trainer(given.pop("model", build()), nn.CrossEntropyLoss(), **given)
    return made.fit(DATA, client=dt.LocalWire(workers), **settings)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("every", [None, "epoch", "round"])
def test_diloco_is_the_plain_loop(workers: int, every: Any) -> None:
    schedule = {} if every is None else {"scheduler": falling, "schedule_every": every}
    assert trained(dt.DiLoCo(steps=3), workers, **schedule).digest == plain(3, nesterov, every)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(("warmup", "every"), [(1.0, None), (0.5, "round")])
def test_shards_warm_up_in_every_stretch_as_the_plain_loop_does(workers: int, warmup: float, every: Any) -> None:
    schedule = {} if every is None else {"scheduler": falling, "schedule_every": every}
    warmed = trained(dt.DiLoCo(steps=3, warmup=warmup), workers, **schedule).digest
    assert warmed == plain(3, nesterov, every, warmup=warmup)


def test_a_tenth_of_a_stretch_is_warm_up_unless_told_otherwise() -> None:
    inners = [made.inner(Stepping(adamw)) for made in (dt.DiLoCo(100), dt.DiLoCo(3), dt.LocalSGD(100))]
    shares = [[inner.warmed([{"lr": 1.0}], taken)[0]["lr"] for taken in (0, 4, 9, 99)] for inner in inners]
    assert shares == [[0.1, 0.5, 1.0, 1.0], [1.0] * 4, [1.0] * 4]


@pytest.mark.parametrize("steps", [1, 2, 100])
def test_local_sgd_is_the_plain_loop(steps: int) -> None:
    assert trained(dt.LocalSGD(steps=steps), 2).digest == plain(steps, partial(torch.optim.SGD, lr=1.0))


def test_shards_without_rows_leave_the_mean_alone() -> None:
    model = nn.Linear(3, 2)
    found = trained(dt.LocalSGD(steps=3), 2, batch_size=3, model=model)
    assert found.digest == trained(dt.LocalSGD(steps=3), batch_size=3, model=model).digest
    assert sum(record["rows"] for record in found.history.rounds) == ROWS * EPOCHS


def test_one_step_of_sgd_is_averaging_where_numbers_are_exact() -> None:
    """Rows, parameters and learning rate are small dyadic numbers: nothing is rounded on either way."""
    rows = RNG.integers(-2, 3, (32, 3)).astype(np.float32)
    data = dt.Arrays(rows, rows @ np.array([1.0, -2.0, 1.0], dtype=np.float32))
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -0.25, 1.0]]))
        model.bias.fill_(0.5)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output[:, 0] - target).square()

    found = [
        dt.Trainer(model, loss, partial(torch.optim.SGD, lr=0.125), observers=[], strategy=strategy).fit(
            data, batch_size=16, shards=4, max_rounds=2, client=dt.LocalWire(workers)
        )
        for strategy, workers in ((dt.GradientAveraging(), 1), (dt.LocalSGD(steps=1), 1), (dt.LocalSGD(steps=1), 3))
    ]
    assert len({result.digest for result in found}) == 1
    assert not torch.equal(found[0].model.weight, model.weight)


def test_one_step_of_sgd_is_averaging_but_for_rounding() -> None:
    given: dict[str, Any] = {"optimizer": partial(torch.optim.SGD, lr=0.1), "model": nn.Linear(3, 2)}
    one, other = (trained(strategy, **given).model.weight for strategy in (dt.LocalSGD(1), dt.GradientAveraging()))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_history_has_a_record_a_stretch() -> None:
    result = trained(dt.DiLoCo(steps=3), scheduler=falling, schedule_every="round")
    rounds = -(-ROWS // BATCH)
    assert [record["rounds"] for record in result.history.rounds] == [3, 3, 1] * EPOCHS
    assert [record["round"] for record in result.history.rounds][:3] == [0, 3, 6]
    assert [record["rows"] for record in result.history] == [ROWS] * EPOCHS
    rates = [record["learning_rate"] for record in result.history.rounds]
    assert rates == pytest.approx([0.01 * 0.9**done for done in (0, 3, 6, 7, 10, 13, 14, 17, 20)])
    assert result.history[-1]["learning_rate"] == pytest.approx(0.01 * 0.9 ** (EPOCHS * rounds - 1))


def test_max_rounds_end_with_a_stretch() -> None:
    assert sum(record["rounds"] for record in trained(dt.LocalSGD(3), max_rounds=4).history.rounds) == 6


@pytest.mark.parametrize("strategy", [dt.LocalSGD(3), dt.DiLoCo(2)], ids=["local", "diloco"])
def test_a_run_that_is_resumed_elsewhere_has_the_same_bits(strategy: Any, tmp_path: Any) -> None:
    url = str(tmp_path / "run")
    trained(strategy, 2, observers=[dt.Checkpoint(url, every="1 round")], max_rounds=10)
    resumed = trained(strategy, 3, scheduler=None, resume=url)
    assert resumed.digest == trained(strategy).digest


@pytest.mark.parametrize(
    ("other", "given"),
    [
        (dt.DiLoCo(3), {}),
        (dt.LocalSGD(2), {}),
        (dt.DiLoCo(2, clip_norm=1.0), {}),
        (dt.DiLoCo(2, warmup=1.0), {}),
        (dt.DiLoCo(2), {"optimizer": partial(torch.optim.AdamW, lr=0.02)}),
        (dt.DiLoCo(2), {"scheduler": falling}),
    ],
    ids=["steps", "strategy", "clipped", "warmed", "rate", "schedule"],
)
def test_a_resumed_run_must_step_alike(other: Any, given: dict[str, Any], tmp_path: Any) -> None:
    url = str(tmp_path / "run")
    trained(dt.DiLoCo(2), observers=[dt.Checkpoint(url, every="1 round")], max_rounds=2)
    with pytest.raises(BadInput, match="inner is "):
        trained(other, resume=url, **given)


def test_a_resumed_run_may_make_the_same_optimizer_by_another_callable(tmp_path: Any) -> None:
    url = str(tmp_path / "run")
    trained(dt.DiLoCo(2), observers=[dt.Checkpoint(url, every="1 round")], max_rounds=2)
    resumed = trained(dt.DiLoCo(2), resume=url, optimizer=lambda parameters: adamw(parameters))
    assert resumed.digest == trained(dt.DiLoCo(2)).digest


def test_rates_that_are_tensors_are_those_of_their_rounds() -> None:
    inner = dt.DiLoCo(3).inner(Stepping(lambda p: torch.optim.SGD(p, lr=torch.tensor(1.0)), falling, "round"))
    schedule = Schedule(inner, nn.Linear(1, 1), 3)
    assert [float(schedule.at(0, round)[0]["lr"]) for round in range(3)] == pytest.approx([1.0, 0.9, 0.81])
    rates = [schedule.at(0, round)[0]["lr"] for round in range(3)]
    assert [float(rate) for rate in rates] == pytest.approx([1.0, 0.9, 0.81])
    warming = dt.DiLoCo(2, warmup=1.0).inner(Stepping(adamw))
    warmed = [warming.warmed(schedule.at(0, 1), taken)[0]["lr"] for taken in (0, 1)]
    assert [float(rate) for rate in warmed] == pytest.approx([0.45, 0.9])


def test_what_goes_on_from_a_run_is_no_shards_optimizer() -> None:
    result = trained(dt.DiLoCo(2))
    with pytest.raises(ModelError, match="continued"):
        trained(dt.DiLoCo(2), model=result.model, optimizer=result.continued(adamw))


def test_what_is_done_every_so_many_rounds_is_done_with_the_stretch_that_they_end_in(tmp_path: Any) -> None:
    url = str(tmp_path / "run")
    trained(dt.LocalSGD(3), observers=[dt.Checkpoint(url, every="4 rounds", keep=9)], max_rounds=14)
    assert Store(url).numbers() == [6, 10, 13, 14]
    monitored = trained(dt.LocalSGD(3), observers=[dt.Monitor(every=4)], max_rounds=14).history.rounds
    assert ["gradient_norm" in record for record in monitored] == [False, True, False, True, True, False]


def test_a_checkpoint_of_another_run_is_left_alone(tmp_path: Any) -> None:
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    trained(dt.LocalSGD(2), observers=[dt.Checkpoint(one)], max_rounds=2)
    trained(dt.LocalSGD(3), observers=[dt.Checkpoint(other)])
    before = sorted(path.name for path in Path(other).iterdir())
    with pytest.raises(BadInput, match="must hold no checkpoints of another run"):
        trained(dt.LocalSGD(2), resume=one, observers=[dt.Checkpoint(other)])
    assert sorted(path.name for path in Path(other).iterdir()) == before


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(4, 2, sparse=True), nn.Linear(3, 2)

    def forward(self, numbers: Tensor) -> Tensor:
        found: Tensor = self.head(numbers) + self.table((numbers[:, 0] > 0).long())
        return found


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "steps": (lambda: dt.LocalSGD(steps=0), BadInput, "steps must be"),
    "clip": (lambda: dt.DiLoCo(steps=2, clip_norm=-1.0), BadInput, "clip_norm must be positive"),
    "warmup": (lambda: dt.DiLoCo(steps=2, warmup=10), BadInput, "warmup must be a share"),
    "table": (
        lambda: trained(dt.LocalSGD(2), model=Sparse(), optimizer=partial(torch.optim.SGD, lr=0.1)),
        ModelError,
        "table.weight is sparse",
    ),
    "plateau": (
        lambda: trained(dt.LocalSGD(2), scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau),
        BadInput,
        "ReduceLROnPlateau",
    ),
    "optimizer": (lambda: trained(dt.LocalSGD(2), optimizer=torch.optim.LBFGS), ModelError, "LBFGS"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_shards_cannot_do_is_refused(case: str) -> None:
    make, error, text = REFUSED[case]
    with pytest.raises(error, match=text):
        make()
