"""Tables: embeddings that are ``sparse=True``, whose gradients are rows and not as large as themselves."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from dasktrain.errors import ModelError, ReductionError
from dasktrain.touched import Touched

Tables = Mapping[str, nn.Parameter]


def tables(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable weights of which every owner is an Embedding or EmbeddingBag that is ``sparse=True``."""
    others = {
        id(parameter) for owner in module.modules() if not _is_sparse(owner) for parameter in owner._parameters.values()
    }
    owned = {id(owner.weight) for owner in module.modules() if _is_sparse(owner)} - others
    return {name: part for name, part in module.named_parameters() if part.requires_grad and id(part) in owned}


def _is_sparse(owner: nn.Module) -> bool:
    return isinstance(owner, nn.Embedding | nn.EmbeddingBag) and owner.sparse


def split(
    gradients: Sequence[Tensor | None], tables: Tables, dtype: torch.dtype
) -> tuple[list[Tensor | None], tuple[Touched, ...]]:
    """Divide gradients into those as large as their parameters, and the rows of tables, which come last.

    Parameters
    ----------
    gradients
        One a parameter, as autograd returned them.
    dtype
        Of the rows.

    Raises
    ------
    ModelError
        A table's gradient is dense.
    """
    dense = len(gradients) - len(tables)
    whole = [None if gradient is None else gradient.to_dense() for gradient in gradients[:dense]]
    parts = zip(tables.items(), gradients[dense:], strict=True)
    return whole, tuple(_touched(name, table, gradient, dtype) for (name, table), gradient in parts)


def _touched(name: str, table: nn.Parameter, gradient: Tensor | None, dtype: torch.dtype) -> Touched:
    """Sum what the occurrences of each row add, in their order."""
    if gradient is None:
        gradient = no_rows(table)
    if gradient.layout is not torch.sparse_coo or gradient.sparse_dim() != 1:
        raise ModelError(
            f"The weight of an embedding that is sparse=True must be used by embeddings alone, however {name!r} has a "
            f"gradient that is {gradient.layout}; use sparse=False"
        )
    # Not coalesce(), whose sort is not stable. Widened before they are summed, and on the CPU, one after another.
    rows, order = torch.sort(gradient._indices()[0].cpu(), stable=True)
    values = gradient._values().cpu().to(dtype)[order]
    rows, counts = torch.unique_consecutive(rows, return_counts=True)
    return Touched(rows.numpy(), torch.segment_reduce(values, "sum", lengths=counts, axis=0, unsafe=True).numpy())


def no_rows(table: Tensor) -> Tensor:
    """Return the gradient of a table of which no row is touched."""
    return as_gradient(np.empty(0, dtype=np.int64), table.new_empty((0, *table.shape[1:])), table.shape)


def as_gradient(rows: np.ndarray, values: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the sparse gradient of a table of some shape, whose rows were checked; the rows are copied."""
    numbers = torch.tensor(rows, device=values.device)[None]
    return torch.sparse_coo_tensor(numbers, values, tuple(shape), check_invariants=False, is_coalesced=True)


def check_touched(touched: Sequence[Touched], tables: Tables) -> None:
    """Refuse rows that the tables do not have: optimizers write to them without looking.

    Raises
    ------
    ReductionError
        Says which table, and what was found.
    """
    if len(touched) != len(tables):
        raise ReductionError(f"Every table must have its rows, however {len(touched)} of {len(tables)} do; report this")
    for (name, table), each in zip(tables.items(), touched, strict=True):
        rows, values = each.rows, each.values
        within = not len(rows) or (rows[0] >= 0 and rows[-1] < len(table) and bool((np.diff(rows) > 0).all()))
        if not within or values.shape != (len(rows), *table.shape[1:]):
            raise ReductionError(
                f"Rows must be those of a table of shape {tuple(table.shape)}, however for {name!r} there are "
                f"{len(rows)}, up to {max(rows, default=None)}, with values of shape {values.shape}; report this"
            )


class Changed:
    """Which rows of tables have changed, as far as that is known."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._rows: list[list[np.ndarray]] | None = None  # of each table, by each step; None: any may have
        self._versions: list[int] = []

    @contextmanager
    def by_step(self, touched: Sequence[Touched] | None) -> Iterator[None]:
        """Take note of a step, which changes no other rows than these; None: it may."""
        if not self._tables:
            yield
            return
        self._look()
        # Rows were checked; without this torch warns that it does not.
        with torch.sparse.check_sparse_tensor_invariants(enable=False):  # type: ignore[no-untyped-call]
            yield
        self._versions = self._found()
        if touched is None:
            self._rows = None
        elif self._rows is not None:
            for rows, each in zip(self._rows, touched, strict=True):
                rows.append(each.rows)

    def take(self) -> list[np.ndarray | None]:
        """Return the rows of each table that have changed since this was called last; None: any may have."""
        if not self._tables:
            return []
        self._look()
        rows, self._rows = self._rows, [[] for _ in self._tables]
        if rows is None:
            return [None] * len(self._tables)
        return [np.unique(np.concatenate([np.empty(0, dtype=np.int64), *each])) for each in rows]

    def _look(self) -> None:
        """See whether somebody else has written to the tables, such as an observer."""
        if (found := self._found()) != self._versions:
            self._rows, self._versions = None, found

    def _found(self) -> list[int]:
        return [table._version for table in self._tables.values()]
