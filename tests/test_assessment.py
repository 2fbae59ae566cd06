"""What is counted where rows lie is what scikit-learn finds with all of them at hand."""

from functools import cache, partial
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics
from torch import nn

import dasktrain as dt
from dasktrain.assessment import BINS, REACH, Assessment, Binned
from dasktrain.errors import BadInput

ROWS = 3000
rng = np.random.default_rng(0)
X = rng.normal(size=(ROWS, 5)).astype(np.float32)
#: rare, and not easy
Y = (X[:, 0] + X[:, 1] * X[:, 2] + rng.normal(size=ROWS) > 2.2).astype(np.int64)
KINDS = np.array(["ash", "elm", "fir"])[np.digitize(X[:, 0] + rng.normal(size=ROWS), [-1.0, 1.0])]


@cache
def trained(what: str) -> tuple[dt.Result, Any]:
    """Train a classifier of one kind; return it and its target."""
    outputs = {"two": 2, "logit": 1, "three": 3, "several": 2}[what]
    loss = nn.BCEWithLogitsLoss() if what in ("logit", "several") else nn.CrossEntropyLoss()
    target = {"two": Y, "logit": Y, "three": KINDS, "several": np.stack([Y, KINDS == "fir"], axis=1).astype(np.float32)}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, outputs))
    if what == "several":
        frame = pd.DataFrame(X, columns=list("abcde")).assign(y0=target[what][:, 0], y1=target[what][:, 1])
        classifier = dt.TabularClassifier(epochs=3, client=dt.LocalWire()).fit(frame, y=["y0", "y1"])
        return classifier.result_, frame
    trainer = dt.Trainer(model, loss, partial(torch.optim.AdamW, lr=0.01), observers=[])
    return trainer.fit(dt.Arrays(X, target[what]), epochs=3, batch_size=256, client=dt.LocalWire()), target[what]


def assessed(what: str, chunks: int = ROWS) -> Assessment:
    result, target = trained(what)
    return result.assess(dt.Arrays(da.from_array(X, chunks=(chunks, 5)), da.from_array(target, chunks=chunks)))


def probabilities(what: str) -> np.ndarray:
    found: np.ndarray = trained(what)[0].predict_proba(X).compute()
    return found


@pytest.mark.parametrize("what", ["two", "logit", "three"])
def test_counts_of_predictions_are_scikit_learns(what: str) -> None:
    result, target = trained(what)
    found, predicted = assessed(what), result.predict(X).compute()
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(target, predicted))
    assert found.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(target, predicted))
    wanted = metrics.classification_report(target, predicted, output_dict=True, zero_division=0)
    report = found.report()
    for name in [*found.labels, "macro avg", "weighted avg"]:
        row = {key.replace("f1-score", "f1"): value for key, value in wanted[str(name)].items()}
        assert dict(report.loc[name]) == pytest.approx(row)
    assert report.loc["accuracy", "precision"] == pytest.approx(wanted["accuracy"])


@pytest.mark.parametrize("what", ["two", "logit", "three"])
def test_losses_are_scikit_learns(what: str) -> None:
    found, target, chances = assessed(what), trained(what)[1], probabilities(what).astype(np.float64)
    chances /= chances.sum(axis=1, keepdims=True)  # float32 sums to nearly 1
    assert found.log_loss == pytest.approx(metrics.log_loss(target, chances), rel=1e-5)
    hits = np.array(found.labels)[None, :] == target[:, None]
    assert found.brier == pytest.approx(((chances - hits) ** 2).sum(axis=1).mean(), rel=1e-5)


@pytest.mark.parametrize("what", ["two", "logit", "three"])
def test_areas_are_scikit_learns_to_within_the_stated_error(what: str) -> None:
    found, target, chances = assessed(what), trained(what)[1], probabilities(what)
    for place, label in enumerate(found.labels):
        hits, score = target == label, chances[:, place]
        for figure, wanted in (
            (found.roc_auc(label), metrics.roc_auc_score(hits, score)),
            (found.average_precision(label), metrics.average_precision_score(hits, score)),
        ):
            assert abs(figure.value - wanted) <= figure.error + 1e-12
            assert figure.error < 0.01


def test_counts_do_not_depend_on_partitions() -> None:
    one, many = assessed("three"), assessed("three", 77)
    np.testing.assert_array_equal(one.counted, many.counted)
    np.testing.assert_array_equal(one.confusion, many.confusion)
    assert one.log_loss == pytest.approx(many.log_loss)


