"""scikit-learn's own checks of what calls itself an estimator."""

from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

import dasktrain as dt

QUICK: dict[str, Any] = {"widths": (16,), "epochs": 20, "learning_rate": 0.1, "shards": 1, "patience": None}
#: what is expected to fail, and why
FAILING = {
    "check_sample_weight_equivalence_on_dense_data": (
        "a round has so many rows, whatever they weigh: its gradient is exact, but a row of weight 2 is one of its "
        "rows, and two equal rows may be in two rounds, as with any minibatches"
    )
}

pytestmark = pytest.mark.usefixtures("one_thread")


@parametrize_with_checks(
    [dt.TabularClassifier(**QUICK), dt.TabularRegressor(**QUICK)], expected_failed_checks=lambda estimator: FAILING
)
def test_scikit_learn_finds_nothing_amiss(estimator: Any, check: Any) -> None:
    check(estimator)
