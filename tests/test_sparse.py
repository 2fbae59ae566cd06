"""Tables: a round costs the rows it touches, and gives the bits of the reference on any number of workers."""

from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from distributed import Client
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.errors import BadInput, ModelError, ReductionError
from dasktrain.messages import Partial
from dasktrain.sparse import check_touched, split, tables
from dasktrain.state import TrainState
from dasktrain.strategies import Sums
from dasktrain.touched import Touched
from dasktrain.vector import FlatParameters
from tests.chaos_wire import ChaosWire, Clock
from tests.problems import OF_TABLES, SETTINGS, Problem, Tables, expected
from tests.small import Watcher

PROBLEM = OF_TABLES[-1]
each_problem = pytest.mark.parametrize("problem", OF_TABLES, ids=lambda problem: problem.optimizer)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# -- which parameters, and their rows ---------------------------------------------------------------------------------


def test_tables_are_weights_that_sparse_embeddings_alone_own() -> None:
    module = nn.ModuleDict(
        {
            "tokens": nn.Embedding(4, 2, sparse=True),
            "bags": nn.EmbeddingBag(4, 2, sparse=True),
            "dense": nn.Embedding(4, 2),
            "tied": nn.Embedding(4, 2, sparse=True),
            "head": nn.Linear(2, 4, bias=False),
            "frozen": nn.Embedding(4, 2, sparse=True).requires_grad_(False),
        }
    )
    module["head"].weight = module["tied"].weight
    assert list(tables(module)) == ["tokens.weight", "bags.weight"]
    flat = FlatParameters(module)
    assert list(flat.parameters) == ["dense.weight", "tied.weight", "tokens.weight", "bags.weight"]
    assert flat.gradient.size == 16
    assert flat.vector.tolist() == torch.cat([part.flatten() for part in flat.parameters.values()]).tolist()


def test_occurrences_of_a_row_are_added_in_their_order_on_any_number_of_threads(
    threads: Callable[[int], None],
) -> None:
    table = nn.Parameter(torch.zeros(50, 3))
    random = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 50, (20_000,), generator=random)
    values = torch.randn(20_000, 3, generator=random) * 10.0 ** torch.randint(-8, 8, (20_000, 1), generator=random)
    wanted: dict[int, np.ndarray] = {}
    for row, value in zip(rows.tolist(), values.numpy(), strict=True):
        wanted[row] = wanted.get(row, np.zeros(3, np.float32)) + value
    for count in (1, 2, 3):
        threads(count)
        gradient = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=False)
        _, (found,) = split([gradient], {"table": table}, torch.float32)
        assert found.rows.tolist() == sorted(wanted)
        assert found.values.tobytes() == b"".join(wanted[row].tobytes() for row in sorted(wanted))


def test_narrow_rows_are_widened_before_they_are_added() -> None:
    table = nn.Embedding(3, 1, sparse=True, dtype=torch.bfloat16)
    loss = (table(torch.tensor([1] * 300 + [2])).float()).sum()
    _, (found,) = split(torch.autograd.grad(loss, [table.weight]), {"table": table.weight}, torch.float32)
    assert found.rows.tolist() == [1, 2]
    assert found.values.tolist() == [[300.0], [1.0]]  # bfloat16 has no 257


def test_sparse_gradient_of_what_is_no_table_is_dense_and_no_gradient_touches_nothing() -> None:
    weight, table = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(3, 2))
    sparse = torch.autograd.grad(nn.functional.embedding(torch.tensor([1, 1]), weight, sparse=True).sum(), [weight])
    (dense,), (touched,) = split([*sparse, None], {"table": table}, torch.float32)
    assert dense is not None
    assert dense.tolist() == [[0.0, 0.0], [2.0, 2.0], [0.0, 0.0]]
    assert (touched.rows.shape, touched.values.shape, touched.values.dtype) == ((0,), (0, 2), np.float32)


def rows_of(*rows: int, shape: tuple[int, ...] | None = None) -> Touched:
    return Touched(np.array(rows, np.int64), np.ones(shape or (len(rows), 2), np.float32))


@pytest.mark.parametrize(
    "touched", [rows_of(1, 4), rows_of(-1, 2), rows_of(2, 1), rows_of(1, 1), rows_of(1, shape=(1, 3))]
)
def test_rows_that_a_table_does_not_have_are_refused(touched: Touched) -> None:
    table = {"table": nn.Parameter(torch.zeros(4, 2))}
    check_touched([rows_of(0, 3)], table)
    with pytest.raises(ReductionError, match=r"a table of shape \(4, 2\), however for 'table' there are"):
        check_touched([touched], table)
    with pytest.raises(ReductionError, match="Every table must have its rows, however 0 of 1 do"):
        check_touched([], table)


