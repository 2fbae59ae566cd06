"""What dasktrain must compute, in one process and as plainly as can be: the oracle of the digest tests.

It shares with dasktrain the plan (whose laws have tests of their own), the seeds and the digest; the rest is torch.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dasktrain.plan import Plan, Rows, rows_only, shard_seed
from dasktrain.state import digest

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def reference_digest(
    X: np.ndarray,
    y: np.ndarray,
    partitions: Sequence[int],
    build: Callable[[], nn.Module],
    make_optimizer: MakeOptimizer,
    epochs: int,
    batch_size: int,
    shards: int = 8,
    seed: int = 0,
    make_sparse: MakeOptimizer | None = None,
) -> str:
    """Train with cross entropy on X and y, cut into partitions of so many rows, and return the digest."""

    def loss(model: nn.Module, rows: np.ndarray) -> tuple[Tensor, float]:
        output = model(torch.from_numpy(X[rows]))
        return F.cross_entropy(output, torch.from_numpy(y[rows]), reduction="none").sum(), len(rows)

    plan = Plan(rows_only(partitions), shards, batch_size, seed)
    return trained_digest(plan, build, make_optimizer, epochs, loss, make_sparse=make_sparse)


def trained_digest(
    plan: Plan,
    build: Callable[[], nn.Module],
    make_optimizer: MakeOptimizer,
    epochs: int,
    loss_of: Callable[[nn.Module, np.ndarray], tuple[Tensor, float]],
    row_lengths: np.ndarray | None = None,
    make_sparse: MakeOptimizer | None = None,
) -> str:
    """Train by a plan and return the digest; ``make_sparse`` makes the optimizer of embeddings that are sparse.

    ``loss_of(model, rows)`` returns the sum of losses of some rows of the data set, and of their weights.
    """
    seed, shards = plan.seed, plan.shards
    torch.manual_seed(seed)
    model = build().train()
    parameters, buffers = list(model.parameters()), list(model.buffers())
    tables = [part.weight for part in model.modules() if getattr(part, "sparse", False)]
    optimizers = [make_optimizer([part for part in parameters if all(part is not table for table in tables)])]
    for group in optimizers[0].param_groups:
        group["fused"] = True if group.get("fused") is None and "fused" in group else group.get("fused")
    if make_sparse is not None:
        optimizers.append(make_sparse(tables))
    starts = np.concatenate([[0], np.cumsum(plan.strata.sum(axis=1))])

    def lengths(rows: Rows) -> np.ndarray:
        assert row_lengths is not None
        return row_lengths[starts[rows.partition] + rows.row]

    def shard(number: int) -> list[Tensor] | None:
        rows = plan.rows(epoch, round, number, lengths)
        if len(rows) == 0:
            return None
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        torch.manual_seed(shard_seed(seed, epoch, round, number))
        loss, weight = loss_of(model, starts[rows.partition] + rows.row)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else _once(g) for p, g in zip(parameters, found, strict=True)]
        used = torch.tensor([gradient is not None for gradient in found], dtype=torch.float64)
        changes = [buffer.double() - value.double() for buffer, value in zip(buffers, before, strict=True)]
        weights = torch.tensor([float(weight)], dtype=torch.float64)
        return [weights, used, *gradients, *(change * len(rows) for change in changes)]

    for epoch in range(epochs):  # noqa: B007 - shard() reads it
        for round in range(plan.rounds):
            before = [buffer.clone() for buffer in buffers]
            total = tree_sum(shard, 0, shards)
            assert total is not None
            weights, used, *sums = total
            rows = float(plan.rows_of_round(round))
            for parameter, gradient, shards_using_it in zip(parameters, sums, used, strict=False):
                parameter.grad = gradient / float(weights) if shards_using_it else None
            for optimizer in optimizers:
                optimizer.step()
            for buffer, value, change in zip(buffers, before, sums[len(parameters) :], strict=True):
                buffer.copy_(value.double() + change / rows)
    kept = SimpleNamespace(state={key: value for optimizer in optimizers for key, value in optimizer.state.items()})
    return digest(model, kept)


def tree_sum(
    leaf: Callable[[int], list[Tensor] | None],
    start: int,
    stop: int,
    rounded: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> list[Tensor] | None:
    """Add what shards contribute, tensor by tensor, in the order of the canonical tree; None is nothing."""
    if stop - start == 1:
        return leaf(start)
    half = 1
    while half * 2 < stop - start:
        half *= 2
    left, right = (tree_sum(leaf, *part, rounded) for part in ((start, start + half), (start + half, stop)))
    if left is None or right is None:
        return right if left is None else left
    return [rounded(_once(one + other)) for one, other in zip(left, right, strict=True)]


def _once(gradient: Tensor) -> Tensor:
    """Have a sparse gradient hold each row once, the sum of all that is for it in the order they are in."""
    if not gradient.is_sparse:
        return gradient
    rows = sorted(set(gradient._indices()[0].tolist()))
    values = torch.zeros(len(rows), gradient.shape[1])
    for row, value in zip(gradient._indices()[0].tolist(), gradient._values(), strict=True):
        values[rows.index(row)] += value
    numbers = torch.tensor(rows, dtype=torch.long)[None]
    return torch.sparse_coo_tensor(numbers, values, gradient.shape, check_invariants=False, is_coalesced=True)
