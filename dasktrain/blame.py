"""What is not finite, and which rows it comes from."""

import math

import numpy as np
import torch

from dasktrain.accumulate import Sum, parts
from dasktrain.errors import NonFinite
from dasktrain.plan import Rows
from dasktrain.strategies import Sums
from dasktrain.vector import as_tensor


def check_scalars(sums: Sums, scalars: np.ndarray, where: str, rows: Rows) -> None:
    """Raise NonFinite naming the figure to blame, where it was found and the partitions that were read."""
    if math.isfinite(scalars.sum()):
        return
    for name, value in sums.named(scalars):
        if not math.isfinite(value):
            raise _not_finite(name, str(value), where, rows)


def check_gradient(total: Sum, where: str, rows: Rows) -> None:
    """Raise NonFinite if the gradient of some rows, whose loss may be finite, is not."""
    gradients = [gradient for gradient in parts(total.gradients or []) if gradient is not None]
    for part in [*gradients, *(as_tensor(each.values) for each in total.touched)]:
        if not torch.isfinite(part).all():
            raise _not_finite("The gradient", "NaN or infinite", where, rows)


def _not_finite(name: str, found: str, where: str, rows: Rows) -> NonFinite:
    partitions = ", ".join(map(str, np.unique(rows.partition)))
    return NonFinite(
        f"{name} must be finite, however it is {found} in {where}, with rows of partition {partitions}; look for "
        "extreme values there, or lower the learning rate"
    )