def test_gradient_of_another_size_is_refused() -> None:
    parameters = FlatParameters(Tables())
    with pytest.raises(ReductionError, match="Gradients must have 72 numbers, however they have"):
        parameters.check(Partial(0, 1, np.zeros(parameters.layout.size, np.float32), None))


# -- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("microbatch", [None, 3])
def test_rows_that_come_after_buckets_are_the_same(microbatch: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = PROBLEM.trainer()
    trainer.compute = dt.Compute(microbatch=microbatch)

    def digest(workers: int, bucket: int) -> str:
        monkeypatch.setattr("dasktrain.cut.SIZE", bucket)
        return trainer.fit(PROBLEM.data, client=dt.LocalWire(workers), **SETTINGS).digest  # type: ignore[arg-type]

    assert {digest(1, 7), digest(3, 7)} == {digest(2, 1 << 20)}


@each_problem
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_digest_equals_the_reference(problem: Problem, workers: int) -> None:
    assert problem.fit(dt.LocalWire(workers)).digest == expected(problem)


def test_digest_equals_the_reference_on_a_cluster(clean: Client) -> None:
    assert PROBLEM.fit(clean).digest == expected(PROBLEM)


@pytest.mark.parametrize("bucket", [7, 1 << 20])
def test_workers_that_die_and_join_change_no_bit(bucket: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dasktrain.cut.SIZE", bucket)
    happened = 0
    for seed in range(6):
        clock = Clock()
        wire = ChaosWire(Random(seed), 3, clock)
        with clock.ticking():
            assert PROBLEM.fit(wire).digest == expected(PROBLEM)
        happened += wire.happened["killed"] + wire.happened["killed while it computed"]
        assert wire.happened["joined"]
    assert happened


@pytest.fixture
def url() -> Iterator[str]:
    yield "memory://sparse"
    fs = fsspec.filesystem("memory")
    if fs.exists("/sparse"):
        fs.rm("/sparse", recursive=True)


@each_problem
def test_resumed_run_ends_with_the_same_bits(problem: Problem, url: str) -> None:
    keeps = dt.Checkpoint(url, "2 rounds", keep=1)
    problem.trainer([keeps]).fit(problem.data, client=dt.LocalWire(2), **SETTINGS, max_rounds=5)  # type: ignore[arg-type]
    assert problem.fit(dt.LocalWire(3), resume=url).digest == expected(problem)


def test_run_is_not_resumed_with_another_optimizer_of_tables(url: str) -> None:
    PROBLEM.trainer([dt.Checkpoint(url, "1 round")]).fit(PROBLEM.data, client=dt.LocalWire(), max_rounds=1)
    with pytest.raises(BadInput, match="optimizer is SGD and was AdamW and SparseAdam"):
        OF_TABLES[0].fit(dt.LocalWire(), batch_size=1024, seed=0, resume=url)


def test_pieces_of_a_batch_are_added() -> None:
    def fit(workers: int) -> dt.Result:
        trainer = PROBLEM.trainer()
        trainer.compute = dt.Compute(microbatch=3)
        return trainer.fit(PROBLEM.data, client=dt.LocalWire(workers), **SETTINGS)  # type: ignore[arg-type]

    assert fit(1).digest == fit(3).digest
    whole = PROBLEM.fit(dt.LocalWire())
    torch.testing.assert_close(fit(1).model.state_dict(), whole.model.state_dict(), rtol=1e-3, atol=1e-4)


def test_rows_that_nothing_touches_keep_their_bits_and_the_others_learn() -> None:
    started = Tables().tokens.weight.detach().clone()
    model = Tables()
    model.tokens.weight.data.copy_(started)
    trainer = PROBLEM.trainer()
    trainer.model = model
    X, y = PROBLEM.arrays
    found = trainer.fit(dt.Arrays(X, y), dt.Arrays(X, y), client=dt.LocalWire(2), epochs=3)
    trained = found.model.tokens.weight.detach()
    touched = np.isin(np.arange(40), np.unique(X)) & (np.arange(40) > 0)  # row 0 is padding
    assert touched.tolist() == (started != trained).all(dim=1).tolist()
    assert not (started != trained)[~touched].any()
    losses = found.history.to_frame()["valid_loss"].tolist()
    assert losses[-1] < losses[0]


def test_replicas_with_tables_are_compared_by_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `Replica.domain` swallows would leave out the user's module."""
    from dasktrain.replica import Replica

    found: list[list[Tensor]] = []
    trial = Replica._trial
    monkeypatch.setattr(Replica, "_trial", lambda self: found.append(trial(self)) or found[-1])
    PROBLEM.fit(dt.LocalWire(), epochs=None, max_rounds=1)
    (parts,) = found
    assert len(parts) == 1 + 2 + 2 * 2  # the loss, a head, rows of two tables


# -- the step ---------------------------------------------------------------------------------------------------------


def test_clipping_counts_the_rows_of_tables() -> None:
    module = nn.ModuleDict({"table": nn.Embedding(6, 2, sparse=True), "head": nn.Linear(1, 1, bias=False)})
    before = [part.detach().clone() for part in module.parameters()]
    state = TrainState(module, partial(torch.optim.SGD, lr=1.0))
    sums = Sums({}, 2, 0)
    flat = np.zeros(sums.layout.size)
    for name, value in ({"weight": 2.0, "rows": 2.0, "used": 1.0}).items():
        sums.layout.views(flat)[name][...] = value
    touched = Touched(np.array([1, 4]), np.array([[4.0, 0.0], [0.0, 4.0]], np.float32))
    total = Partial(0, 1, np.array([2.0], np.float32), flat, (touched,))
    figures = dt.GradientAveraging(clip_norm=1.5).apply(state, total, sums)
    assert figures == {"gradient_norm": 3.0}
    moved = [old - new.detach() for old, new in zip(before, module.parameters(), strict=True)]
    torch.testing.assert_close(moved[1], torch.tensor([[0.5]]))
    wanted = torch.zeros(6, 2).index_put((torch.tensor([1, 4]), torch.tensor([0, 1])), torch.tensor(1.0))
    torch.testing.assert_close(moved[0], wanted)
    assert touched.values.max() == 4.0  # they may be somebody else's


def test_what_is_dense_is_stepped_by_fused_kernels_and_tables_are_not() -> None:
    for optimizer in (OF_TABLES[0], PROBLEM):
        dense, sparse = TrainState(Tables(), optimizer.trainer().optimizer).optimizer.param_groups
        assert (dense["fused"], sparse.get("fused")) == (True, None)
        assert sparse["foreach"] is False


@pytest.mark.parametrize(
    ("optimizer", "found"),
    [
        (partial(torch.optim.AdamW, lr=0.1), "AdamW raised RuntimeError: Adam does not support sparse gradients"),
        (partial(torch.optim.SparseAdam, lr=0.1), "SparseAdam does not support dense gradients"),
        (partial(torch.optim.SGD, lr=0.1, weight_decay=0.1), "SGD raised RuntimeError"),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9), "SGD would remember more of them every round"),
    ],
    ids=["AdamW", "SparseAdam alone", "decay", "momentum"],
)
def test_optimizer_that_cannot_step_rows_is_refused_before_the_first_round(optimizer: Any, found: str) -> None:
    watcher = Watcher()
    trainer = PROBLEM.trainer([watcher])
    trainer.optimizer = optimizer
    with pytest.raises(ModelError, match=rf"must step the touched rows of .* however .*{found}.* use SparseAdam"):
        trainer.fit(PROBLEM.data, client=dt.LocalWire())
    assert watcher.rounds == []


class Twofold(nn.Module):
    """Uses a table's weight also as a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 3, sparse=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens).sum(dim=1) + self.table.weight.sum()


def test_table_that_is_used_densely_is_refused_before_the_first_round() -> None:
    trainer = dt.Trainer(Twofold(), nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=0.1), observers=[])
    with pytest.raises(ModelError, match=r"used by embeddings alone, however 'table.weight' has a gradient that is"):
        trainer.fit(PROBLEM.data, client=dt.LocalWire())


def test_what_a_run_needs_counts_the_state_of_sparse_optimizers() -> None:
    state = TrainState(Tables(), PROBLEM.trainer().optimizer)
    tables_ = 2 * 4 * (40 * 5 + 40 * 3)
    assert state.optimizer_bytes() == tables_ + 2 * 4 * (23 * 3 + 3) + 2 * 4  # and AdamW counts its steps
