"""What estimators of tables share: from whatever `fit` is given to a trainer and its data, and back."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import dask.dataframe as dd
import numpy as np
import torch
from torch import nn

from dasktrain.data.aimed import Aim, Aimed
from dasktrain.data.source import Schema
from dasktrain.errors import DataError, known_keywords
from dasktrain.estimators.base import Estimator
from dasktrain.estimators.checks import features, require_target, targets, weights
from dasktrain.estimators.ending import AtLeast
from dasktrain.estimators.frames import (
    Given,
    Joined,
    as_frame,
    column_names,
    is_dask,
    is_frame,
    joined,
    named,
    names_columns,
    without,
)
from dasktrain.estimators.scores import score
from dasktrain.models import MLP
from dasktrain.objective import Measure
from dasktrain.observe import Observer
from dasktrain.observers.early_stopping import EarlyStopping
from dasktrain.predictor import Kind, predict_at_once
from dasktrain.result import Result
from dasktrain.trainer import Trainer

#: epochs at most, at least, and rounds at least, of a fit that is not told when to end
MOST_EPOCHS, LEAST_EPOCHS, LEAST_ROUNDS = 200, 10, 2000
#: least change of a loss that counts as an improvement
MIN_DELTA = 1e-4


class Tabular(Estimator):
    """What the estimators of tables share.

    Numbers are standardised, categories embedded; :mod:`dasktrain.data.encoders` lists what becomes of each dtype.

    Parameters
    ----------
    widths, dropout
        Of the hidden layers of a :class:`dasktrain.models.MLP`.
    model
        ``model(schema)`` makes another module, with ``schema.num_outputs`` outputs a row; None: the MLP.
    numeric, categorical
        Columns to use as each; None: by their dtypes. See :class:`dasktrain.Table`.
    learning_rate, weight_decay
        Of AdamW.
    batch_size
        Rows of a round over all workers.
    epochs, max_rounds
        When to end; the first that is reached. Both None: after 10 epochs and 2,000 rounds, or 200 epochs.
    patience
        Epochs without improvement after which to end: of `eval_set`'s loss, whose best epoch is then kept, or
        of the training loss. None: never.
    shards
        As of :meth:`dasktrain.Trainer.fit`.
    random_state
        The seed; a ``numpy.random.RandomState`` or None to draw one.
    client
        A Dask Client or a wire. None: the current client; without one, pandas and NumPy are trained on in this
        process, Dask collections on a LocalCluster of our own. The bits are the same.
    observers
        Who else watches.
    verbose
        Whether to show progress.
    warm_start
        Whether `fit` goes on from the latest fit: parameters, optimizer, encoding and labels.

    Attributes
    ----------
    n_features_in_ : int
        Columns that are features.
    feature_names_in_ : ndarray of str
        Their names, if all are text.
    """

    @known_keywords
    def __init__(
        self,
        widths: Sequence[int] = (128, 128),
        dropout: float = 0.0,
        model: Callable[[Schema], nn.Module] | None = None,
        numeric: Sequence[str] | None = None,
        categorical: Sequence[str] | None = None,
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
    ) -> None:
        self.widths = widths
        self.dropout = dropout
        self.model = model
        self.numeric = numeric
        self.categorical = categorical
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.max_rounds = max_rounds
        self.patience = patience
        self.shards = shards
        self.random_state = random_state
        self.client = client
        self.observers = observers
        self.verbose = verbose
        self.warm_start = warm_start

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.target_tags.required = tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, eval_set: Any = None) -> Self:
        """Train.

        Parameters
        ----------
        X
            Dask or pandas DataFrame, Dask or NumPy array (rows, features). NaN means missing.
        y
            Column of X to predict, or a list of columns; or (rows,) or (rows, targets) in any of these kinds.
        sample_weight
            Column of X, or (rows,).
        eval_set
            ``(X, y)`` to evaluate after every epoch, or ``[(X, y)]``; just more of X if `y` names columns of it.

        Raises
        ------
        DataError
            Something cannot be used; the message names it.
        """
        untold = self.epochs is None and self.max_rounds is None
        return self._learn(
            Given(X, y, sample_weight),
            eval_set,
            [*self._stopping(eval_set is not None), *([AtLeast(LEAST_EPOCHS, LEAST_ROUNDS)] if untold else [])],
            going_on=self.warm_start and self.__sklearn_is_fitted__(),
            epochs=MOST_EPOCHS if untold else None,
        )

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the share of rows all of whose labels are predicted; of a regressor, R², the mean over targets.

        Parameters
        ----------
        X, y, sample_weight
            As `fit` takes them. `y` None: the columns that `fit` was told. Of Dask collections only sums come here.
        """
        result = self.result_
        given = Given(X, self._named_y if y is None else y, sample_weight)
        require_target(self, given.y)
        if is_dask(X):
            rows = self._joined(given)
            predicted = result.predict(rows.frame)
            with self._there():
                return score(rows.frame, predicted, rows.targets, rows.weight, self._aim(rows) != "numbers")
        X, y, sample_weight = self._checked(given)
        return float(self._figure(y, self.predict(X), sample_weight=sample_weight))

    def predict(self, X: Any) -> Any:
        """Return labels or numbers for every row.

        Parameters
        ----------
        X
            As `fit` takes it; columns that were its target or weight are ignored.

        Returns
        -------
        ndarray, or dask.dataframe.Series, dask.dataframe.DataFrame or dask.array.Array
            (rows,) or (rows, targets). For Dask collections lazily, with their index and partitions.
        """
        return self._predicted(X, "prediction")

    # -- inside ---------------------------------------------------------------------------------------------------

    #: scikit-learn's default score
    _figure: Callable[..., float]

    def _aim(self, rows: Joined) -> Aim:
        """Return what the target is."""
        raise NotImplementedError

    @staticmethod
    def _objective(aim: Aim) -> tuple[Measure, dict[str, Measure]]:
        """Return loss and metrics."""
        raise NotImplementedError

    def _learn(
        self,
        given: Given,
        eval_set: Any = None,
        observers: Sequence[Observer] = (),
        going_on: bool = False,
        labels: Sequence[Any] | None = None,
        epochs: int | None = None,
    ) -> Self:
        """Train, from the latest fit's end if it goes on from it."""
        require_target(self, given.y)
        self._named_y = given.y if names_columns(given.X, given.y) else None
        self._ignored = named(given)
        rows = self._joined(given, reset=not going_on)
        aim = self._aim(rows)
        latest = self.result_ if going_on else None
        data = self._aimed(rows, aim, labels=labels, encoding=latest and latest.encoding)
        validation = None if eval_set is None else self._aimed(self._joined(self._more(eval_set)), aim)
        trainer = self._trainer(aim, latest, observers)
        return self._train(trainer, data, validation, not is_dask(given.X), going_on, epochs)

    def _aimed(self, rows: Joined, aim: Aim, **settings: Any) -> Aimed:
        return Aimed(rows.frame, rows.target, aim, self.numeric, self.categorical, rows.weight, **settings)

    def _trainer(self, aim: Aim, latest: Result | None, observers: Sequence[Observer]) -> Trainer:
        loss, metrics = self._objective(aim)
        model = self.model or partial(_mlp, tuple(self.widths), self.dropout)
        optimizer = partial(torch.optim.AdamW, lr=self.learning_rate, weight_decay=self.weight_decay)
        return Trainer(
            latest.model if latest else model,
            loss,
            latest.continued(optimizer) if latest else optimizer,
            metrics,
            [*self._observers(), *observers],
        )

    def _stopping(self, validated: bool) -> list[Observer]:
        """Return who ends a fit that no longer improves."""
        if self.patience is None:
            return []
        return [EarlyStopping("valid_loss" if validated else "loss", self.patience, MIN_DELTA, restore_best=validated)]

    def _more(self, eval_set: Any) -> Given:
        """Return what `fit` is given to evaluate."""
        if isinstance(eval_set, list) and len(eval_set) == 1:
            (eval_set,) = eval_set
        if isinstance(eval_set, tuple) and len(eval_set) == 2:
            return Given(*eval_set)
        if self._named_y is None or not is_frame(eval_set):
            raise DataError(
                "eval_set must be (X, y), or a DataFrame if y names columns, however it is "
                f"{type(eval_set)}; give one pair"
            )
        names = [self._named_y] if isinstance(self._named_y, str) else self._named_y
        return Given(without(eval_set, set(self._ignored) - set(names)), self._named_y)

    def _checked(self, given: Given, reset: bool = False) -> Given:
        """Return what is in memory apart, checked."""
        X, y, weight = given
        if names_columns(X, y):
            y = X[y].to_numpy()
        if isinstance(weight, str):
            weight = given.X[weight]
        X = self._seen(given, reset)
        return Given(X, targets(self, X, y), None if weight is None else weights(X, weight))

    def _seen(self, given: Given, reset: bool) -> Any:
        """Return features, checked: columns that have or had another role are none."""
        return features(self, without(given.X, {*named(given), *self._ignored}), reset)

    def _joined(self, given: Given, reset: bool = False) -> Joined:
        """Return everything as one frame, checked."""
        if is_dask(given.X):
            seen = self._seen(given, reset)
        else:
            given = self._checked(given, reset)
            seen = given.X
        if reset:
            self._columns = column_names(seen)
        return joined(given, self._columns)

    def _predicted(self, X: Any, kind: Kind) -> Any:
        result = self.result_
        X = features(self, without(X, self._ignored), reset=False)
        frame = as_frame(X, self._columns)
        if not is_dask(X):
            return np.asarray(predict_at_once(result.model, result.encoding, frame, kind))
        found = result.predict(frame) if kind == "prediction" else result.predict_proba(frame)
        if is_frame(X):
            return found
        if isinstance(found, dd.Series) and not isinstance(found.dtype, np.dtype):
            found = found.astype(object)  # pandas' text is none of NumPy's dtypes
        sizes = X.chunks[0]
        return found.to_dask_array(lengths=None if any(map(math.isnan, sizes)) else sizes)


def _mlp(widths: tuple[int, ...], dropout: float, schema: Schema) -> nn.Module:
    return MLP(schema.num_features, schema.num_outputs, schema.cardinalities, widths, dropout)
