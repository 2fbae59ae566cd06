"""A partition as arrays, and a batch as tensors gathered from several of them."""

import hashlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import Buffer

from dasktrain.data.ragged import Ragged, joined
from dasktrain.plan import Rows
from dasktrain.vector import as_tensor

Array = NDArray[np.generic]
#: what a block has of its rows: an array with rows along its first axis, or rows of different lengths
Column = Array | Ragged


class Block(NamedTuple):
    """One converted partition. Made by `as_block`.

    A plain tuple of NumPy arrays, so that Dask can size, move and spill it.
    """

    inputs: tuple[Column, ...]
    target: Array | None
    weight: Array | None  # (rows,), float64
    fingerprint: str  # of all bytes; one that Dask computes anew must have it again


def as_block(inputs: tuple[Column, ...], target: Array | None = None, weight: Array | None = None) -> Block:
    """Return a partition with its fingerprint: hex sha256 of its arrays' dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for array in _arrays((*inputs, target, weight)):
        if array is None:
            total.update(b"none")
        else:
            total.update(f"{array.dtype} {array.shape}".encode())
            total.update(cast(Buffer, np.ascontiguousarray(array)))
    return Block(inputs, target, weight, total.hexdigest())


def _arrays(columns: Iterable[Column | None]) -> Iterable[Array | None]:
    for column in columns:
        yield from column if isinstance(column, Ragged) else (column,)


@dataclass(frozen=True, slots=True)
class Batch:
    """What the module and the loss see at once.

    Attributes
    ----------
    inputs : tuple or dict of str to Tensor
        The module's arguments. Of a text the keys are Hugging Face's names; see `call`.
    target : Tensor
        Rows along the first axis. What :class:`dasktrain.Records` collates may be of any kind.
    weight : Tensor or None
        (rows,), float64.
    rows : int
        How many rows of the data these are.
    """

    inputs: tuple[Any, ...] | dict[str, Any]
    target: Any
    weight: Tensor | None
    rows: int

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        inputs = self.inputs.values() if isinstance(self.inputs, dict) else self.inputs
        return sum(part.nbytes for part in (*inputs, self.target, self.weight) if isinstance(part, Tensor))


@dataclass(frozen=True, slots=True)
class Gathered:
    """Some rows as blocks hold them.

    Attributes
    ----------
    columns : tuple
        A Tensor or a Ragged each.
    target, weight : Tensor or None
        (count, ...) and (count,).
    count : int
        How many rows these are.
    """

    columns: tuple[Any, ...]
    target: Tensor | None
    weight: Tensor | None
    count: int


class Collate(Protocol):
    """Makes a batch of gathered rows; shipped to every worker, so it is small."""

    @property
    def by_length(self) -> bool:
        """Whether rows of like length, that of the first column's, had better be read together."""

    def __call__(self, rows: Gathered) -> Batch:
        """Return the batch."""


@dataclass(frozen=True)
class Stack:
    """Passes arrays on as they are."""

    by_length = False

    def __call__(self, rows: Gathered) -> Batch:
        """Return them as they are: ``model(*inputs)``."""
        return Batch(rows.columns, rows.target, rows.weight, rows.count)


#: partition number -> its block; a lease brings one that reads from its worker's memory
ReadBlock = Callable[[int], Block]


def gather(read: ReadBlock, rows: Rows, collate: Collate) -> Batch:
    """Read `rows`, in their order, by whole-column gathers from each partition they touch.

    Integers arrive as int64 and floats as float32, whatever the block holds to save memory.
    """
    first = rows.partition[0]
    if (rows.partition == first).all():
        return _batch([read(int(first))], [rows.row], None, collate)
    order = np.argsort(rows.partition, kind="stable")
    partition = rows.partition[order]
    cuts = np.flatnonzero(partition[1:] != partition[:-1]) + 1
    blocks = [read(int(partition[start])) for start in (0, *cuts.tolist())]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return _batch(blocks, np.split(rows.row[order], cuts), back, collate)


def lengths(read: ReadBlock, rows: Rows) -> NDArray[np.int64]:
    """Return the length that each of `rows` has in the first column."""
    found = np.empty(len(rows), dtype=np.int64)
    for partition in np.unique(rows.partition).tolist():
        place = rows.partition == partition
        column = read(partition).inputs[0]
        assert isinstance(column, Ragged)
        found[place] = column.lengths_of(rows.row[place])
    return found


def _batch(
    blocks: list[Block], chosen: list[NDArray[np.int64]], order: NDArray[np.int64] | None, collate: Collate
) -> Batch:
    """Take the `chosen` rows of each block, one after the other, then put them in `order`."""
    indices = [torch.from_numpy(rows) for rows in chosen]
    back = None if order is None else torch.from_numpy(order)

    def array(arrays: list[Array]) -> Tensor:
        pieces = [as_tensor(array).index_select(0, index) for array, index in zip(arrays, indices, strict=True)]
        return _widen(pieces[0] if back is None else torch.cat(pieces).index_select(0, back))

    def column(columns: list[Any]) -> Tensor | Ragged:
        if not isinstance(columns[0], Ragged):
            return array(columns)
        pieces = [column.take(index) for column, index in zip(columns, chosen, strict=True)]
        return pieces[0] if order is None else joined(pieces).take(order)

    targets = [block.target for block in blocks if block.target is not None]
    weights = [block.weight for block in blocks if block.weight is not None]
    gathered = Gathered(
        tuple(column(list(columns)) for columns in zip(*(block.inputs for block in blocks), strict=True)),
        array(targets) if targets else None,
        array(weights) if weights else None,
        sum(map(len, chosen)),
    )
    return collate(gathered)


def unlabelled(inputs: tuple[Column, ...]) -> Block:
    """Return a partition that is to be predicted for, without a fingerprint."""
    return Block(inputs, None, None, "")


def batches(block: Block, collate: Collate, at_once: int) -> Iterable[Batch]:
    """Return all rows of a partition in their order, `at_once` in a batch."""
    rows = num_rows(block.inputs[0])
    for start in range(0, rows, at_once):
        yield _batch([block], [np.arange(start, min(start + at_once, rows))], None, collate)


def num_rows(column: Column) -> int:
    """Count a column's rows."""
    return column.num_rows if isinstance(column, Ragged) else len(column)


def call(module: nn.Module, inputs: tuple[Any, ...] | dict[str, Any]) -> Any:
    """Call a module with a batch's inputs.

    Named ones are passed by name if the module's ``forward`` takes all of those names, and in their order otherwise.
    """
    if not isinstance(inputs, dict):
        return module(*inputs)
    forward = getattr(module.forward, "__func__", module.forward)  # of the class: the same for all its modules
    return module(**inputs) if _takes(forward, tuple(inputs)) else module(*inputs.values())


def scores(output: Any) -> Tensor:
    """Return what a module scored: its output, or the ``logits`` of it that Hugging Face's models have."""
    found: Tensor = output if isinstance(output, Tensor) else output.logits
    return found


@lru_cache
def _takes(forward: Callable[..., Any], names: tuple[str, ...]) -> bool:
    parameters = inspect.signature(forward).parameters
    return any(each.kind is each.VAR_KEYWORD for each in parameters.values()) or all(
        name in parameters for name in names
    )


def _widen(tensor: Tensor) -> Tensor:
    return tensor.long() if tensor.dtype in (torch.int8, torch.int16, torch.int32, torch.uint8) else tensor
