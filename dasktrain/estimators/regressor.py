"""Regression of tables, in a few lines."""

from typing import Any, Self

from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from torch import nn

from dasktrain.data.aimed import Aim
from dasktrain.estimators.frames import Given, Joined
from dasktrain.estimators.tabular import Tabular
from dasktrain.objective import Measure


class TabularRegressor(RegressorMixin, Tabular):  # type: ignore[misc]
    """Learns one or several numbers of each row of a table.

    Targets are standardised, the loss is their squared error; see
    :class:`dasktrain.estimators.tabular.Tabular` for parameters and attributes.

    Examples
    --------
    >>> X, y = [[number] for number in range(64)], [3 * number + 1 for number in range(64)]
    >>> TabularRegressor(epochs=60, learning_rate=0.01).fit(X, y).score(X, y) > 0.9
    True
    """

    def _aim(self, rows: Joined) -> Aim:
        return "numbers"

    score = Tabular.score  # and not the mixin's
    _figure = staticmethod(r2_score)

    @staticmethod
    def _objective(aim: Aim) -> tuple[Measure, dict[str, Measure]]:
        return nn.MSELoss(), {}

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train one more epoch, on these rows; the first call's decide the encoding.

        Parameters
        ----------
        X, y, sample_weight
            As `fit` takes them.
        """
        return self._learn(Given(X, y, sample_weight), going_on=self.__sklearn_is_fitted__(), epochs=1)
