"""Texts in three lines: parameters as scikit-learn has them, figures that can be computed by hand, text by seed."""

import math
from collections.abc import Iterator
from typing import Any

import dask
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

import dasktrain as dt
from dasktrain.errors import BadInput, UnknownKeyword
from dasktrain.estimators.text import TextEstimator
from tests.small import Watcher
from tests.test_text import END, FRAME, VERSE, bag, computed

CONTEXT = 8
TINY: dict[str, Any] = {
    "layers": 1,
    "width": 16,
    "heads": 2,
    "context": CONTEXT,
    "batch_size": 8,
    "epochs": 2,
    "shards": 2,
    "observers": [],
}
DIGITS = pd.DataFrame({"digits": [str(n) for n in range(20)], "words": ["one" if n % 2 else "two" for n in range(20)]})
ESTIMATORS = [dt.LanguageModel, dt.TextClassifier, dt.Seq2Seq]
every = pytest.mark.parametrize("kind", ESTIMATORS)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True, scope="module")
def in_this_thread() -> Iterator[None]:
    with dask.config.set(scheduler="sync"):
        yield


def made(kind: Any, **settings: Any) -> Any:
    return kind(**(TINY | {"client": dt.LocalWire()} | settings))


def fitted(kind: Any, **settings: Any) -> Any:
    """Fit an estimator on what it takes."""
    model = made(kind, **settings)
    return {
        dt.LanguageModel: lambda: model.fit(FRAME["line"]),
        dt.TextClassifier: lambda: model.fit(FRAME, "kind", text="line"),
        dt.Seq2Seq: lambda: model.fit(DIGITS, "words", text="digits"),
    }[kind]()


@pytest.fixture(scope="module")
def language_model() -> dt.LanguageModel:
    found: dt.LanguageModel = fitted(dt.LanguageModel, epochs=40, learning_rate=0.01, dropout=0.0)
    return found


@pytest.fixture(scope="module")
def seq2seq() -> dt.Seq2Seq:
    found: dt.Seq2Seq = fitted(dt.Seq2Seq, epochs=60, learning_rate=0.02, dropout=0.0)
    return found


# -- parameters -------------------------------------------------------------------------------------------------


@every
def test_parameters_are_those_it_was_made_with(kind: type[TextEstimator]) -> None:
    model = kind(**TINY)
    assert model.get_params() == kind().get_params() | TINY
    assert model.set_params(width=32, random_state=7) is model
    assert model.get_params() == kind().get_params() | TINY | {"width": 32, "random_state": 7}


@every
def test_parameter_that_is_not_there_is_refused(kind: type[TextEstimator]) -> None:
    with pytest.raises(UnknownKeyword, match="'layer' does not; did you mean 'layers'"):
        kind(layer=3)  # type: ignore[call-arg]
    model = kind()
    with pytest.raises(BadInput, match="however it is 'layer'"):
        model.set_params(layer=3)
    assert model.get_params() == kind().get_params()


@every
def test_estimator_shows_what_is_not_as_usual(kind: type[TextEstimator]) -> None:
    assert repr(kind()) == f"{kind.__name__}()"
    assert repr(kind(width=32, tokenizer="bytes", random_state=1)) == f"{kind.__name__}(random_state=1, width=32)"


@every
def test_clone_has_the_parameters_and_is_not_fitted(kind: type[TextEstimator]) -> None:
    model = fitted(kind)
    copied = clone(model.set_params(client=None))
    assert type(copied) is kind
    assert copied is not model
    assert copied.get_params() == model.get_params()
    with pytest.raises(BadInput, match=f"A {kind.__name__} must be fitted first"):
        _ = copied.result_
    assert model.result_.ended == "epochs"


USES: dict[str, tuple[Any, Any]] = {
    "result": (dt.LanguageModel, lambda model: model.result_),
    "history": (dt.TextClassifier, lambda model: model.history_),
    "generate": (dt.LanguageModel, lambda model: model.generate(["to"])),
    "perplexity": (dt.LanguageModel, lambda model: model.perplexity(VERSE)),
    "predict": (dt.TextClassifier, lambda model: model.predict(FRAME)),
    "probability": (dt.TextClassifier, lambda model: model.predict_proba(FRAME)),
    "score": (dt.TextClassifier, lambda model: model.score(FRAME)),
    "score with labels": (dt.TextClassifier, lambda model: model.score(FRAME, "kind")),
    "write": (dt.Seq2Seq, lambda model: model.predict(["1"])),
    "score of texts": (dt.Seq2Seq, lambda model: model.score(["1"], ["one"])),
}


@pytest.mark.parametrize(("kind", "use"), USES.values(), ids=USES.keys())
def test_nothing_is_said_before_fitting(kind: Any, use: Any) -> None:
    with pytest.raises(BadInput, match=f"A {kind.__name__} must be fitted first, however it is not; call fit"):
        use(kind())


