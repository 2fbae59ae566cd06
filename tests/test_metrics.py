"""Metrics of others are summed exactly: what they say of all rows does not depend on how these are cut."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
import torch
import torchmetrics
from distributed import Client
from torch import Tensor, nn
from torchmetrics.classification import BinaryAccuracy, MulticlassAUROC, MulticlassF1Score

import dasktrain as dt
from dasktrain.errors import ModelError
from tests.small import LABELS, SGD, fit, frame, table

OF_LABELS: dict[str, Any] = {
    "accuracy": sklearn.metrics.accuracy_score,
    "balanced": sklearn.metrics.balanced_accuracy_score,
    "f1": partial(sklearn.metrics.f1_score, average="macro"),
    "kappa": sklearn.metrics.cohen_kappa_score,
    "phi": sklearn.metrics.matthews_corrcoef,
    "recall": partial(sklearn.metrics.recall_score, average=None, labels=LABELS),
}
OF_STATES: dict[str, Any] = {
    "f1": MulticlassF1Score(3, average="macro"),
    "each": MulticlassF1Score(3, average=None),
    "auroc": MulticlassAUROC(3, thresholds=50),
    "confusion": torchmetrics.ConfusionMatrix(task="multiclass", num_classes=3),
}


def trained(metrics: dict[str, Any], workers: int = 2, shards: int = 4, **settings: Any) -> dt.Result:
    return fit(table(), dt.LocalWire(workers), metrics=metrics, validation=table(45), shards=shards, **settings)


def truth(result: dt.Result, rows: int = 45) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and predicted labels of the validation data."""
    frame_ = frame(rows)
    return frame_["label"].to_numpy(), np.asarray(result.predict(frame_))


def flat(name: str, value: Any) -> dict[str, float]:
    if np.ndim(value) == 0:
        return {name: float(value)}
    return {key: v for place, each in enumerate(value) for key, v in flat(f"{name}_{place}", each).items()}


@pytest.mark.parametrize("name", OF_LABELS)
def test_figures_of_scikit_learn_are_those_of_all_rows(name: str) -> None:
    result = trained({name: OF_LABELS[name]})
    wanted = flat(f"valid_{name}", OF_LABELS[name](*truth(result)))
    assert {key: result.history[-1][key] for key in wanted} == pytest.approx(wanted)


@pytest.mark.parametrize("name", OF_STATES)
def test_figures_of_torchmetrics_are_those_of_all_rows(name: str) -> None:
    result = trained({name: OF_STATES[name]})
    rows = frame(45)
    batch = torch.tensor(np.asarray(result.predict_proba(rows)), dtype=torch.float32).log()
    codes = torch.tensor([LABELS.index(label) for label in rows["label"]])
    wanted = flat(f"valid_{name}", OF_STATES[name](batch, codes).numpy())
    assert {key: result.history[-1][key] for key in wanted} == pytest.approx(wanted, abs=0.02)


def test_sums_are_the_same_on_any_number_of_workers(clean: Client) -> None:
    metrics = {f"sk_{name}": each for name, each in OF_LABELS.items()} | OF_STATES
    histories = []
    for client in (dt.LocalWire(), dt.LocalWire(3), clean):
        result = fit(table(), metrics=metrics, validation=table(45), wire=client, shards=4)
        histories.append({name: value for name, value in result.history[-1].items() if "second" not in name})
    assert histories[0] == histories[1] == histories[2]


def test_counts_are_of_every_row_once() -> None:
    result = trained({"confusion": OF_STATES["confusion"]}, compute=dt.Compute(microbatch=3))
    counts = [value for name, value in result.history[-1].items() if name.startswith("confusion_")]
    assert len(counts) == 9
    assert sum(counts) == 60


def test_a_report_has_a_figure_for_every_entry() -> None:
    result = trained({"report": sklearn.metrics.classification_report})
    label, predicted = truth(result)
    wanted = sklearn.metrics.classification_report(label, predicted, output_dict=True, zero_division=0)
    assert result.history[-1]["valid_report_macro avg_f1-score"] == pytest.approx(wanted["macro avg"]["f1-score"])
    assert result.history[-1]["valid_report_high_recall"] == pytest.approx(wanted["high"]["recall"])


def test_a_collection_of_torchmetrics_is_a_mapping_of_metrics() -> None:
    collection = torchmetrics.MetricCollection([MulticlassF1Score(3), MulticlassAUROC(3, thresholds=20)])
    epoch = trained(collection).history[-1]
    assert {"MulticlassF1Score", "MulticlassAUROC", "valid_MulticlassAUROC"} <= epoch.keys()


