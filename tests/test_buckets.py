"""A gradient that travels in parts: the same bits, sent and added while the rest is being computed."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import dasktrain as dt
from dasktrain import cut
from dasktrain.accumulate import Accumulator, Gradients, Sum
from dasktrain.buckets import Incoming, Outgoing, Rising
from dasktrain.cut import Cut
from dasktrain.errors import NonFinite, ReductionError
from dasktrain.messages import Bucket, Partial, Task
from dasktrain.reduce import fold, siblings, spine, split, subtrees
from dasktrain.vector import Layout, layout_of
from tests.problems import PROBLEMS, Problem, expected

SIZE = 5
TASK = Task("r", "train", 0, 0, 0, 99)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have buckets of a few numbers."""
    monkeypatch.setattr(cut, "SIZE", SIZE)


# -- the tree -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.data())
def test_the_way_up_from_any_node_ends_at_the_root(shards: int, data: st.DataObject) -> None:
    start, stop = 0, shards
    while stop - start > 1 and data.draw(st.booleans()):
        middle = split(start, stop)
        start, stop = data.draw(st.sampled_from([(start, middle), (middle, stop)]))
    below = start, stop
    for sibling, parent in siblings(start, stop, shards):
        assert sorted([below, sibling]) == [(parent[0], split(*parent)), (split(*parent), parent[1])]
        below = parent
    assert below == (0, shards)


@pytest.mark.parametrize("node", [(1, 3), (0, 3), (4, 4), (3, 5), (-1, 1), (0, 5), (2, 1)])
def test_the_way_up_is_only_from_nodes_of_the_tree(node: tuple[int, int]) -> None:
    with pytest.raises(ReductionError, match="nodes of the tree"):
        siblings(*node, 4)


@given(st.integers(0, 9), st.integers(1, 30))
def test_a_node_is_its_spine_and_its_last_leaf(start: int, length: int) -> None:
    left = [shard for node in spine(start, start + length) for shard in range(*node)]
    assert [*left, start + length - 1] == list(range(start, start + length))


# -- on the driver ------------------------------------------------------------------------------------------------


def leaves(shards: int, size: int, seed: int, empty: float) -> list[np.ndarray | None]:
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.integers(-6, 7, size=(shards, size))
    return [None if rng.random() < empty else (rng.normal(size=size) * scale).astype(np.float32) for scale in scales]


def summed(vectors: Sequence[np.ndarray | None], start: int, stop: int) -> np.ndarray | None:
    """Sum leaves as the tree says."""
    if stop - start == 1:
        return vectors[start]
    left, right = summed(vectors, start, split(start, stop)), summed(vectors, split(start, stop), stop)
    return left + right if left is not None and right is not None else left if right is None else right


@given(
    shards=st.integers(1, 12),
    size=st.integers(1, 4 * SIZE),
    empty=st.sampled_from([0.0, 0.4]),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_the_sum_is_that_of_the_tree_in_any_order_twice_or_from_the_dead(
    shards: int, size: int, empty: float, seed: int, data: st.DataObject
) -> None:
    vectors = leaves(shards, size, seed, empty)
    cut = st.lists(st.integers(0, shards), max_size=4).map(lambda cuts: [0, *sorted(cuts), shards])
    answers, lost = (
        [node for start, stop in pairwise(cuts) for node in subtrees(start, stop, shards)]
        for cuts in (data.draw(cut), data.draw(cut))
    )
    incoming = Incoming(shards)
    for _ in range(2):  # memory of the first round is used again in the second
        incoming.begin(np.zeros(size, dtype=np.float32), SIZE)
        assert not incoming
        whole = {node for node in answers if data.draw(st.booleans())}
        sent = [(node, start) for node in answers if node not in whole for start in range(0, size, SIZE)]
        twice = [(node, start) for node in lost for start in range(0, size, SIZE) if data.draw(st.booleans())]
        for (start, stop), offset in data.draw(st.permutations(sent + twice)):
            vector = summed(vectors, start, stop)
            if vector is not None:
                part = vector[offset : offset + SIZE].copy()
                incoming.add(Bucket(TASK, start, stop, offset, part))
                part[:] = np.nan  # it may be used for something else
        partials = []
        for start, stop in answers:
            vector = summed(vectors, start, stop)
            scalars = None if vector is None else np.ones(1)
            partials.append(Partial(start, stop, vector if (start, stop) in whole else None, scalars))
        found, wanted = incoming.complete(partials), summed(vectors, 0, shards)
        assert found.tobytes() == (np.zeros(size, np.float32) if wanted is None else wanted).tobytes()


@given(
    shards=st.integers(1, 12),
    size=st.integers(1, 4 * SIZE),
    empty=st.sampled_from([0.0, 0.4]),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_the_sum_is_that_of_the_tree_if_some_is_added_on_the_way(
    shards: int, size: int, empty: float, seed: int, data: st.DataObject
) -> None:
    vectors = leaves(shards, size, seed, empty)
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, shards), max_size=4))), shards]
    first, last = sorted(data.draw(st.tuples(*[st.sampled_from(cuts)] * 2)))  # what is added on the way
    tops = list(subtrees(first, last, shards))
    passed: list[Bucket] = []

    def passes(offset: int, node: tuple[int, int], values: np.ndarray | None) -> None:
        assert node in tops
        if values is not None:
            passed.append(Bucket(TASK, *node, offset, values.copy()))

    rising, incoming = Rising(shards, passes), Incoming(shards)
    for _ in range(2):
        rising.start(Cut(size, SIZE), np.dtype(np.float32), tops)
        incoming.begin(np.zeros(size, dtype=np.float32), SIZE)
        nodes = [node for start, stop in pairwise(cuts) for node in subtrees(start, stop, shards)]
        parts = [(node, offset) for node in nodes for offset in range(0, size, SIZE)]
        for node, offset in data.draw(st.permutations(parts)):
            vector, inside = summed(vectors, *node), first <= node[0] < node[1] <= last
            if inside and data.draw(st.integers(0, 9)) > 0:  # or it comes too late for that
                rising.put(offset, node, None if vector is None else vector[offset : offset + SIZE])
                if data.draw(st.booleans()):
                    continue
            if vector is not None:  # or as well: whoever gave it was not sure
                incoming.add(Bucket(TASK, *node, offset, vector[offset : offset + SIZE]))
        passed += [Bucket(TASK, *node, offset, values) for offset, node, values in rising.rest()]
        for bucket in data.draw(st.permutations(passed)):
            incoming.add(bucket)
        passed.clear()
        partials = [Partial(*node, None, None if summed(vectors, *node) is None else np.ones(1)) for node in nodes]
        found, wanted = incoming.complete(partials), summed(vectors, 0, shards)
        assert found.tobytes() == (np.zeros(size, np.float32) if wanted is None else wanted).tobytes()