# -- fitting ----------------------------------------------------------------------------------------------------


@every
def test_same_seed_is_the_same_model_on_any_number_of_workers(kind: Any) -> None:
    digests = [fitted(kind, client=dt.LocalWire(workers), warmup=2).result_.digest for workers in (1, 2)]
    assert digests[0] == digests[1] != fitted(kind, warmup=2, random_state=1).result_.digest


@every
def test_settings_are_those_of_the_run(kind: Any) -> None:
    watcher = Watcher()
    model = fitted(kind, max_rounds=3, epochs=None, random_state=4, warmup=1, learning_rate=0.5, observers=[watcher])
    assert [record["learning_rate"] for record in watcher.rounds] == [0.25, 0.5, 0.5]
    settings = model.result_.settings
    assert [settings[name] for name in ("seed", "shards", "batch_size")] == [4, 2, 8]
    assert model.result_.ended == "max_rounds"


@every
def test_epochs_are_ten_unless_said_otherwise(kind: Any) -> None:
    assert len(fitted(kind, epochs=None).history_) == 10


@every
def test_learning_is_seen_in_the_history_and_on_validation_data(kind: Any) -> None:
    frame = DIGITS if kind is dt.Seq2Seq else FRAME
    fields = {dt.LanguageModel: (), dt.TextClassifier: ("kind", "line"), dt.Seq2Seq: ("words", "digits")}[kind]
    data = frame if fields else frame["line"]
    model = made(kind, epochs=8, learning_rate=0.01).fit(data, *fields, eval_set=data)
    first, *_, last = model.history_
    assert last["loss"] < first["loss"]
    assert last["valid_loss"] < first["valid_loss"]
    assert last["valid_accuracy"] > 0.2
    if kind is dt.LanguageModel:
        assert model.perplexity(data) == pytest.approx(math.exp(last["valid_loss"]), rel=1e-5)
    if kind is dt.TextClassifier:
        assert model.score(data) == pytest.approx(last["valid_accuracy"])


def test_text_may_be_given_as_data() -> None:
    for kind, fields in (
        (dt.LanguageModel, {}),
        (dt.TextClassifier, {"label": "kind"}),
        (dt.Seq2Seq, {"into": "back"}),
    ):
        data = dt.Text(FRAME, "line", **fields, context=CONTEXT)
        given = FRAME["line"] if not fields else FRAME
        named = [*fields.values(), "line"] if fields else []
        assert made(kind).fit(data).result_.digest == made(kind).fit(given, *named).result_.digest


@pytest.mark.parametrize("kind", [dt.TextClassifier, dt.Seq2Seq])
def test_what_is_to_be_said_must_be_named(kind: Any) -> None:
    with pytest.raises(BadInput, match=r"y must name .* however it is None"):
        made(kind).fit(FRAME, text="line")


# -- language models --------------------------------------------------------------------------------------------


def test_perplexity_is_exp_of_the_mean_surprise_of_all_tokens_but_the_first(language_model: dt.LanguageModel) -> None:
    stream = [token for text in VERSE if text for token in [*text.encode(), END]]
    surprise = []
    for start in range(0, len(stream) - 1, CONTEXT):
        row = torch.tensor(stream[start : start + CONTEXT + 1])
        with torch.no_grad():
            scores = language_model.result_.model(row[None, :-1])[0].log_softmax(dim=-1)
        surprise += (-scores[torch.arange(len(row) - 1), row[1:]]).tolist()
    assert len(surprise) == len(stream) - 1
    assert language_model.perplexity(VERSE) == pytest.approx(math.exp(np.mean(surprise)), rel=1e-5)
    assert language_model.perplexity(db.from_sequence(VERSE, npartitions=3)) == pytest.approx(
        language_model.perplexity(VERSE), rel=1e-5
    )
    assert language_model.perplexity(VERSE) < 150 < language_model.perplexity(["XYZ~#"] * 9)


def test_same_texts_are_continued_in_any_collection(language_model: dt.LanguageModel) -> None:
    prompts = pd.Series(["to be", "", "to be", "x", "or not"], index=[3, 1, 4, 1, 5])
    alone = [language_model.generate([prompt], max_tokens=6)[0] for prompt in prompts]
    assert len(set(alone)) > 1
    assert alone[0] == alone[2]
    assert language_model.generate(prompts.tolist(), max_tokens=6) == alone
    assert language_model.generate(tuple(prompts), max_tokens=6) == alone
    lazy = language_model.generate(dd.from_pandas(prompts, npartitions=2, sort=False), max_tokens=6)
    assert isinstance(lazy, dd.Series)
    assert (computed(lazy).tolist(), computed(lazy).index.tolist()) == (alone, prompts.index.tolist())
    lazy = language_model.generate(bag([prompts[:2], [], prompts[2:]]), max_tokens=6)
    assert isinstance(lazy, db.Bag)
    assert computed(lazy) == alone
    assert computed(language_model.generate(prompts, max_tokens=6)).tolist() == alone


