"""Losses and metrics as sums: any cut of the rows adds up to what torch makes of all of them."""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dasktrain.data.block import Batch
from dasktrain.errors import ModelError
from dasktrain.objective import Objective, accuracy, measure

ROWS, CLASSES, PIXELS = 12, 4, 3
cuts = st.lists(st.integers(0, ROWS), max_size=4).map(lambda inner: [0, *sorted(inner), ROWS])
quick = settings(max_examples=10, deadline=None)
random = torch.Generator().manual_seed(1)


def batch(target: Tensor, weight: Tensor | None = None) -> Batch:
    return Batch((), target, weight, len(target))


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=random)


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=random)


def labels(*shape: int, ignored: int | None = None) -> Tensor:
    """Draw class numbers; every third is the ignored one, if there is one."""
    drawn = torch.randint(CLASSES, shape, generator=random)
    return drawn if ignored is None else drawn.where(torch.arange(drawn.numel()).reshape(shape) % 3 > 0, ignored)


CLASS_WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 3.25])
LOGITS, DENSE = normal(ROWS, CLASSES), normal(ROWS, CLASSES, PIXELS)
VALUES, SIGNS = normal(ROWS, 3), normal(ROWS, 3).sign()
SEVERAL = torch.tensor([[0, 2, -1, 0], [3, -1, 1, 1]]).repeat(ROWS // 2, 1)

#: name -> (loss, output, target): torch's own mean over all rows is what shards must add up to
CASES: dict[str, tuple[Any, Tensor, Tensor]] = {
    "cross entropy": (nn.CrossEntropyLoss(), LOGITS, labels(ROWS)),
    "cross entropy, class weights": (nn.CrossEntropyLoss(CLASS_WEIGHTS), LOGITS, labels(ROWS)),
    "cross entropy, ignored": (nn.CrossEntropyLoss(), LOGITS, labels(ROWS, ignored=-100)),
    "cross entropy, class 1 ignored": (nn.CrossEntropyLoss(CLASS_WEIGHTS, ignore_index=1), LOGITS, labels(ROWS)),
    "cross entropy, smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), LOGITS, labels(ROWS)),
    "cross entropy, all of them": (
        nn.CrossEntropyLoss(CLASS_WEIGHTS, label_smoothing=0.2),
        LOGITS,
        labels(ROWS, ignored=-100),
    ),
    "cross entropy, dense": (nn.CrossEntropyLoss(), DENSE, labels(ROWS, PIXELS)),
    "cross entropy, dense, all of them": (
        nn.CrossEntropyLoss(CLASS_WEIGHTS, label_smoothing=0.2),
        DENSE,
        labels(ROWS, PIXELS, ignored=-100),
    ),
    "cross entropy, soft": (nn.CrossEntropyLoss(), LOGITS, uniform(ROWS, CLASSES).softmax(1)),
    "cross entropy, soft, weights": (nn.CrossEntropyLoss(CLASS_WEIGHTS), LOGITS, uniform(ROWS, CLASSES).softmax(1)),
    "cross entropy, soft, dense": (nn.CrossEntropyLoss(), DENSE, uniform(ROWS, CLASSES, PIXELS).softmax(1)),
    "nll": (nn.NLLLoss(), LOGITS.log_softmax(1), labels(ROWS)),
    "nll, all of them": (nn.NLLLoss(CLASS_WEIGHTS), LOGITS.log_softmax(1), labels(ROWS, ignored=-100)),
    "nll, dense": (nn.NLLLoss(CLASS_WEIGHTS), DENSE.log_softmax(1), labels(ROWS, PIXELS)),
    "multi margin": (nn.MultiMarginLoss(weight=CLASS_WEIGHTS), LOGITS, labels(ROWS)),
    "multi label margin": (nn.MultiLabelMarginLoss(), LOGITS, SEVERAL),
    "multi label soft margin": (nn.MultiLabelSoftMarginLoss(CLASS_WEIGHTS), LOGITS, uniform(ROWS, CLASSES).round()),
    "mse": (nn.MSELoss(), VALUES, normal(ROWS, 3)),
    "mse, flat": (nn.MSELoss(), VALUES[:, 0], normal(ROWS)),
    "l1": (nn.L1Loss(), VALUES, normal(ROWS, 3)),
    "smooth l1": (nn.SmoothL1Loss(beta=0.3), VALUES, normal(ROWS, 3)),
    "huber": (nn.HuberLoss(delta=0.7), VALUES, normal(ROWS, 3)),
    "binary": (nn.BCELoss(), VALUES.sigmoid(), uniform(ROWS, 3)),
    "binary with logits": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 0.5, 1.0])), VALUES, uniform(ROWS, 3)),
    "poisson": (nn.PoissonNLLLoss(), VALUES, normal(ROWS, 3).exp()),
    "soft margin": (nn.SoftMarginLoss(), VALUES, SIGNS),
    "hinge embedding": (nn.HingeEmbeddingLoss(), VALUES, SIGNS),
    "kl, batchmean": (nn.KLDivLoss(reduction="batchmean"), LOGITS.log_softmax(1), uniform(ROWS, CLASSES).softmax(1)),
}
cases = pytest.mark.parametrize(("loss", "output", "target"), CASES.values(), ids=CASES)


