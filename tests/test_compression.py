"""Compressed payloads: against a plain loop, to the bit, and over connections that carry them."""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from distributed import Client
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.codes import INT8, Ternary
from dasktrain.domain import pinned
from dasktrain.errors import BadInput, ModelError, NonFinite
from dasktrain.plan import Plan, rows_only, shard_seed
from dasktrain.state import digest
from dasktrain.topology import AMONG
from tests.reference import tree_sum

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS, SHARDS, BATCH, EPOCHS, EVERY = 61, 4, 9, 2, 4
RNG = np.random.default_rng(7)
X, Y = RNG.normal(size=(ROWS, 12)).astype(np.float32), RNG.integers(0, 2, ROWS)
PARTITIONS = [30, 0, 31]
DATA = dt.Arrays(da.from_array(X, chunks=(tuple(PARTITIONS), 12)), da.from_array(Y, chunks=(tuple(PARTITIONS),)))
adamw = partial(torch.optim.AdamW, lr=0.01)
#: shapes of the model below, and where they lie in a flat gradient
SHAPES = [(7, 12), (7,), (2, 7), (2,)]
ENDS = np.cumsum([0, *(int(np.prod(shape)) for shape in SHAPES)])


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 7), nn.Tanh(), nn.Dropout(0.3), nn.Linear(7, 2))


class Whole:
    """Sends gradients as they are."""

    adds = True

    def sent(self, gradient: Tensor) -> Tensor:
        return gradient

    def whole(self, sent: Tensor) -> Tensor:
        return sent


class Largest(Whole):
    """Sends 9 numbers of 105."""

    def sent(self, gradient: Tensor) -> Tensor:
        order = np.argsort(-gradient.abs().numpy(), kind="stable")[:9]
        found = torch.zeros_like(gradient)
        found[order] = gradient[order]
        return found


class Columns(Whole):
    """PowerSGD of rank 1: both matrices are made smaller, both biases sent."""

    adds = False

    def sent(self, gradient: Tensor) -> Tensor:
        found = []
        for number, shape in enumerate(SHAPES):
            part = gradient[ENDS[number] : ENDS[number + 1]].reshape(shape)
            if len(shape) == 2:
                left = basis(part @ torch.randn((shape[1], 1), generator=torch.Generator().manual_seed(0)))
                left = basis(part @ basis(part.T @ left))
                right = part.T @ left
                large, small = (math.frexp(float(side.abs().max()))[1] for side in (right, left))
                half = (large - small) // 2
                part = torch.cat([left * 2.0**half, right / 2.0**half])
            found.append(part.reshape(-1))
        return torch.cat(found)

    def whole(self, sent: Tensor) -> Tensor:
        sizes = [sum(shape) if len(shape) == 2 else shape[0] for shape in SHAPES]
        found = []
        for part, shape in zip(torch.split(sent, sizes), SHAPES, strict=True):
            if len(shape) == 2:
                left, right = part[: shape[0], None], part[shape[0] :, None]
                part = torch.matmul(left, right.T).reshape(-1)
            found.append(part)
        return torch.cat(found)


def basis(matrix: Tensor) -> Tensor:
    found: Tensor = torch.linalg.qr(matrix).Q
    return found


def by(code: Any, vector: Tensor) -> Tensor:
    """Round what is no count of rows."""
    return vector if vector.dtype == torch.float64 else torch.from_numpy(code.nearest(vector.numpy()))


def as_it_is(vector: Tensor) -> Tensor:
    return vector


int8, ternary = partial(by, INT8), partial(by, Ternary())


def bfloat16(vector: Tensor) -> Tensor:
    """Round what is no count of rows, the way that torch does."""
    return vector if vector.dtype == torch.float64 else vector.bfloat16().float()


Rounder = Callable[[Tensor], Tensor]


@cache
@pinned(1)
def plain(kind: Whole, node: Rounder, last: Rounder, change: Rounder, every: int) -> str:
    """Do what compression says, as plainly as can be."""
    plan, starts = Plan(rows_only(PARTITIONS), SHARDS, BATCH, 0), np.cumsum([0, *PARTITIONS])
    model = build().train()
    parameters = list(model.parameters())
    optimizer = adamw(parameters)
    optimizer.param_groups[0]["fused"] = True
    theirs, rests = build().train(), dict[int, Tensor]()

    def flat(module: nn.Module) -> Tensor:
        return torch.cat([part.detach().reshape(-1) for part in module.parameters()])

    def shard(number: int) -> list[Tensor] | None:
        mine = plan.rows(epoch, round, number)
        vector = rests.pop(number, None) if place else None
        if len(mine):
            torch.manual_seed(shard_seed(0, epoch, round, number))
            rows = starts[mine.partition] + mine.row
            loss = F.cross_entropy(theirs(torch.from_numpy(X[rows])), torch.from_numpy(Y[rows]), reduction="sum")
            found = torch.autograd.grad(loss, list(theirs.parameters()))
            gradient = torch.cat([part.reshape(-1) for part in found])
            ratio = plan.rows_of_round(round) / plan.rows_of_round(round - 1) if vector is not None else 1.0
            vector = gradient if vector is None else vector * ratio + gradient
        if vector is None:
            return None
        sent = last(vector) if is_last else node(kind.sent(vector))
        whole = sent if is_last else kind.whole(sent)
        if not is_last:
            rests[number] = vector - whole
        return [torch.tensor([len(mine)], dtype=torch.float64), whole]

    for epoch in range(EPOCHS):  # noqa: B007 - shard() reads it
        for round in range(plan.rounds):
            place = round % every
            is_last = place == every - 1 or round == plan.rounds - 1
            there = flat(theirs) + change(flat(model) - flat(theirs))
            for part, start, stop in zip(theirs.parameters(), ENDS, ENDS[1:], strict=False):
                part.data.copy_(there[start:stop].reshape(part.shape))
            total = tree_sum(shard, 0, SHARDS, last if is_last else node if kind.adds else as_it_is)
            assert total is not None
            rows, gradient = total
            gradient = gradient / float(rows)
            for part, start, stop in zip(parameters, ENDS, ENDS[1:], strict=False):
                part.grad = gradient[start:stop].reshape(part.shape)
            optimizer.step()
    return digest(model, optimizer)


