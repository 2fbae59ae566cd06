"""Which rows of rare and of common classes a plan reads, and how much each counts; see :mod:`dasktrain.balance`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
from dask.delayed import Delayed
from numpy.typing import NDArray

from dasktrain.data.block import Block, as_block
from dasktrain.data.encoders import plain
from dasktrain.data.source import Encoding, Survey
from dasktrain.data.synthesis import Neighbours, Synthesis
from dasktrain.data.target import Labels, Target, TargetSurvey
from dasktrain.data.tokenised import run_each
from dasktrain.errors import BadInput, DataError

ClassWeight = Mapping[Any, float] | Literal["balanced"]


class Balance:
    """Leaves rows as they are; what others start from, yours included."""

    #: whether it decides how often rows are read
    draws: ClassVar[bool] = False

    def drawn(self, rows: NDArray[np.int64]) -> tuple[int, ...] | None:
        """Return how many rows of each class an epoch reads, given (classes,) how many there are; None: those."""
        return None

    def weighed(self, blocks: list[Delayed], target: Target | None, surveys: Sequence[Survey]) -> list[Delayed]:
        """Return the blocks of all partitions with the weights that their rows get."""
        return blocks

    @property
    def synthesis(self) -> Synthesis | None:
        """What makes up rows in place of those that would come again."""
        return None

    def check(self, encoding: Encoding) -> None:
        """Raise BadInput if rows that are encoded so cannot be balanced so."""


@dataclass(frozen=True)
class ClassWeights(Balance):
    """Weights of classes, by which those of their rows are multiplied.

    Parameters
    ----------
    weights
        Label -> factor, 1 where it has none. ``"balanced"``: rows / (classes x rows of the class), as scikit-learn's
        ``class_weight`` (King and Zeng, "Logistic Regression in Rare Events Data", Political Analysis 2001).
    """

    weights: ClassWeight = "balanced"

    def __post_init__(self) -> None:
        factors = list(self.weights.values()) if isinstance(self.weights, Mapping) else []
        if not isinstance(self.weights, Mapping) and self.weights != "balanced":
            raise BadInput(f'Class weights must be "balanced" or label -> factor, however they are {self.weights!r}')
        for factor in factors:
            if not isinstance(factor, Real) or not 0 <= float(factor) < np.inf:
                raise BadInput(f"Every class_weight must be finite and not negative, however one is {factor!r}")

    def weighed(self, blocks: list[Delayed], target: Target | None, surveys: Sequence[Survey]) -> list[Delayed]:
        """Return the blocks of all partitions with the weights of their rows multiplied."""
        if not isinstance(target, Labels):
            raise DataError("Class weights must go with class labels, however the target has none; leave balance= out")
        factors = self._factors(target, [survey.target for survey in surveys])
        return run_each(_reweighted, (factors,), blocks)

    def _factors(self, target: Labels, surveys: Sequence[TargetSurvey]) -> NDArray[np.float64]:
        """Return the factor of each class, (classes,)."""
        if not isinstance(self.weights, Mapping):
            counts = Counter[Any]()
            for survey in surveys:
                counts.update(survey.labels or {})
            rows = np.array([counts[label] for label in target.values])
            return np.asarray(rows.sum() / (np.count_nonzero(rows) * np.maximum(1, rows)), dtype=np.float64)
        factors = dict(zip(plain(self.weights), self.weights.values(), strict=True))
        for label in factors.keys() - set(target.values):
            raise DataError(
                f"Every label of class_weight must be one of {list(target.values)}, however {label!r} is not"
            )
        return np.array([factors.get(label, 1.0) for label in target.values], dtype=np.float64)


@dataclass(frozen=True)
class Oversample(Balance):
    """Rows of rare classes several times an epoch.

    Parameters
    ----------
    ratio
        Rows read of each class for every row of the largest, at least; in (0, 1]. A class that has as many is read as
        it is. Of another with n rows m are read, each floor(m / n) or ceil(m / n) times; which are read once more
        changes from epoch to epoch.
    """

    ratio: float = 1.0

    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    def drawn(self, rows: NDArray[np.int64]) -> tuple[int, ...]:
        """Return how many rows of each class an epoch reads."""
        wanted = int(np.ceil(rows.max() * self.ratio))
        return tuple(max(count, wanted) if count else 0 for count in rows.tolist())


@dataclass(frozen=True)
class Undersample(Balance):
    """As many rows of common classes an epoch as of rare ones.

    Parameters
    ----------
    ratio
        Rows of the smallest class for every row of another, at least; in (0, 1]. A class of more has others of its rows
        read every epoch: all of them in turn, none twice before all were read once.
    """

    ratio: float = 1.0

    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    def drawn(self, rows: NDArray[np.int64]) -> tuple[int, ...]:
        """Return how many rows of each class an epoch reads."""
        most = int(np.floor(rows[rows > 0].min() / self.ratio))
        return tuple(min(count, most) for count in rows.tolist())


@dataclass(frozen=True)
class Smote(Oversample):
    """Made-up rows in place of those that :class:`Oversample` would read again.

    SMOTE (Chawla, Bowyer, Hall and Kegelmeyer, "SMOTE: Synthetic Minority Over-sampling Technique", JAIR 2002), by
    imbalanced-learn, among the rows of each window that a shard reads: an epoch reads every row of a rare class once,
    and others that lie at random between a row and one of its nearest neighbours of that class. Every epoch has new
    ones. A window with a single row of a class reads that again. It needs ``pip install 'dasktrain[imbalance]'`` on
    the client and on every worker, and data with numeric columns only.

    Parameters
    ----------
    ratio
        As of :class:`Oversample`.
    neighbours
        Nearest neighbours to choose from, at most.
    """

    neighbours: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.neighbours, Integral) or self.neighbours < 1:
            raise BadInput(f"neighbours must be a whole number and at least 1, however it is {self.neighbours!r}")

    @property
    def synthesis(self) -> Synthesis:
        """What makes up rows in place of those that would come again."""
        return Neighbours(self.neighbours)

    def check(self, encoding: Encoding) -> None:
        """Raise BadInput if imbalanced-learn is missing, or rows are not numbers."""
        if find_spec("imblearn") is None:
            raise BadInput(
                "imbalanced-learn must be installed for dt.balance.Smote, however it is not; "
                "pip install 'dasktrain[imbalance]', here and on every worker"
            )
        require_numbers(encoding)


def require_numbers(encoding: Encoding) -> None:
    """Raise BadInput if rows are more than numbers, of which others cannot be made up."""
    inputs = encoding.schema.inputs
    if [part.bounds for part in inputs] != [None]:
        raise BadInput(
            f"Rows must be numbers to make up others, however the model is called with {len(inputs)} inputs, not all "
            "of floats; leave out columns that are not, or use dt.balance.Oversample"
        )


def _check_ratio(ratio: float) -> None:
    if not isinstance(ratio, Real) or not 0 < float(ratio) <= 1:
        raise BadInput(f"ratio must be in (0, 1], however it is {ratio!r}; 1 reads all classes alike")


def _reweighted(weights: NDArray[np.float64], block: Block) -> Block:
    """Multiply the weights of rows by those of their classes."""
    assert block.target is not None
    factors = weights[block.target.astype(np.int64)]
    given = 1.0 if block.weight is None else block.weight.astype(np.float64)
    return as_block(block.inputs, block.target, factors * given)
