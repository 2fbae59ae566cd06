"""A partition as arrays, and a batch as tensors gathered from several of them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Buffer

from dasktrain.plan import Rows
from dasktrain.vector import as_tensor

Array = NDArray[np.generic]


class Block(NamedTuple):
    """One converted partition; every array has its rows along the first axis. Made by `as_block`.

    A plain tuple of NumPy arrays, so that Dask can size, move and spill it.
    """

    inputs: tuple[Array, ...]
    target: Array | None
    weight: Array | None  # (rows,), float64
    fingerprint: str  # of all bytes; one that Dask computes anew must have it again

    @property
    def num_rows(self) -> int:
        """Rows of the partition."""
        return len(self.inputs[0])


def as_block(inputs: tuple[Array, ...], target: Array | None = None, weight: Array | None = None) -> Block:
    """Return a partition with its fingerprint: hex sha256 of its arrays' dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for array in (*inputs, target, weight):
        if array is None:
            total.update(b"none")
        else:
            total.update(f"{array.dtype} {array.shape}".encode())
            total.update(cast(Buffer, np.ascontiguousarray(array)))
    return Block(inputs, target, weight, total.hexdigest())


@dataclass(frozen=True, slots=True)
class Batch:
    """What the module and the loss see at once.

    Integers arrive as int64 and floats as float32, whatever the block holds to save memory.
    """

    inputs: tuple[Tensor, ...]
    target: Tensor
    weight: Tensor | None


#: partition number -> its block; a lease brings one that reads from its worker's memory
ReadBlock = Callable[[int], Block]


def gather(read: ReadBlock, rows: Rows) -> Batch:
    """Read `rows`, in their order, by whole-column gathers from each partition they touch."""
    first = rows.partition[0]
    if (rows.partition == first).all():
        return _batch([read(int(first))], [torch.from_numpy(rows.row)], None)
    partitions = np.unique(rows.partition)
    places = [np.flatnonzero(rows.partition == partition) for partition in partitions]
    blocks = [read(int(partition)) for partition in partitions]
    back = torch.from_numpy(np.argsort(np.concatenate(places)))
    return _batch(blocks, [torch.from_numpy(rows.row[place]) for place in places], back)


def _batch(blocks: list[Block], chosen: list[Tensor], order: Tensor | None) -> Batch:
    """Take the `chosen` rows of each block, one after the other, then put them in `order`."""

    def column(arrays: list[Array]) -> Tensor:
        pieces = [as_tensor(array).index_select(0, index) for array, index in zip(arrays, chosen, strict=True)]
        return _widen(pieces[0] if order is None else torch.cat(pieces).index_select(0, order))

    weights = [block.weight for block in blocks if block.weight is not None]
    return Batch(
        inputs=tuple(column(list(arrays)) for arrays in zip(*(block.inputs for block in blocks), strict=True)),
        target=column([block.target for block in blocks if block.target is not None]),
        weight=column(list(weights)) if weights else None,
    )


def tensors(inputs: tuple[Array, ...]) -> tuple[Tensor, ...]:
    """Return inputs as the module sees them."""
    return tuple(_widen(as_tensor(array)) for array in inputs)


def _widen(tensor: Tensor) -> Tensor:
    return tensor.long() if tensor.dtype in (torch.int8, torch.int16, torch.int32, torch.uint8) else tensor
