"""How good the estimators are on scikit-learn's bundled tables: 5 folds, three times, beside its own MLP and skorch.

All three have one architecture, learning rate, batch size and number of epochs at most, and see standardised columns.
Ours standardises by itself, and is otherwise as it comes. Classifiers by accuracy, regressors by R².
"""

import warnings
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.base import BaseEstimator
from sklearn.compose import TransformedTargetRegressor
from sklearn.model_selection import RepeatedKFold, RepeatedStratifiedKFold, cross_val_score
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from skorch import NeuralNetClassifier, NeuralNetRegressor
from torch import nn

import dasktrain as dt
from benchmarks.measure import write
from dasktrain.models import MLP

FOLDS, REPEATS, WIDTHS, BATCH, EPOCHS, RATE = 5, 3, (100,), 200, 200, 1e-3
TABLES: dict[str, Callable[..., Any]] = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "breast_cancer": datasets.load_breast_cancer,
    "digits": datasets.load_digits,
    "diabetes": datasets.load_diabetes,
}


def as_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return what torch computes with."""
    return values.astype(np.float32)


def scaled(model: Any, regression: bool) -> BaseEstimator:
    """Standardise a peer's columns, and its target if that is a number."""
    model = make_pipeline(StandardScaler(), FunctionTransformer(as_float32), model)
    return TransformedTargetRegressor(model, transformer=StandardScaler()) if regression else model


def ours(regression: bool, features: int, outputs: int) -> BaseEstimator:
    """Return our estimator."""
    kind = dt.TabularRegressor if regression else dt.TabularClassifier
    return kind(widths=WIDTHS, batch_size=BATCH, learning_rate=RATE)


def scikit_learn(regression: bool, features: int, outputs: int) -> BaseEstimator:
    """Return scikit-learn's."""
    kind = MLPRegressor if regression else MLPClassifier
    settings = {"batch_size": BATCH, "max_iter": EPOCHS, "learning_rate_init": RATE, "random_state": 0}
    return scaled(kind(hidden_layer_sizes=WIDTHS, **settings), regression)


class _Column(MLP):
    """Of (rows, 1) targets, as scikit-learn gives them to skorch without their second axis."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(*inputs).squeeze(1)


def skorch(regression: bool, features: int, outputs: int) -> BaseEstimator:
    """Return skorch's."""
    torch.manual_seed(0)
    kind = NeuralNetRegressor if regression else NeuralNetClassifier
    net = kind(
        _Column if regression else MLP,
        criterion=nn.MSELoss if regression else nn.CrossEntropyLoss,
        module__num_features=features,
        module__num_outputs=outputs,
        module__widths=WIDTHS,
        optimizer=torch.optim.AdamW,
        lr=RATE,
        batch_size=BATCH,
        max_epochs=EPOCHS,
        train_split=None,
        iterator_train__shuffle=True,
        verbose=0,
    )
    return scaled(net, regression)


SIDES = {"dasktrain": ours, "scikit-learn": scikit_learn, "skorch": skorch}


def scored(load: Callable[..., Any]) -> dict[str, Any]:
    """Return what each side scores in each fold of a table."""
    X, y = load(return_X_y=True)
    regression = y.dtype.kind == "f"
    y = as_float32(y) if regression else y
    repeated = RepeatedKFold if regression else RepeatedStratifiedKFold
    folds = repeated(n_splits=FOLDS, n_repeats=REPEATS, random_state=0)
    outputs = 1 if regression else len(np.unique(y))
    found: dict[str, Any] = {}
    for side, made in SIDES.items():
        started = perf_counter()
        scores = cross_val_score(made(regression, X.shape[1], outputs), X, y, cv=folds)
        found[side] = {
            "mean": round(float(scores.mean()), 4),
            "standard deviation": round(float(scores.std(ddof=1)), 4),
            "folds": [round(float(score), 4) for score in scores],
            "seconds": round(perf_counter() - started, 1),
        }
    for peer in ("scikit-learn", "skorch"):
        found[f"no worse than {peer}, within its spread"] = bool(
            found["dasktrain"]["mean"] >= found[peer]["mean"] - found[peer]["standard deviation"]
        )
    print(load.__name__, found, flush=True)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of peers that did not converge
    goal = "no worse than scikit-learn's MLP and skorch, within the spread over folds"
    write("folds", {"tables": {name: scored(load) for name, load in TABLES.items()}, "goal": goal})