def test_memory_is_for_what_is_under_way_not_for_every_answer() -> None:
    shards, parts = 64, 50
    incoming = Incoming(shards)
    incoming.begin(np.zeros(parts * SIZE, dtype=np.float32), SIZE)
    for offset in range(0, parts * SIZE, SIZE):  # side by side, as the wire reads them
        for shard in range(shards):
            incoming.add(Bucket(TASK, shard, shard + 1, offset, np.ones(SIZE, dtype=np.float32)))
    assert len(incoming._free) <= shards.bit_length()
    assert incoming.complete([Partial(s, s + 1, None, np.ones(1)) for s in range(shards)]).tolist() == [64.0] * 250


ODD: dict[str, Callable[[], Bucket]] = {
    "begins between two": lambda: Bucket(TASK, 0, 1, 1, np.ones(SIZE, dtype=np.float32)),
    "begins beyond the end": lambda: Bucket(TASK, 0, 1, 4 * SIZE, np.ones(0, dtype=np.float32)),
    "begins before the beginning": lambda: Bucket(TASK, 0, 1, -SIZE, np.ones(SIZE, dtype=np.float32)),
    "is too short": lambda: Bucket(TASK, 0, 1, 0, np.ones(SIZE - 1, dtype=np.float32)),
    "is too long": lambda: Bucket(TASK, 0, 1, 2 * SIZE, np.ones(SIZE, dtype=np.float32)),
    "has another dtype": lambda: Bucket(TASK, 0, 1, 0, np.ones(SIZE)),
    "is of no node": lambda: Bucket(TASK, 1, 3, 0, np.ones(SIZE, dtype=np.float32)),
}


@pytest.mark.parametrize("what", ODD)
def test_a_bucket_that_is_no_part_of_the_gradient_is_refused(what: str) -> None:
    incoming = Incoming(4)
    incoming.begin(np.zeros(2 * SIZE + 1, dtype=np.float32), SIZE)
    with pytest.raises(ReductionError):
        incoming.add(ODD[what]())


def test_a_part_that_never_came_is_missed() -> None:
    incoming = Incoming(1)
    incoming.begin(np.zeros(2 * SIZE, dtype=np.float32), SIZE)
    incoming.add(Bucket(TASK, 0, 1, SIZE, np.ones(SIZE, dtype=np.float32)))
    with pytest.raises(ReductionError, match="not all at 0 did"):
        incoming.complete([Partial(0, 1, None, np.ones(1))])


def test_a_sum_that_is_not_finite_is_refused_once_all_of_it_is_here() -> None:
    incoming = Incoming(2)
    incoming.begin(np.zeros(SIZE, dtype=np.float32), SIZE)
    for shard in range(2):
        incoming.add(Bucket(TASK, shard, shard + 1, 0, np.full(SIZE, 3e38, dtype=np.float32)))
    with pytest.raises(NonFinite, match="lower the learning rate"):
        incoming.complete([Partial(shard, shard + 1, None, np.ones(1)) for shard in range(2)])


