"""Estimators where others expect scikit-learn's: pipelines, searches, a cluster."""

from typing import Any

import dask.dataframe as dd
import numpy as np
import optuna
import pytest
from distributed import Client
from joblib.externals.loky import get_reusable_executor
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

import dasktrain as dt
from tests.test_tabular import FEATURES, FRAME, LABEL, NUMBER, X, classifier, regressor

pytestmark = pytest.mark.usefixtures("one_thread")


def test_pipeline() -> None:
    made = ColumnTransformer([("more", PolynomialFeatures(2, include_bias=False), FEATURES)])
    model = make_pipeline(made, StandardScaler(), classifier(epochs=20)).fit(X, LABEL)
    assert model.score(X, LABEL) > 0.6
    assert model.predict_proba(X).shape == (64, 3)
    assert model[-1].n_features_in_ == 5


def test_grid_search_in_other_processes_finds_what_it_finds_here() -> None:
    grid = {"learning_rate": [1e-4, 0.1]}
    searches = [GridSearchCV(classifier(), grid, cv=2, n_jobs=jobs).fit(X, LABEL) for jobs in (1, 2)]
    get_reusable_executor().shutdown()
    here, there = (search.cv_results_["mean_test_score"] for search in searches)
    np.testing.assert_array_equal(here, there)
    assert searches[0].best_params_["learning_rate"] == 0.1
    assert searches[0].best_estimator_.result_.digest == searches[1].best_estimator_.result_.digest


def test_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("learning_rate", 1e-4, 0.2, log=True)
        return float(cross_val_score(regressor(learning_rate=rate), X, NUMBER, cv=2).mean())

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=3)
    assert len(study.trials) == 3
    assert study.best_value == max(trial.value or -np.inf for trial in study.trials)


def test_same_bits_on_a_cluster_as_here(clean: Client) -> None:
    def trained(client: Any, data: Any) -> dt.TabularClassifier:
        model = classifier(client=client, class_weight="balanced")
        return model.partial_fit(data, "label", sample_weight="weight").partial_fit(
            data, "label", sample_weight="weight"
        )

    data = FRAME.drop(columns="number")
    lazy = dd.from_pandas(data, npartitions=8, sort=False)
    here, there = trained(None, data), trained(clean, lazy)
    assert there.result_.digest == here.result_.digest
    assert len({*here.predict(X)}) > 1
    assert there.score(lazy) == here.score(data)
    with clean.as_current():
        assert there.predict(lazy).compute().tolist() == here.predict(data).tolist()
        assert classifier().fit(data, "label").result_.settings["workers"] == 2  # the current client is used
        assert (
            classifier().fit(lazy[[*FEATURES]], lazy["label"]).result_.digest
            == classifier(client=dt.LocalWire()).fit(X, LABEL).result_.digest
        )
