"""What scikit-learn's estimators refuse, refused in its words."""

from typing import Any

import dask.array as da
import numpy as np
from sklearn.base import is_classifier
from sklearn.utils import check_array, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from dasktrain.errors import DataError
from dasktrain.estimators.frames import is_dask, is_frame


def features(estimator: Any, X: Any, reset: bool) -> Any:
    """Return features, if they are of the kind that `fit` saw; `reset` takes note of it.

    What is in memory and no frame becomes an array (rows, features) of numbers, NaN where they are missing.
    """
    if is_dask(X):
        seen = np.empty((0, *X.shape[1:])) if isinstance(X, da.Array) else X._meta
        validate_data(estimator, seen, reset=reset, skip_check_array=True)
        return X
    if is_frame(X):
        return validate_data(estimator, X, reset=reset, skip_check_array=True)
    return validate_data(estimator, X, reset=reset, ensure_all_finite="allow-nan")


def targets(estimator: Any, X: Any, y: Any) -> Any:
    """Return targets in memory as an array, (rows,) or (rows, targets)."""
    y = check_array(y, ensure_2d=False, dtype=None, input_name="y")
    check_consistent_length(X, y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = column_or_1d(y, warn=True)
    if is_classifier(estimator):
        check_classification_targets(y)
    elif y.dtype.kind in "OUS":
        y = y.astype(np.float64)
    return y


def weights(X: Any, weight: Any) -> Any:
    """Return weights in memory, (rows,) float64."""
    weight = column_or_1d(weight, dtype=np.float64)
    check_consistent_length(X, weight)
    if not weight.any():
        raise DataError("Sample weights must add up to more than zero, however all are zero; leave such rows out")
    return weight


def require_target(estimator: Any, y: Any) -> None:
    """Raise DataError if there is nothing to predict."""
    if y is None:
        raise DataError(
            f"{type(estimator).__name__} requires y to be passed, but the target y is None; name a column or "
            "give values"
        )
