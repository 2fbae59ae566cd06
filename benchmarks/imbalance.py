"""A class that has one row in a hundred: what each of dt.balance makes of it, beside none, and beside xgboost.

All networks are one MLP that takes the same number of steps from the same seeds; xgboost has the same rows. Balanced
accuracy is of the label that is likelier, which is what balances move; PR-AUC, as average precision, of their order.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import dask.dataframe
import numpy as np
import pandas as pd
import torch
import xgboost
from sklearn.datasets import make_classification
from sklearn.metrics import average_precision_score, balanced_accuracy_score
from torch import nn

import dasktrain as dt
from benchmarks.measure import write
from dasktrain.models import MLP

ROWS, COMMON, FEATURES, PARTITIONS = 100_000, 0.99, 20, 8
SEEDS, ROUNDS, BATCH, RATE = (0, 1, 2), 2000, 512, 1e-3

#: what `fit` is given beside what makes rows up, which is trained on the same data first
STRATEGIES: dict[str, dict[str, Any]] = {
    "none": {},
    "stratified rounds": {"partition": "stratified"},
    "class weights": {"balance": dt.balance.ClassWeights()},
    "oversample": {"balance": dt.balance.Oversample()},
    "oversample to 1:5": {"balance": dt.balance.Oversample(0.2)},
    "undersample": {"balance": dt.balance.Undersample()},
    "SMOTE": {"balance": dt.balance.Smote()},
    "SMOTE to 1:5": {"balance": dt.balance.Smote(0.2)},
}
RATIOS = {"GAN": 1.0, "GAN to 1:5": 0.2}
Scored = tuple[np.ndarray, np.ndarray]  # of the rows held out: labels, and the probability of the rare class


def data(seed: int) -> tuple[Any, Any]:
    """Return training rows and those held out, of one mix."""
    X, y = make_classification(
        ROWS,
        FEATURES,
        n_informative=8,
        n_redundant=4,
        n_clusters_per_class=4,
        weights=[COMMON],
        class_sep=0.8,
        flip_y=0.002,
        random_state=seed,
    )
    frame = pd.DataFrame(X, columns=[f"x{place}" for place in range(FEATURES)]).assign(y=y)
    whole = dask.dataframe.from_pandas(frame, npartitions=PARTITIONS)
    train, held_out = dt.split(whole, (0.7, 0.3), stratify="y", seed=seed)
    return train.persist(), held_out.persist()


def network(schema: dt.Schema) -> nn.Module:
    return MLP(schema.num_features, schema.num_outputs, schema.cardinalities, widths=(64, 64))


def ours(settings: dict[str, Any], train: Any, held_out: Any, seed: int) -> Scored:
    optimizer = partial(torch.optim.AdamW, lr=RATE)
    result = dt.Trainer(network, nn.CrossEntropyLoss(), optimizer, observers=[]).fit(
        dt.Table(train, "y"),
        batch_size=BATCH,
        max_rounds=ROUNDS,
        seed=seed,
        client=dt.LocalWire(2),
        **settings,
    )
    probability = result.predict_proba(held_out).compute().to_numpy()
    return held_out["y"].compute().to_numpy(), probability[:, 1]


def generated(ratio: float, train: Any, held_out: Any, seed: int) -> Scored:
    gan = dt.balance.Gan.trained(dt.Table(train, "y"), ratio, seed=seed, client=dt.LocalWire(2), observers=[])
    return ours({"balance": gan}, train, held_out, seed)


def trees(weighted: bool, train: Any, held_out: Any, seed: int) -> Scored:
    known, unknown = train.compute(), held_out.compute()
    rare = float((known["y"] == 1).mean())
    model = xgboost.XGBClassifier(
        n_estimators=300,
        learning_rate=0.1,
        scale_pos_weight=(1 - rare) / rare if weighted else 1,
        random_state=seed,
        n_jobs=2,
    )
    model.fit(known.drop(columns="y"), known["y"])
    return unknown["y"].to_numpy(), model.predict_proba(unknown.drop(columns="y"))[:, 1]


SIDES: dict[str, Callable[..., Scored]] = {
    **{name: partial(ours, settings) for name, settings in STRATEGIES.items()},
    **{name: partial(generated, ratio) for name, ratio in RATIOS.items()},
    "xgboost": partial(trees, False),
    "xgboost, scale_pos_weight": partial(trees, True),
}


def summary(figures: list[float]) -> dict[str, Any]:
    """Return mean and spread over seeds."""
    mean, deviation = float(np.mean(figures)), float(np.std(figures, ddof=1))
    return {"mean": round(mean, 4), "standard deviation": round(deviation, 4), "seeds": figures}


def scored(side: Callable[..., Scored], sets: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Return what one side scores on each data set."""
    accuracies, precisions = [], []
    for seed, (train, held_out) in zip(SEEDS, sets, strict=True):
        labels, probability = side(train, held_out, seed)
        accuracies.append(round(float(balanced_accuracy_score(labels, probability > 0.5)), 4))
        precisions.append(round(float(average_precision_score(labels, probability)), 4))
    return {
        "balanced accuracy": summary(accuracies),
        "PR-AUC": summary(precisions),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    sets = [data(seed) for seed in SEEDS]
    found = {}
    for name, side in SIDES.items():
        found[name] = scored(side, sets)
        print(name, found[name], flush=True)
    rows = {"rows": ROWS, "held out": 0.3, "common": COMMON, "rounds": ROUNDS, "batch": BATCH, "seeds": len(SEEDS)}
    write("imbalance", {"data": rows, "strategies": found})