def test_labels_of_which_a_row_may_have_several_are_assessed_each() -> None:
    result, frame = trained("several")
    found = result.assess(dt.Table(dt.data.table.from_pandas(frame), target=["y0", "y1"]))
    predicted = result.predict(frame).compute()
    wanted = metrics.classification_report(frame[["y0", "y1"]], predicted, output_dict=True, zero_division=0)
    report = found.report()
    for place, name in enumerate(found.labels):
        assert report.loc[name, "f1"] == pytest.approx(wanted[str(place)]["f1-score"])
        area = metrics.roc_auc_score(frame[name], result.predict_proba(frame).compute().iloc[:, place])
        figure = found.roc_auc(name)
        assert abs(figure.value - area) <= figure.error + 1e-12
    with pytest.raises(BadInput, match="must be of classes"):
        _ = found.confusion


def made_up(odds: np.ndarray, hits: np.ndarray, bins: int = BINS) -> Assessment:
    """Return what two classes' scores are counted as."""
    place = np.clip((odds + REACH) / (2 * REACH) * bins, 0, bins - 1).astype(int)
    counted = np.zeros((2, 2, bins), dtype=np.int64)
    np.add.at(counted[1], (hits.astype(int), place), 1)
    return Assessment((False, True), counted, None, 0.0, 0.0)


@given(
    hnp.arrays(np.float64, st.integers(2, 60), elements=st.floats(-25, 25)),
    st.integers(0, 2**32),
    st.sampled_from([2, 10, BINS]),
)
def test_errors_are_bounds_for_any_scores_and_any_bins(odds: np.ndarray, seed: int, bins: int) -> None:
    hits = np.random.default_rng(seed).random(len(odds)) < 0.3
    hits[:2] = True, False
    found = made_up(odds, hits, bins)
    # in bins' order first: beyond the reach of bins scores are ties, in them any order is within the bounds
    for figure, wanted in (
        (found.roc_auc(True), metrics.roc_auc_score(hits, odds)),
        (found.average_precision(True), metrics.average_precision_score(hits, odds)),
    ):
        assert isinstance(figure, Binned)
        assert abs(figure.value - wanted) <= figure.error + 1e-9
        assert 0 <= figure.value <= 1


def test_curves_are_scikit_learns_where_bins_part_all_scores() -> None:
    odds, hits = np.array([-3.0, -1.0, -0.5, 0.2, 1.0, 2.0]), np.array([0, 1, 0, 0, 1, 1], dtype=bool)
    found = made_up(odds, hits)
    rates = found.roc().drop_duplicates(["false_positive_rate", "true_positive_rate"])
    false, true, _ = metrics.roc_curve(hits, odds, drop_intermediate=False)
    np.testing.assert_allclose(rates[["false_positive_rate", "true_positive_rate"]], np.stack([false, true], axis=1))
    precision, recall, _ = metrics.precision_recall_curve(hits, odds)
    curve = found.precision_recall().drop_duplicates(["precision", "recall"])
    np.testing.assert_allclose(curve[["precision", "recall"]], np.stack([precision, recall], axis=1)[::-1])
    assert found.roc_auc() == pytest.approx(Binned(metrics.roc_auc_score(hits, odds), 0.0))
    assert found.average_precision() == pytest.approx(Binned(metrics.average_precision_score(hits, odds), 0.0))


def test_probabilities_of_a_calibrated_model_are_frequencies() -> None:
    odds = np.random.default_rng(1).normal(size=100_000) * 2
    chances = 1 / (1 + np.exp(-odds))
    hits = np.random.default_rng(2).random(len(odds)) < chances
    frame = made_up(odds, hits).calibration()
    assert frame["rows"].sum() == len(odds)
    np.testing.assert_allclose(frame["probability"], frame["frequency"], atol=0.02)
    np.testing.assert_allclose(frame["from"], np.arange(10) / 10, atol=0.005)
    np.testing.assert_allclose(frame["to"], np.arange(1, 11) / 10, atol=0.005)


def test_bad_input_is_refused() -> None:
    result, target = trained("three")
    data = dt.Arrays(X, target)
    with pytest.raises(BadInput, match="even number"):
        result.assess(data, bins=3)
    with pytest.raises(BadInput, match="label must be one of"):
        result.assess(data).roc_auc()  # of three labels none is the one
    with pytest.raises(BadInput, match="label must be one of"):
        result.assess(data).roc("oak")
    with pytest.raises(BadInput, match="bins must be at least 1"):
        result.assess(data).calibration("elm", bins=0)
    numbers = dt.Arrays(X, X[:, 0].copy())
    regression = dt.Trainer(nn.Linear(5, 1), nn.MSELoss(), partial(torch.optim.SGD, lr=0.1), observers=[])
    with pytest.raises(BadInput, match="must predict labels"):
        regression.fit(numbers, epochs=1, client=dt.LocalWire()).assess(numbers)
