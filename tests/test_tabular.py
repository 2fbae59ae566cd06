"""Tables in three lines: the same bits however data are given, wherever they are trained on; scikit-learn's words."""

import pickle
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.class_weight import compute_sample_weight

import dasktrain as dt
from dasktrain.errors import BadInput, DataError, UnknownKeyword
from tests.small import Watcher, frame

TINY: dict[str, Any] = {"widths": (8,), "epochs": 2, "batch_size": 16, "shards": 2, "learning_rate": 0.05}
FEATURES = ["a", "b"]
FRAME = frame(64).assign(weight=np.linspace(0.5, 2.0, 64))
X, LABEL, NUMBER, WEIGHT = FRAME[FEATURES], FRAME["label"], FRAME["number"], FRAME["weight"]
MANY = np.stack([FRAME["a"] > 0, FRAME["b"] > 0, FRAME["a"] > FRAME["b"]], axis=1).astype(int)
NUMBERS = np.stack([FRAME["number"], 100 + 10 * FRAME["a"]], axis=1)

pytestmark = pytest.mark.usefixtures("one_thread")


def parts(data: Any) -> Any:
    """Return a collection in the partitions that pandas and NumPy are cut into."""
    if isinstance(data, np.ndarray):
        return da.from_array(data, chunks=(-(-len(data) // 8), *data.shape[1:]))
    return dd.from_pandas(data, npartitions=8, sort=False)


def classifier(**settings: Any) -> dt.TabularClassifier:
    return dt.TabularClassifier(**(TINY | settings))


def regressor(**settings: Any) -> dt.TabularRegressor:
    return dt.TabularRegressor(**(TINY | settings))


def digest(model: Any, *given: Any, **named: Any) -> str:
    found: str = model.fit(*given, **named).result_.digest
    return found


@pytest.fixture(scope="module")
def fitted() -> dt.TabularClassifier:
    return classifier(epochs=20).fit(X, LABEL)


# -- what data may be -------------------------------------------------------------------------------------------

SAME: dict[str, tuple[Any, ...]] = {
    "pandas, names": (FRAME.drop(columns="number"), "label", "weight"),
    "pandas, apart": (X, LABEL, WEIGHT),
    "NumPy": (X.to_numpy(), LABEL.to_numpy(), WEIGHT.to_numpy()),
    "lists": (X.to_numpy().tolist(), LABEL.tolist(), WEIGHT.tolist()),
    "names that are no text": (X.set_axis([0, 1], axis=1), LABEL, WEIGHT),
    "Dask, names": (parts(FRAME.drop(columns="number")), "label", "weight"),
    "Dask, apart": (parts(X), parts(LABEL), parts(WEIGHT)),
    "Dask, weight apart": (parts(FRAME[["a", "b", "label"]]), "label", parts(WEIGHT)),
}


@pytest.mark.parametrize("given", SAME.values(), ids=SAME.keys())
def test_same_rows_are_the_same_bits_however_they_are_given(given: tuple[Any, ...]) -> None:
    wanted = digest(classifier(), X, LABEL, WEIGHT)
    assert digest(classifier(client=dt.LocalWire(3)), *given) == wanted != digest(classifier(), X, LABEL)


def test_dask_arrays_are_the_same_bits_however_they_are_cut_along_columns() -> None:
    array, numbers, weights = X.to_numpy(), NUMBERS, WEIGHT.to_numpy()
    wanted = digest(regressor(), array, numbers, weights)
    model, cut = regressor(client=dt.LocalWire()), parts(array).rechunk({1: 1})
    assert digest(model, cut, parts(numbers), parts(weights)) == digest(model, cut, numbers, weights) == wanted


def test_without_a_client_data_in_memory_are_trained_on_here() -> None:
    assert classifier().fit(X, LABEL).result_.settings["run"] == "local"


def test_categories_and_missing_values_are_features() -> None:
    data = X.assign(colour=np.where(FRAME["a"] > 0, "red", "blue")).mask(FRAME["b"] > 1)
    model = classifier(epochs=20).fit(data, np.where(FRAME["a"] > 0, "yes", "no"))
    assert model.feature_names_in_.tolist() == ["a", "b", "colour"]
    assert model.score(data, np.where(FRAME["a"] > 0, "yes", "no")) > 0.8
    assert classifier(numeric=["a"], categorical=[]).fit(data, LABEL).result_.encoding.schema.num_features == 2


REFUSED: dict[str, tuple[Any, str]] = {
    "no target": (lambda: classifier().fit(X), "requires y to be passed"),
    "name of an array's column": (
        lambda: classifier().fit(X.to_numpy(), "label"),
        "y must name a column of a DataFrame",
    ),
    "no such column": (lambda: classifier().fit(FRAME, "lable"), "however 'lable' is not"),
    "no such weight": (lambda: classifier().fit(FRAME, "label", "weights"), "however 'weights' is not"),
    "values beside Dask": (lambda: classifier().fit(parts(X), LABEL.to_numpy()), "one of its columns or a Dask coll"),
    "other partitions": (lambda: classifier().fit(parts(X), dd.from_pandas(LABEL, npartitions=2)), "same partitions"),
    "other rows": (
        lambda: classifier(client=dt.LocalWire()).fit(parts(X), parts(pd.concat([LABEL, LABEL]))),
        "same rows in each partition",
    ),
    "several to evaluate": (lambda: classifier().fit(X, LABEL, eval_set=[(X, LABEL)] * 2), "give one pair"),
    "unknown class": (lambda: classifier(class_weight={"lo": 2}).fit(X, LABEL), "class_weight must be one of"),
    "weights of several": (lambda: classifier(class_weight="balanced").fit(X, MANY), "one label a row"),
    "no indicators": (lambda: classifier(client=dt.LocalWire()).fit(parts(X), parts(2 * MANY)), "must be 0 or 1"),
    "weights of nothing": (lambda: classifier().fit(X, LABEL, np.zeros(64)), "more than zero"),
    "score of nothing": (lambda: classifier().fit(X, LABEL).score(X), "requires y to be passed"),
    "unknown keyword": (lambda: classifier(width=3), "did you mean 'widths'"),
}


@pytest.mark.parametrize(("use", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_used_is_refused(use: Any, message: str) -> None:
    with pytest.raises((DataError, BadInput, UnknownKeyword), match=message):
        use()


# -- targets ----------------------------------------------------------------------------------------------------


def test_labels_come_back_as_themselves(fitted: dt.TabularClassifier) -> None:
    assert fitted.classes_.tolist() == ["high", "low", "middle"]
    found = fitted.predict(X)
    assert isinstance(found, np.ndarray)
    assert set(found) <= set(fitted.classes_)
    shares = fitted.predict_proba(X)
    assert shares.shape == (64, 3)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    assert fitted.classes_[shares.argmax(axis=1)].tolist() == found.tolist()
    assert fitted.score(X, LABEL) == accuracy_score(LABEL, found) > 0.6
    assert classifier().fit(X, MANY[:, 0].astype(bool)).predict(X).dtype == bool


@pytest.mark.parametrize("given", [MANY, pd.DataFrame(MANY, columns=["x", "y", "z"])], ids=["array", "frame"])
def test_a_row_may_have_several_labels(given: Any) -> None:
    model = classifier(epochs=60).fit(X, given, eval_set=(X, given))
    found, shares = model.predict(X), model.predict_proba(X)
    assert found.shape == shares.shape == (64, 3)
    np.testing.assert_array_equal(found, shares > 0.5)
    assert model.classes_.tolist() == [0, 1, 2]
    assert (
        model.score(X, given) == accuracy_score(MANY, found) == pytest.approx(model.history_[-1]["valid_accuracy"], 0.1)
    )
    assert model.score(X, given) > 0.7
    lazy = classifier(client=dt.LocalWire()).fit(parts(X.assign(x=MANY[:, 0], y=MANY[:, 1])), ["x", "y"])
    assert list(lazy.predict_proba(parts(X)).columns) == ["x", "y"]


def test_several_numbers_of_any_scale_are_learned_together() -> None:
    model = regressor(epochs=60).fit(X, NUMBERS)
    found = model.predict(X)
    assert found.shape == (64, 2)
    assert model.score(X, NUMBERS) == pytest.approx(r2_score(NUMBERS, found))
    assert min(r2_score(NUMBERS, found, multioutput="raw_values")) > 0.9
    assert regressor().fit(X, NUMBER).predict(X).shape == (64,)


@pytest.mark.parametrize("target", [MANY, NUMBERS, NUMBER.to_numpy(), LABEL.to_numpy()], ids=range(4))
def test_what_is_saved_predicts_the_same(target: Any, tmp_path: Any) -> None:
    kind = regressor if target.dtype == float else classifier
    model = kind().fit(X, target)
    model.result_.save(tmp_path / "model")
    saved = dt.load(tmp_path / "model", model.result_.model)
    found, wanted = saved.predict(X).compute().to_numpy(), model.predict(X)
    if kind is regressor:  # other rows beside a row may change its last bits
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_array_equal(found, wanted)


# -- prediction and score where the rows are --------------------------------------------------------------------


def test_predictions_are_lazy_for_what_is_lazy(fitted: dt.TabularClassifier) -> None:
    wanted = fitted.predict(X)
    series = fitted.predict(parts(X))
    assert isinstance(series, dd.Series)
    assert series.compute(scheduler="sync").tolist() == wanted.tolist()
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        array = fitted.predict(parts(X.to_numpy()))
    assert isinstance(array, da.Array)
    assert array.shape == (64,)
    assert array.compute(scheduler="sync").tolist() == wanted.tolist()
    shares = fitted.predict_proba(parts(X))
    assert isinstance(shares, dd.DataFrame)
    np.testing.assert_allclose(shares.compute(scheduler="sync").to_numpy(), fitted.predict_proba(X), atol=1e-6)


def test_columns_that_were_named_are_no_features_of_what_is_predicted_for() -> None:
    data = FRAME.drop(columns="number")
    model = classifier().fit(data, "label", "weight")
    assert model.n_features_in_ == 2
    np.testing.assert_array_equal(model.predict(data), model.predict(X))
    assert model.score(data) == model.score(data, "label") == model.score(X, LABEL)
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(FRAME)


@pytest.mark.parametrize("weight", [None, "weight"])
def test_scores_on_a_cluster_are_those_of_scikit_learn(weight: str | None) -> None:
    data, named = FRAME.drop(columns="number" if weight else ["number", "weight"]), {"sample_weight": weight}
    weights = None if weight is None else WEIGHT
    model = classifier(client=dt.LocalWire()).fit(parts(data), "label", **named)
    found = model.predict(X)
    assert model.score(parts(data), **named) == pytest.approx(accuracy_score(LABEL, found, sample_weight=weights))
    numbers = data.assign(label=NUMBER, other=NUMBERS[:, 1] + 1e6)
    both = regressor(client=dt.LocalWire()).fit(parts(numbers), ["label", "other"], **named)
    wanted = r2_score(numbers[["label", "other"]], both.predict(X), sample_weight=weights)
    assert both.score(parts(numbers), **named) == pytest.approx(wanted)


# -- weights ----------------------------------------------------------------------------------------------------


def test_weights_of_classes_are_weights_of_their_rows() -> None:
    factors = {"low": 2.0, "middle": 0.5}
    rows = LABEL.map(factors).fillna(1.0).to_numpy()
    assert digest(classifier(class_weight=factors), X, LABEL) == digest(classifier(), X, LABEL, rows)
    assert digest(classifier(class_weight=factors), X, LABEL, WEIGHT) == digest(classifier(), X, LABEL, rows * WEIGHT)
    balanced = compute_sample_weight("balanced", LABEL)
    assert digest(classifier(class_weight="balanced"), X, LABEL) == digest(classifier(), X, LABEL, balanced)


# -- how long, and going on -------------------------------------------------------------------------------------


def test_evaluation_set_may_be_given_in_several_ways_and_stops_the_run() -> None:
    data = FRAME[["a", "b", "label"]]
    runs = [
        classifier().fit(X, LABEL, eval_set=(X, LABEL)),
        classifier().fit(X, LABEL, eval_set=[(X, LABEL)]),
        classifier().fit(data, "label", eval_set=data),
        classifier().fit(
            FRAME.drop(columns="number"), "label", eval_set=FRAME.drop(columns="number")[["a", "b", "weight", "label"]]
        ),
    ]
    assert len({run.history_[-1]["valid_loss"] for run in runs[:3]}) == 1
    wild = classifier(learning_rate=5.0, epochs=50, patience=2).fit(X, LABEL, eval_set=(X, LABEL))
    losses = [record["valid_loss"] for record in wild.history_]
    assert wild.n_iter_ == len(losses) == int(np.argmin(losses)) + 3
    assert wild.result_.ended == "observer"


def test_a_fit_that_is_not_told_when_to_end_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dasktrain.estimators.tabular.LEAST_ROUNDS", 30)
    model = classifier(epochs=None, patience=1, learning_rate=0.0).fit(X, LABEL)
    assert model.n_iter_ == 2
    assert classifier(epochs=None, max_rounds=3).fit(X, LABEL).result_.ended == "max_rounds"
    many = classifier(epochs=None, patience=None, batch_size=32).fit(X, LABEL)
    assert many.n_iter_ == len(many.loss_curve_) == 15  # of two rounds
    few = classifier(epochs=None, patience=None, batch_size=8).fit(X, LABEL)
    assert few.n_iter_ == 10


def test_partial_fit_goes_on_where_the_last_one_ended() -> None:
    labels = ["high", "low", "middle", "never"]
    first, second = slice(0, 30), slice(30, 64)

    def trained(client: Any, again: slice = second) -> dt.TabularClassifier:
        model = classifier(client=client, dropout=0.5)
        model.partial_fit(X[first], LABEL[first], classes=labels)
        return model.partial_fit(X[again], LABEL[again])

    model = trained(None)
    assert model.classes_.tolist() == labels
    assert (model.n_iter_, len(model.loss_curve_), len(model.history_)) == (2, 2, 1)
    assert model.result_.digest == trained(dt.LocalWire(2)).result_.digest
    assert model.result_.digest != trained(None, first).result_.digest
    with pytest.raises(DataError, match="must occur in the training data"):
        model.partial_fit(X, np.array(["other"] * 64))
    numbers = regressor().partial_fit(X, NUMBER)
    before = numbers.score(X, NUMBER)
    for _ in range(20):
        numbers.partial_fit(X, NUMBER)
    assert numbers.score(X, NUMBER) > before


def test_first_rows_of_partial_fit_may_have_one_label() -> None:
    one = LABEL == "low"
    assert classifier().partial_fit(X[one], LABEL[one], classes=["low", "high"]).classes_.tolist() == ["high", "low"]


def test_warm_start_goes_on_and_otherwise_fit_begins_anew() -> None:
    again = classifier()
    assert digest(again, X, LABEL) == digest(again, X, LABEL)
    warm = classifier(warm_start=True)
    first = warm.fit(X, LABEL).result_
    second = warm.fit(X, LABEL).result_
    assert (warm.n_iter_, first.digest != second.digest) == (4, True)
    steps = {int(tensor) for name, tensor in second._tensors.items() if name.endswith("/step")}
    assert steps == {2 * len(first.history.rounds)}
    assert second.history[0]["loss"] < first.history[0]["loss"]


def test_seed_may_be_a_number_or_a_generator() -> None:
    runs = [digest(classifier(random_state=seed), X, LABEL) for seed in (1, np.int64(1), np.random.RandomState(1), 2)]
    assert runs[0] == runs[1]
    assert len(set(runs)) == 3
    assert digest(classifier(random_state=None), X, LABEL) != digest(classifier(random_state=None), X, LABEL)


def test_a_model_of_ones_own() -> None:
    model = classifier(
        model=lambda schema: dt.models.ResNetMLP(schema.num_features, schema.num_outputs, width=4, blocks=1)
    )
    assert isinstance(model.fit(X, LABEL).result_.model, dt.models.ResNetMLP)


# -- manners ----------------------------------------------------------------------------------------------------


def test_nothing_is_shown_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = Watcher()
    classifier(observers=[watcher]).fit(X, LABEL)
    assert capsys.readouterr() == ("", "")
    assert len(watcher.epochs) == 2
    classifier(verbose=True).fit(X, LABEL)
    assert "epoch" in "".join(capsys.readouterr())


def test_pickled_estimator_predicts_the_same_bits_and_has_no_client() -> None:
    wire = dt.LocalWire()
    model = classifier(client=wire, observers=[dt.EarlyStopping("loss")]).fit(X, LABEL)
    copied = pickle.loads(pickle.dumps(model))
    assert (model.client, copied.client) == (wire, None)
    np.testing.assert_array_equal(copied.predict_proba(X), model.predict_proba(X))
    assert copied.result_.digest == model.result_.digest
    assert copied.partial_fit(X, LABEL).result_.digest == model.partial_fit(X, LABEL).result_.digest


def test_clone_trains_in_the_same_place_and_is_not_fitted(fitted: dt.TabularClassifier) -> None:
    wire = dt.LocalWire()
    copied = clone(clone(fitted).set_params(client=wire))
    assert copied.get_params() == fitted.get_params() | {"client": wire}
    with pytest.raises(BadInput, match="must be fitted first"):
        copied.predict(X)