KINDS: dict[str, tuple[Any, Any]] = {
    "whole": (dt.TopK(1.0, EVERY), (Whole(), as_it_is, int8, ternary, EVERY)),
    "largest": (dt.TopK(9 / 105, EVERY), (Largest(), as_it_is, int8, ternary, EVERY)),
    "columns": (dt.PowerSGD(1, EVERY), (Columns(), int8, int8, ternary, EVERY)),
    "columns, all of them": (dt.PowerSGD(1, 1), (Columns(), int8, int8, ternary, 1)),
    "int8": (dt.Rounding("int8"), (Whole(), int8, int8, int8, 1)),
    "bfloat16": (dt.Rounding(), (Whole(), bfloat16, bfloat16, bfloat16, 1)),
}


def trained(compression: Any, client: Any, **settings: Any) -> dt.Result:
    given: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, "shards": SHARDS} | settings
    trainer = dt.Trainer(build(), nn.CrossEntropyLoss(), adamw, compression=compression, observers=[])
    return trainer.fit(DATA, client=client, **given)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_plain_loop(kind: str, workers: int) -> None:
    compression, loop = KINDS[kind]
    assert trained(compression, dt.LocalWire(workers)).digest == plain(*loop)


def test_numbers_that_are_not_rounded_are_those_of_averaging() -> None:
    assert trained(dt.Rounding("float32"), dt.LocalWire(2)).digest == trained(None, dt.LocalWire(3)).digest


# -- on clusters ------------------------------------------------------------------------------------------------------

OF_CLUSTERS = ("largest", "columns", "int8")


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", OF_CLUSTERS)
def test_it_is_the_plain_loop_on_a_cluster(kind: str, shared: bool, clean: Client) -> None:
    compression, loop = KINDS[kind]
    with dask.config.set({"dasktrain.shared-memory": shared}):
        assert trained(compression, clean).digest == plain(*loop)


# -- what cannot be compressed ----------------------------------------------------------------------------------------


def test_numbers_of_the_settings_must_make_sense() -> None:
    for share in (0.0, -0.1, 1.1):
        with pytest.raises(BadInput, match="share must be above 0 and at most 1"):
            dt.TopK(share)
    with pytest.raises(BadInput, match="rank must be a whole number"):
        dt.PowerSGD(0)
    with pytest.raises(BadInput, match=r"dtype must be one of .*, however it is 'int4'"):
        dt.Rounding("int4")  # type: ignore[arg-type]


class Wide(nn.Module):
    """Has parameters of float64."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.double())


def test_what_cannot_be_compressed_is_an_error_before_the_first_round() -> None:
    def fit(module: nn.Module, data: Any = DATA, optimizer: Any = adamw, **settings: Any) -> None:
        trainer = dt.Trainer(module, nn.CrossEntropyLoss(), optimizer, compression=dt.TopK(), observers=[])
        trainer.fit(data, client=dt.LocalWire(), max_rounds=1, **settings)

    for reduction in AMONG:
        with pytest.raises(BadInput, match=f'reduction is "{reduction}"'):
            fit(build(), reduction=reduction)
    with pytest.raises(ModelError, match=r"must be float32 or narrower .* torch.float64"):
        fit(Wide())
    rows = dt.Arrays(np.zeros((8, 1), dtype=np.int64), np.arange(8) % 2)
    table = nn.Sequential(nn.Embedding(3, 2, sparse=True), nn.Flatten(), nn.Linear(2, 2))
    two = partial(dt.Optimizers, makers={"dense": adamw, "sparse": partial(torch.optim.SparseAdam, lr=0.1)})
    with pytest.raises(ModelError, match=r"must be dense where payloads are compressed, however 0.weight is sparse"):
        fit(table, rows, two)


def test_players_cannot_be_compressed() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(12, 2), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) + self.other(x)

    each: dict[str, Any] = {"loss": dict.fromkeys(("one", "other"), nn.CrossEntropyLoss())}
    each["optimizer"] = dict.fromkeys(each["loss"], adamw)
    trainer = dt.Trainer(Pair(), **each, compression=dt.TopK(), observers=[])
    with pytest.raises(BadInput, match=r"One player must step the whole model where payloads are compressed"):
        trainer.fit(DATA, client=dt.LocalWire(), max_rounds=1)


def test_candidates_of_a_search_cannot_be_compressed() -> None:
    def make(**params: Any) -> dt.Trainer:
        return dt.Trainer(build(), nn.CrossEntropyLoss(), adamw, compression=dt.TopK(), observers=[])

    with pytest.raises(BadInput, match="compression"):
        dt.search(make, [{}], DATA, client=dt.LocalWire(), epochs=1)


def test_numbers_that_are_not_finite_name_their_shard() -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * torch.where(x[:, :1] == X[40, 0], torch.inf, 1.0)

    trainer = dt.Trainer(Breaks(), nn.CrossEntropyLoss(), adamw, compression=dt.PowerSGD(1), observers=[])
    with pytest.raises(NonFinite, match=r"shard \d+, with rows of partition 2"):
        trainer.fit(DATA, client=dt.LocalWire(2), epochs=1, batch_size=BATCH, shards=SHARDS)
