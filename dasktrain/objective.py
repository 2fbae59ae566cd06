"""Losses and metrics as (sum, weight) over rows, so that any cut of the rows adds up to the same mean."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dasktrain.data.block import Batch, scores
from dasktrain.errors import ModelError

#: what a loss or a metric may return: a mean over the rows, one value a row, or (sum, weight)
Returned = Tensor | float | tuple[Tensor | float, Tensor | float]
Measure = Callable[[Any, Any], Returned]

#: torch losses whose target is a class number and not of the output's shape
_BY_CLASS = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss, nn.MultiLabelMarginLoss)


class Objective:
    """A loss as sums.

    Parameters
    ----------
    loss
        ``loss(output, target)`` returning one of

        - a mean over the rows (a scalar): the shard's sum is mean x rows. Exact if every row counts the same;
        - one value a row, (rows,), or (rows, ...) of which each row's mean is taken;
        - (sum, weight): for losses with a denominator of their own (tokens, pixels, ...).

        A torch loss with ``reduction="mean"`` is taken per row, so that sample weights work, and its own
        denominator is kept: class weights and ``ignore_index`` of CrossEntropyLoss and NLLLoss count
        as torch counts them, over the whole global batch.

    Notes
    -----
    With weights w the loss of a round is sum(w * value) / sum(w). For torch losses that compare output
    and target element by element the target is given the output's dtype, and (rows, 1) its shape.
    """

    def __init__(self, loss: Measure) -> None:
        self._loss = loss
        self._builtin = isinstance(loss, nn.modules.loss._Loss)
        self._row: Callable[..., Tensor] = torch.mean  # from the values of a row to that of the row
        if isinstance(loss, nn.modules.loss._Loss):
            if loss.reduction == "sum":
                raise ModelError(
                    f"A loss must say what it is a mean of, however {loss} sums; use reduction='mean' or "
                    "return (sum, weight)"
                )
            self._loss = copy.deepcopy(loss)
            self._loss.reduction = "none"
            self._row = torch.sum if loss.reduction == "batchmean" else torch.mean

    def __call__(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the differentiable sum of the losses of all rows, and the sum of their weights (float64)."""
        rows, target, weight = batch.rows, batch.target, batch.weight
        if self._builtin:
            output = scores(output)
            target = self._aligned(output, target)
        returned = self._loss(output, target)
        if isinstance(returned, tuple):
            self._refuse_weights(weight, "a (sum, weight) pair")
            total, denominator = returned
            return torch.as_tensor(total), torch.as_tensor(denominator, dtype=torch.float64)
        if not isinstance(returned, Tensor):
            raise ModelError(f"A loss must return a tensor or (sum, weight), however it returned {type(returned)}")
        if returned.ndim == 0:
            self._refuse_weights(weight, "a mean")
            return returned * rows, torch.tensor(float(rows), dtype=torch.float64)
        if len(returned) != rows:
            raise ModelError(f"A loss must return a value a row, however it returned {len(returned)} for {rows}")
        if isinstance(self._loss, nn.CrossEntropyLoss | nn.NLLLoss) and not target.is_floating_point():
            return _summed(_rows(returned, torch.sum), _rows(self._class_shares(target).double(), torch.sum), weight)
        return _summed(
            _rows(returned, self._row), torch.ones(rows, dtype=torch.float64, device=returned.device), weight
        )

    def _class_shares(self, target: Tensor) -> Tensor:
        """Return each target's part of torch's denominator: its class weight, or 0 if it is ignored."""
        assert isinstance(self._loss, nn.CrossEntropyLoss | nn.NLLLoss)
        counted = target != self._loss.ignore_index
        if self._loss.weight is None:
            return counted
        return self._loss.weight.double()[target.where(counted, 0)] * counted

    def _aligned(self, output: Tensor, target: Tensor) -> Tensor:
        if isinstance(self._loss, _BY_CLASS):
            return target
        if output.shape == (len(target), 1) and target.ndim == 1:
            target = target[:, None]
        if output.shape != target.shape:
            raise ModelError(
                f"{type(self._loss).__name__} must compare equal shapes, however the model's output is "
                f"{tuple(output.shape)} and the target {tuple(target.shape)}"
            )
        return target.to(output.dtype)

    def _refuse_weights(self, weight: Tensor | None, what: str) -> None:
        if weight is not None:
            raise ModelError(
                f"With sample weights a loss must return one value a row, however it returned {what}; "
                "use reduction='none' or a torch loss module"
            )


def measure(metric: Measure, output: Any, batch: Batch) -> tuple[float, float]:
    """Return a metric's (sum, weight) over the rows; a scalar counts as a mean over them.

    Sample weights do not enter metrics.
    """
    returned: Any = metric(output, batch.target)
    if isinstance(returned, tuple):
        total, weight = returned
        return float(total), float(weight)
    rows, values = batch.rows, torch.as_tensor(returned, dtype=torch.float64)
    if values.ndim == 0:
        return float(values) * rows, float(rows)
    if len(values) != rows:
        raise ModelError(f"A metric must return a value a row, however it returned {len(values)} for {rows}")
    return float(_rows(values, torch.mean).sum()), float(rows)


def detached(output: Any) -> Any:
    """Return what a module returned, for metrics: a tensor without its history, anything else as it is."""
    return output.detach() if isinstance(output, Tensor) else output


def accuracy(output: Any, target: Tensor) -> Tensor:
    """Tell for each row whether the predicted class is the target's, (rows,).

    The largest of (rows, classes), or the sign of one logit, (rows,) or (rows, 1).
    """
    output = scores(output)
    if output.ndim > 1 and output.shape[1] > 1:
        return torch.eq(output.argmax(dim=1), target)
    return torch.eq(output.reshape(target.shape) > 0, target > 0.5)


def _summed(values: Tensor, shares: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum (rows,) values and their shares of the denominator, weighted."""
    if weight is None:
        return values.sum(), shares.sum()
    return (values * weight.to(values.dtype)).sum(), (shares * weight).sum()


def _rows(values: Tensor, of_row: Callable[..., Tensor]) -> Tensor:
    """Reduce (rows, ...) to (rows,)."""
    return of_row(values.flatten(1), dim=1) if values.ndim > 1 else values