def test_written_text_is_what_the_model_says(language_model: dt.LanguageModel) -> None:
    prompt = torch.tensor([list(b"to be")])
    expected = language_model.result_.model.generate(prompt, 6, temperature=0.0, end=END)[0].tolist()
    until_end = expected[: expected.index(END)] if END in expected else expected
    (found,) = language_model.generate(["to be"], max_tokens=6)
    assert found == bytes(token for token in until_end if token < 256).decode(errors="replace")


def test_seed_decides_what_is_drawn_and_partitions_do_not_repeat_each_other(language_model: dt.LanguageModel) -> None:
    prompts = bag([["to be"], ["to be"], ["to be"]])

    def drawn(seed: int) -> Any:
        return computed(language_model.generate(prompts, max_tokens=12, temperature=2.0, seed=seed))

    assert drawn(0) == drawn(0) != drawn(1)
    assert len(set(drawn(0))) == 3
    one, same, other = (
        language_model.generate(["to be"], max_tokens=12, temperature=2.0, seed=seed) for seed in (5, 5, 6)
    )
    assert one == same != other
    greedy = language_model.generate(["to be"], max_tokens=6)
    assert language_model.generate(["to be"], max_tokens=6, temperature=2.0, top_k=1) == greedy


# -- classifiers ------------------------------------------------------------------------------------------------


def test_score_of_a_classifier_is_the_share_of_labels_it_predicts() -> None:
    model = fitted(dt.TextClassifier, epochs=20, learning_rate=0.01)
    found = computed(model.predict(FRAME))
    share = (found == FRAME["kind"]).mean()
    assert share > 0.3
    assert model.score(FRAME) == model.score(FRAME, "kind") == pytest.approx(share)
    other = FRAME.assign(other=FRAME["kind"].iloc[::-1].to_numpy())
    assert model.score(other, "other") == pytest.approx((found == other["other"]).mean())
    assert model.score(FRAME) == pytest.approx(share)  # the column that was fitted on, again
    shares = computed(model.predict_proba(FRAME))
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    assert shares.columns[shares.to_numpy().argmax(axis=1)].tolist() == found.tolist()


# -- sequence to sequence ---------------------------------------------------------------------------------------


def test_texts_are_turned_in_any_collection(seq2seq: dt.Seq2Seq) -> None:
    read, wanted = DIGITS["digits"], DIGITS["words"].tolist()
    assert seq2seq.predict(read.tolist()) == wanted
    for source in (DIGITS, read, dd.from_pandas(DIGITS, npartitions=3), bag([read[:7], read[7:]])):
        assert list(computed(seq2seq.predict(source))) == wanted
    assert seq2seq.predict(read.tolist(), max_tokens=2) == [text[:2] for text in wanted]


def test_scores_of_written_texts(seq2seq: dt.Seq2Seq) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    read, wanted = DIGITS["digits"].tolist(), DIGITS["words"].tolist()
    assert seq2seq.score(read, wanted) == 1.0
    wrong = ["one"] * 20
    assert seq2seq.score(read, wrong) == seq2seq.score(db.from_sequence(read), wrong) == 0.5
    assert seq2seq.score(read, wrong, "chrf") == pytest.approx(sacrebleu.corpus_chrf(wanted, [wrong]).score)
    assert seq2seq.score(read, wrong, "bleu") == pytest.approx(sacrebleu.corpus_bleu(wanted, [wrong]).score)
    assert seq2seq.score(read, wanted, "chrf") == pytest.approx(100.0)
    with pytest.raises(BadInput, match='metric must be "exact", "bleu" or "chrf", however it is \'rouge\''):
        seq2seq.score(read, wanted, "rouge")
    with pytest.raises(BadInput, match="y must have a text for each of 20, however it has 19"):
        seq2seq.score(read, wanted[1:])


def test_texts_are_read_from_records_as_in_training_and_from_lists() -> None:
    records = [{"line": text, "kind": kind} for text, kind in [("to be", "a"), ("or not", "b"), ("to", "a")] * 4]
    lines = [record["line"] for record in records]
    model = made(dt.TextClassifier).fit(records, y="kind", text="line")
    found = model.predict(lines)
    assert set(found) <= {"a", "b"}
    assert model.predict(records) == model.predict(db.from_sequence(records)).compute() == found
    pairs = [(line, line[::-1]) for line in lines]
    writer = made(dt.Seq2Seq).fit(pairs, y=1, text=0)
    assert writer.predict(pairs) == writer.predict(db.from_sequence(pairs)).compute() == writer.predict(lines)
