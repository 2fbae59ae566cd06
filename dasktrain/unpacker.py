"""On the driver: sums over all shards of what workers have packed."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dasktrain.codes import unpack
from dasktrain.compression import Sent
from dasktrain.domain import pinned
from dasktrain.errors import NonFinite, ReductionError
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
    for partial in partials:
        if partial.stop - partial.start != 1:
            raise ReductionError(
                f"What does not add up must be sent shard by shard, however [{partial.start}, {partial.stop}) came in "
                "one piece; report this"
            )
    total = reduce([replace(partial, vector=None) for partial in partials], shards)
    with pinned(1):  # whatever the driver has
        vector = _added(partials, shards, sent)
    return replace(total, vector=vector)


def _read(partial: Partial, sent: Sent) -> Vector | None:
    if (partial.vector is None) != (partial.sums is None):
        raise ReductionError(
            f"A sum must have scalars and numbers, or neither, however that of [{partial.start}, {partial.stop}) has "
            "one of them; report this"
        )
    return None if partial.vector is None else unpack(partial.vector, sent.form.size)


def _added(partials: Sequence[Partial], shards: int, sent: Sent) -> Vector | None:
    """Add up gradients of shards, a few of which are there at once."""
    packed = {partial.start: partial for partial in partials}

    def leaf(shard: int, into: Tensor | None) -> Tensor | None:
        found = _read(packed[shard], sent)
        if found is None:
            return into
        gradient = sent.form.gradient(torch.from_numpy(found))
        return gradient if into is None else into.add_(gradient)

    total = fold(0, shards, leaf, Tensor.add_)
    if total is None:
        return None
    vector: Vector = total.numpy()
    if not is_finite(vector):
        raise NonFinite(NOT_FINITE)
    return vector