def in_shards(
    loss: Any, output: Tensor, target: Tensor, at: list[int], weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum an objective over the rows cut into shards: (sum, weight)."""
    objective = Objective(loss)
    parts = [
        objective(output[a:b], batch(target[a:b], None if weight is None else weight[a:b]))
        for a, b in pairwise(at)
        if a < b
    ]
    total = torch.stack([part for part, _ in parts]).sum()
    return total, torch.stack([denominator for _, denominator in parts]).sum()


# -- torch losses -----------------------------------------------------------------------------------------------


@cases
@quick
@given(at=cuts)
def test_shards_add_up_to_torchs_mean_and_gradient(loss: Any, output: Tensor, target: Tensor, at: list[int]) -> None:
    output = output.clone().requires_grad_()
    expected = loss(output, target)
    total, weight = in_shards(loss, output, target, at)
    torch.testing.assert_close((total / weight).to(expected.dtype), expected)
    (gradient,) = torch.autograd.grad(total, output)
    torch.testing.assert_close((gradient / weight).to(output.dtype), torch.autograd.grad(expected, output)[0])


def test_weight_is_exact_in_float64_and_the_loss_is_left_as_it_was() -> None:
    loss = nn.CrossEntropyLoss(CLASS_WEIGHTS)
    _, weight = Objective(loss)(LOGITS, batch(labels(ROWS), None))
    assert (weight.dtype, loss.reduction) == (torch.float64, "mean")


def test_shard_of_ignored_rows_adds_nothing() -> None:
    total, weight = Objective(nn.CrossEntropyLoss())(LOGITS, batch(torch.full((ROWS,), -100), None))
    assert (total.item(), weight.item()) == (0.0, 0.0)


@pytest.mark.parametrize("target", [torch.tensor([0, 1, 1]), torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)])
@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.BCEWithLogitsLoss()])
def test_single_column_of_output_meets_a_flat_target_of_any_dtype(loss: Any, target: Tensor) -> None:
    output = torch.tensor([[0.1], [0.2], [0.3]])
    total, weight = Objective(loss)(output, batch(target, None))
    torch.testing.assert_close(total / weight, loss(output[:, 0], target.float()), check_dtype=False)


# -- sample weights ---------------------------------------------------------------------------------------------

WEIGHTS = torch.tensor([0.0, 1.0, 2.5, 0.25] * (ROWS // 4), dtype=torch.float64)
CROSS_ENTROPY_TARGET = labels(ROWS, ignored=-100)


def per_row_mse(output: Tensor, target: Tensor) -> Tensor:
    """Return a value for each row and column."""
    return (output - target) ** 2


@pytest.mark.parametrize("loss", [nn.MSELoss(), per_row_mse])
@quick
@given(at=cuts)
def test_sample_weights_make_a_weighted_mean_over_rows(loss: Any, at: list[int]) -> None:
    target = VALUES.flip(0)
    total, weight = in_shards(loss, VALUES, target, at, WEIGHTS)
    expected = ((VALUES - target) ** 2).double().mean(1) @ WEIGHTS / WEIGHTS.sum()
    torch.testing.assert_close(total / weight, expected, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("output", [LOGITS, DENSE], ids=["rows", "dense"])
def test_sample_weights_multiply_class_weights_in_sum_and_denominator(output: Tensor) -> None:
    target = CROSS_ENTROPY_TARGET if output.ndim == 2 else labels(ROWS, PIXELS, ignored=-100)
    total, weight = Objective(nn.CrossEntropyLoss(CLASS_WEIGHTS))(output, batch(target, WEIGHTS))
    values = F.cross_entropy(output, target, CLASS_WEIGHTS, reduction="none").double()
    shares = CLASS_WEIGHTS.double()[target.clamp(min=0)] * (target >= 0)
    weights = WEIGHTS.reshape(-1, *[1] * (target.ndim - 1))
    torch.testing.assert_close(total.double(), (weights * values).sum(), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(weight, (weights * shares).sum())


@cases
def test_weights_of_one_change_nothing(loss: Any, output: Tensor, target: Tensor) -> None:
    ones = torch.ones(ROWS, dtype=torch.float64)
    torch.testing.assert_close(
        Objective(loss)(output, batch(target, ones)), Objective(loss)(output, batch(target, None))
    )


# -- callables of the user --------------------------------------------------------------------------------------

RETURNING: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a mean": lambda output, target: F.mse_loss(output, target),
    "a value a row": lambda output, target: per_row_mse(output, target).mean(1),
    "several values a row": per_row_mse,
    "a (sum, weight) pair": lambda output, target: (per_row_mse(output, target).sum(), output.numel()),
    "a pair of tensors": lambda output, target: (per_row_mse(output, target).sum(), torch.tensor(output.numel())),
}


@pytest.mark.parametrize("loss", RETURNING.values(), ids=RETURNING)
@quick
@given(at=cuts)
def test_whatever_a_callable_returns_shards_add_up_to_the_mean(loss: Any, at: list[int]) -> None:
    total, weight = in_shards(loss, VALUES, VALUES.flip(0), at)
    torch.testing.assert_close((total / weight).float(), F.mse_loss(VALUES, VALUES.flip(0)))


# -- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("returning", ["a mean", "a (sum, weight) pair"])
def test_sample_weights_are_refused_without_a_value_a_row(returning: str) -> None:
    with pytest.raises(
        ModelError, match=f"must return one value a row, however it returned {re.escape(returning)}; use "
    ):
        Objective(RETURNING[returning])(VALUES, batch(VALUES, WEIGHTS))


@pytest.mark.parametrize("loss", [nn.MSELoss(reduction="sum"), nn.CrossEntropyLoss(reduction="sum")])
def test_loss_that_sums_is_refused(loss: Any) -> None:
    with pytest.raises(ModelError, match=r"must say what it is a mean of, however .*Loss.* sums; use reduction='mean'"):
        Objective(loss)


@pytest.mark.parametrize(
    ("output", "target"),
    [((4, 2), (4,)), ((4,), (4, 1)), ((4, 1), (4, 2))],
    ids=["wide output", "flat output", "wide target"],
)
def test_shapes_that_torch_would_broadcast_are_refused(output: tuple[int, ...], target: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="MSELoss must compare equal shapes, however the model's output is"):
        Objective(nn.MSELoss())(torch.zeros(output), batch(torch.zeros(target), None))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (0.5, r"must return a tensor or .* however it returned <class 'float'>"),
        (torch.zeros(ROWS + 1), "a value a row, however it returned 13 for 12"),
    ],
    ids=["float", "too long"],
)
def test_loss_that_returns_something_else_is_refused(returned: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Objective(lambda output, target: returned)(VALUES, batch(VALUES, None))


# -- metrics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (torch.tensor(0.25), (3.0, 12.0)),
        (0.25, (3.0, 12.0)),
        (torch.arange(12), (66.0, 12.0)),
        (torch.arange(12) > 8, (3.0, 12.0)),
        (torch.ones(12, 5), (12.0, 12.0)),
        ((torch.tensor(7), 5), (7.0, 5.0)),
    ],
    ids=["mean", "float", "integers", "booleans", "several a row", "pair"],
)
def test_metric_is_a_sum_and_a_weight(returned: Any, expected: tuple[float, float]) -> None:
    assert measure(lambda output, target: returned, VALUES, batch(VALUES)) == expected


def test_metric_with_values_for_other_than_the_rows_is_refused() -> None:
    with pytest.raises(ModelError, match="a value a row"):
        measure(lambda output, target: torch.ones(1), VALUES, batch(VALUES))


@pytest.mark.parametrize(
    ("output", "target", "expected"),
    [
        ([[0.1, 0.9], [0.8, 0.2]], [1, 1], [True, False]),
        ([[-0.2], [0.2], [3.0]], [0, 1, 0], [True, True, False]),
        ([-1.0, 2.0], [0.0, 1.0], [True, True]),
        ([[-1.0], [2.0]], [[0.0], [0.0]], [[True], [False]]),
    ],
    ids=["classes", "one logit", "flat logit", "target column"],
)
def test_accuracy_compares_the_predicted_class(output: Any, target: Any, expected: Any) -> None:
    assert accuracy(torch.tensor(output), torch.tensor(target)).tolist() == expected