def test_such_metrics_are_figures_of_epochs_and_can_stop_a_run() -> None:
    stop = dt.EarlyStopping(monitor="valid_f1", mode="max", patience=1)
    result = trained({"f1": OF_LABELS["f1"], "plain": dt.accuracy}, epochs=6, observers=[stop])
    assert "plain" in result.history.rounds[0]
    assert "f1" not in result.history.rounds[0]
    assert stop.best == max(epoch["valid_f1"] for epoch in result.history)


def test_a_search_is_ranked_by_them() -> None:
    def make(lr: float) -> dt.Trainer:
        metrics = {"f1": OF_LABELS["f1"]}
        model = nn.Linear(2, 3)
        return dt.Trainer(model, nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=lr), metrics=metrics, observers=[])

    torch.manual_seed(0)
    grid = {"lr": [1e-4, 0.3]}
    found = dt.search(
        make, grid, table(), table(45), monitor="valid_f1", epochs=2, batch_size=20, client=dt.LocalWire()
    )
    assert found.frame["valid_f1"].is_monotonic_decreasing


def test_a_result_is_evaluated_by_them() -> None:
    result = fit(table())
    label, predicted = truth(result)
    figures = result.evaluate(table(45), {"f1": OF_LABELS["f1"], "auroc": OF_STATES["auroc"], "plain": dt.accuracy})
    assert figures["f1"] == pytest.approx(OF_LABELS["f1"](label, predicted))
    assert figures["plain"] == pytest.approx((label == predicted).mean())
    assert 0 <= figures["auroc"] <= 1


def test_one_logit_is_a_label_as_well() -> None:
    rows = pd.DataFrame({"a": np.linspace(-1, 1, 40), "y": np.arange(40) % 3 == 0})
    metrics = {"f1": sklearn.metrics.f1_score, "accuracy": torchmetrics.Accuracy(task="binary")}
    data = dt.Table(rows, target="y", categorical=[])
    result = fit(data, model=nn.Linear(1, 1), loss=nn.BCEWithLogitsLoss(), metrics=metrics, optimizer=SGD)
    assert {"f1", "accuracy"} <= result.history[-1].keys()


class Listed(torchmetrics.Metric):
    """Keeps the largest error, which is no sum."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("largest", torch.tensor(0.0), dist_reduce_fx="max")

    def update(self, output: Tensor, target: Tensor) -> None:
        self.largest = torch.maximum(self.largest, output.max())

    def compute(self) -> Tensor:
        return self.largest


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (MulticlassAUROC(3), "A metric's states must be sums, however 'preds' of MulticlassAUROC is not"),
        (Listed(), "A metric's states must be sums, however 'largest' of Listed is not"),
        (sklearn.metrics.roc_auc_score, "must follow from predicted labels, however roc_auc_score does not"),
        (sklearn.metrics.r2_score, "however r2_score does not"),
        (MulticlassF1Score(2), "Metric 'given' must accept"),
    ],
)
def test_a_metric_that_is_no_sum_is_refused(metric: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        trained({"given": metric})


def test_labels_are_needed_for_figures_of_labels() -> None:
    data = table(target="number")
    with pytest.raises(ModelError, match="f1_score must be of class labels"):
        fit(data, loss=nn.MSELoss(), metrics={"f1": sklearn.metrics.f1_score})
    figures = fit(data, loss=nn.MSELoss(), metrics={"r2": torchmetrics.R2Score()}).history[-1]
    assert figures["r2"] < 1


@pytest.mark.parametrize("shards", [1, 8, 32])
def test_scores_between_0_and_1_are_no_probabilities_whatever_the_cut(shards: int) -> None:
    """Some shards have such scores alone, which torchmetrics by itself would take for probabilities."""
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(64, 1)).astype(np.float32), rng.integers(0, 2, 64)
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(0.4)
        model.bias.fill_(0.3)
    result = dt.Trainer(
        model,
        lambda output, target: nn.functional.binary_cross_entropy_with_logits(output[:, 0], target.float()),
        partial(torch.optim.SGD, lr=0.0),
        metrics={"accuracy": BinaryAccuracy()},
        observers=[],
    ).fit(dt.Arrays(rows, labels), epochs=1, batch_size=64, shards=shards, client=dt.LocalWire(2))
    wanted = ((rows[:, 0] * 0.4 + 0.3 > 0) == labels).mean()
    assert result.history[-1]["accuracy"] == pytest.approx(wanted)


def test_a_figure_that_does_not_take_so_many_labels_is_refused_before_the_first_round() -> None:
    rounds: list[dict[str, Any]] = []

    class Seen(dt.Observer):
        def round(self, record: dict[str, Any]) -> None:
            rounds.append(record)

    with pytest.raises(ModelError, match="'f1' must accept"):
        trained({"f1": sklearn.metrics.f1_score}, observers=[Seen()])
    assert rounds == []
