"""Classification of tables, in a few lines."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from torch import Tensor, nn

from dasktrain.balancing import Balance, ClassWeight, ClassWeights
from dasktrain.data.aimed import Aim
from dasktrain.data.source import Schema
from dasktrain.data.target import Labels
from dasktrain.errors import BadInput, known_keywords
from dasktrain.estimators.frames import Given, Joined
from dasktrain.estimators.tabular import Tabular
from dasktrain.objective import Measure, accuracy
from dasktrain.observe import Observer


class TabularClassifier(ClassifierMixin, Tabular):  # type: ignore[misc]
    """Learns labels of the rows of a table: one each, or any number of several.

    See :class:`dasktrain.estimators.tabular.Tabular` for the other parameters and attributes.

    Parameters
    ----------
    class_weight
        Label -> factor of its rows' weights; or ``"balanced"``: all labels weigh the same.
    balance
        What else is done about labels that are rare: one of :mod:`dasktrain.balance`, in place of `class_weight`.

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted. With several columns of 0 and 1 as the target: the numbers of these columns.

    Examples
    --------
    >>> X = np.array([[0.0], [0.1], [0.9], [1.0]] * 8)
    >>> model = TabularClassifier(epochs=60, learning_rate=0.01).fit(X, ["low", "low", "high", "high"] * 8)
    >>> model.predict([[0.05], [0.95]]).tolist()
    ['low', 'high']
    """

    @known_keywords
    def __init__(
        self,
        widths: Sequence[int] = (128, 128),
        dropout: float = 0.0,
        model: Callable[[Schema], nn.Module] | None = None,
        numeric: Sequence[str] | None = None,
        categorical: Sequence[str] | None = None,
        class_weight: ClassWeight | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        batch_size: int = 256,
        epochs: int | None = None,
        max_rounds: int | None = None,
        patience: int | None = 10,
        shards: int | None = None,
        random_state: Any = 0,
        client: Any = None,
        observers: Sequence[Observer] | None = None,
        verbose: bool = False,
        warm_start: bool = False,
        balance: Balance | None = None,
    ) -> None:
        super().__init__(
            widths,
            dropout,
            model,
            numeric,
            categorical,
            learning_rate,
            weight_decay,
            batch_size,
            epochs,
            max_rounds,
            patience,
            shards,
            random_state,
            client,
            observers,
            verbose,
            warm_start,
        )
        self.class_weight = class_weight
        self.balance = balance

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    score = Tabular.score  # and not the mixin's
    _figure = staticmethod(accuracy_score)

    def _aim(self, rows: Joined) -> Aim:
        if isinstance(rows.target, str):
            return "labels"
        if self._balance() is not None:
            raise BadInput(
                "class_weight or balance must go with one label a row, however the target has several columns"
            )
        return "indicators"

    def _balance(self) -> Balance | None:
        if self.class_weight is None:
            return self.balance
        if self.balance is not None:
            raise BadInput(f"class_weight must go without balance, however that is {self.balance}; leave one out")
        return ClassWeights(self.class_weight)

    @staticmethod
    def _objective(aim: Aim) -> tuple[Measure, dict[str, Measure]]:
        if aim == "labels":
            return nn.CrossEntropyLoss(), {"accuracy": accuracy}
        return nn.BCEWithLogitsLoss(), {"accuracy": _all_right}

    @property
    def classes_(self) -> Any:
        """The labels, sorted; of indicators the numbers of their columns."""
        target = self.result_.encoding.target
        if isinstance(target, Labels):
            return np.asarray(pd.array(list(target.values), dtype=target.dtype))
        return np.arange(len(target.names))  # type: ignore[union-attr]

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train one more epoch, on these rows; the first call's decide the encoding.

        Parameters
        ----------
        X, y, sample_weight
            As `fit` takes them.
        classes
            For the first call: all labels that will ever come; None: those of these rows.
        """
        labels = None if classes is None else np.asarray(classes).tolist()
        return self._learn(Given(X, y, sample_weight), going_on=self.__sklearn_is_fitted__(), labels=labels, epochs=1)

    def predict_proba(self, X: Any) -> Any:
        """Return the probability of each label for every row, (rows, labels); as `predict` otherwise."""
        return self._predicted(X, "probability")


def _all_right(output: Tensor, target: Tensor) -> Tensor:
    """Tell for each row whether all its labels are right."""
    return torch.eq(output > 0, target > 0.5).all(dim=1)
