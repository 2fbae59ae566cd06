"""On the driver: sums over all shards of what workers have packed."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dasktrain.codes import unpack
from dasktrain.compression import Sent
from dasktrain.domain import pinned
from dasktrain.errors import NonFinite
from dasktrain.messages import Partial, Vector
from dasktrain.reduce import NOT_FINITE, Each, fold, is_finite, reduce


def unpacked(partials: Sequence[Partial], shards: int, sent: Sent, each: Each = map) -> Partial:
    """Return the sum over all shards of gradients that packed sums stand for.

    Raises
    ------
    ReductionError
        A node is missing, came twice, or is none of the tree.
    NonFinite
        The sum holds NaN or infinity.
    WireError
        What came is not what is sent.
    """
    if sent.form.adds:
        return reduce([replace(partial, vector=_read(partial, sent)) for partial in partials], shards, each, sent.code)
    total = reduce([replace(partial, vector=None) for partial in partials], shards)
    with pinned(1):  # whatever the driver has
        vector = _added(partials, shards, sent)
    return replace(total, vector=vector)


def _read(partial: Partial, sent: Sent) -> Vector | None:
    return None if partial.vector is None else unpack(partial.vector, sent.form.size)


def _added(partials: Sequence[Partial], shards: int, sent: Sent) -> Vector | None:
    """Add up gradients of shards, a few of which are there at once."""
    packed = {partial.start: partial for partial in partials}

    def leaf(shard: int, into: Tensor | None) -> Tensor | None:
        found = _read(packed[shard], sent)
        if found is None:
            return into
        whole = sent.form.whole(torch.tensor(found))  # a copy, which begins where torch's own tensors do
        return whole if into is None else into.add_(whole)

    total = fold(0, shards, leaf, Tensor.add_)
    if total is None:
        return None
    vector: Vector = total.numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        if not is_finite(vector):
            raise NonFinite(NOT_FINITE)
    return vector