# -- on a worker --------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """Layers of several sizes, a parameter that is used twice, one that is not, and one of nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 4)
        self.unused = nn.Parameter(torch.ones(7))
        self.nothing = nn.Parameter(torch.ones(0))
        self.again = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, 3) -> (rows, 2)."""
        output: Tensor = self.last(self.again(self.again(self.first(x))))
        return output


def backward(model: nn.Module, shard: int) -> Gradients:
    """Compute a shard's gradient."""
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(shard)) * 10.0 ** (shard % 3)
    return list(torch.autograd.grad(model(x).square().sum(), list(model.parameters()), allow_unused=True))


@given(st.integers(1, 9), st.sets(st.integers(0, 8)), st.integers(0, 2))
def test_a_node_sent_in_buckets_has_the_bits_of_one_that_is_not(shards: int, empty: set[int], pieces: int) -> None:
    model = Model()
    parameters = list(model.parameters())
    layout = layout_of(dict(model.named_parameters()))
    accumulator = Accumulator(layout, torch.empty(0))

    def leaf(shard: int, into: Sum | None) -> Sum | None:
        if shard in empty:
            return into
        total = None
        for piece in range(pieces + 1):
            total = accumulator.leaf(backward(model, shard * 10 + piece), np.array([float(shard)]), total)
        assert total is not None
        return total if into is None else accumulator.add(into, total)

    whole = fold(0, shards, leaf, accumulator.add)
    wanted = b"" if whole is None else accumulator.flat(whole).numpy().tobytes()  # type: ignore[union-attr]

    sent: list[Bucket] = []
    outgoing = Outgoing(parameters, layout, SIZE, accumulator, sent.append)
    assert outgoing.worthwhile
    lefts = [fold(*node, leaf, accumulator.add) for node in spine(0, shards)]
    outgoing.begin(TASK, (0, shards), [left for left in lefts if left is not None])
    scalars = None
    if shards - 1 not in empty:
        before = None
        for piece in range(pieces):
            before = accumulator.leaf(backward(model, (shards - 1) * 10 + piece), np.zeros(1), before)
        with outgoing.watching(before):
            backward(model, (shards - 1) * 10 + pieces)
        scalars = np.array([(pieces + 1.0) * (shards - 1)])
    found = outgoing.end(scalars)
    assert (None if found is None else found.tolist()) == (None if whole is None else whole.scalars.tolist())
    sent.sort(key=lambda bucket: bucket.offset)
    assert b"".join(bucket.values.tobytes() for bucket in sent) == wanted
    assert {(bucket.task, bucket.start, bucket.stop) for bucket in sent} <= {(TASK, 0, shards)}


class Noted(torch.autograd.Function):
    """Does nothing, and notes when backward comes by."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, note: Callable[[], None]) -> Tensor:
        ctx.note = note
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.note()
        return gradients[0], None


def test_the_last_layers_are_sent_while_the_first_are_computed() -> None:
    layers = [nn.Linear(5, 5, bias=False) for _ in range(3)]
    parameters = [layer.weight for layer in layers]
    layout = Layout({str(place): (5, 5) for place in range(3)})
    events: list[str] = []
    accumulator = Accumulator(layout, torch.empty(0))
    outgoing = Outgoing(parameters, layout, SIZE, accumulator, lambda bucket: events.append(f"sent {bucket.offset}"))
    outgoing.begin(TASK, (0, 1), [])
    x = torch.ones(2, 5, requires_grad=True)
    for place, layer in enumerate(layers):
        x = Noted.apply(layer(x), lambda place=place: events.append(f"backward of {place}"))
    with outgoing.watching(None):
        torch.autograd.grad(x.sum(), parameters)
    assert events.index("sent 50") < events.index("backward of 0")
    assert len([event for event in events if event.startswith("sent")]) == 15


@pytest.mark.parametrize(
    ("problem", "compute"),
    [*((problem, None) for problem in PROBLEMS[::2]), (PROBLEMS[0], dt.Compute(microbatch=3))],
    ids=lambda each: each.model if isinstance(each, Problem) else "microbatch" if each else "batch",
)
@pytest.mark.parametrize("strategy", [None, dt.LocalSGD(steps=2)], ids=["averaging", "local"])
@pytest.mark.parametrize("shards", [1, 5])
def test_digests_do_not_depend_on_it(
    problem: Problem,
    compute: dt.Compute | None,
    shards: int,
    strategy: dt.LocalSGD | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if problem.model == "tables" and strategy is not None:
        pytest.skip("Shards step dense parameters by themselves")

    def digest(workers: int) -> str:
        trainer = problem.trainer()
        trainer.strategy = strategy or trainer.strategy
        trainer.compute = compute or dt.Compute()
        return trainer.fit(problem.data, client=dt.LocalWire(workers), shards=shards, **small_settings).digest

    small_settings: dict[str, Any] = {"epochs": 1, "batch_size": 100, "seed": 7}
    found = {digest(workers) for workers in (1, 3)}
    monkeypatch.setattr(cut, "SIZE", 1 << 20)
    assert found == {digest(2)}


def test_the_digest_in_buckets_is_the_reference() -> None:
    assert PROBLEMS[0].fit(dt.LocalWire(2)).digest == expected(PROBLEMS[0])
