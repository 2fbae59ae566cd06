"""Texts in three lines: estimators with models of `dasktrain.models`."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import ClassifierMixin
from torch import nn

from dasktrain.data.source import Schema
from dasktrain.data.text import Text
from dasktrain.data.tokenised import TextSource
from dasktrain.errors import BadInput, known_keywords
from dasktrain.estimators.base import Estimator
from dasktrain.models import Decoder, Encoder, EncoderDecoder
from dasktrain.objective import Measure, accuracy
from dasktrain.observe import Observer
from dasktrain.text import cross_entropy, token_accuracy
from dasktrain.trainer import Trainer


class TextEstimator(Estimator):
    """What the estimators of texts share; `fit` of each says what data it takes.

    Parameters
    ----------
    layers, width, heads, context, dropout
        Of the model; see :mod:`dasktrain.models`. `context` is the longest text in tokens.
    tokenizer
        As :func:`dasktrain.Text` takes it.
    learning_rate, weight_decay
        Of AdamW; the rate rises over the first `warmup` rounds.
    warmup
        Rounds.
    batch_size
        Rows of a round over all workers.
    epochs, max_rounds
        When to end; the first that is reached. Both None: 10 epochs.
    shards
        As of :meth:`dasktrain.Trainer.fit`.
    random_state
        The seed; a ``numpy.random.RandomState`` or None to draw one.
    client
        A Dask Client or a wire. None: the current client; without one, lists and pandas are trained on in this process,
        Dask collections on a LocalCluster of our own.
    observers
        Who watches.
    verbose
        Whether to show progress.
    """

    @known_keywords
    def __init__(
        self,
        layers: int = 4,
        width: int = 256,
        heads: int = 4,
        context: int = 256,
        dropout: float = 0.1,
        tokenizer: Any = "bytes",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        warmup: int = 0,
        batch_size: int = 64,
        epochs: int | None = None,
        max_rounds: int | None = None,
        shards: int | None = None,
        random_state: Any = 0,
        client: Any = None,
        observers: Sequence[Observer] | None = None,
        verbose: bool = False,
    ) -> None:
        self.layers = layers
        self.width = width
        self.heads = heads
        self.context = context
        self.dropout = dropout
        self.tokenizer = tokenizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.batch_size = batch_size
        self.epochs = epochs
        self.max_rounds = max_rounds
        self.shards = shards
        self.random_state = random_state
        self.client = client
        self.observers = observers
        self.verbose = verbose

    #: makes the module; the loss; what the history has as "accuracy"
    _module: type[nn.Module]
    _loss: Measure
    _accuracy: Measure

    def _data(self, X: Any, y: Any = None) -> TextSource:
        """Return data as `fit` takes them as a source."""
        raise NotImplementedError

    def _fit(self, X: Any, eval_set: Any) -> Self:
        size = {name: getattr(self, name) for name in ("layers", "width", "heads", "context", "dropout")}
        trainer = Trainer(
            partial(_built, self._module, size),
            self._loss,
            partial(torch.optim.AdamW, lr=self.learning_rate, weight_decay=self.weight_decay),
            {"accuracy": self._accuracy},
            self._observers(),
            scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=partial(_warmed_up, self.warmup)),
            schedule_every="round",
        )
        validation = None if eval_set is None else self._data(eval_set)
        return self._train(trainer, self._data(X), validation, isinstance(X, list | tuple | pd.DataFrame | pd.Series))

    def _mean(self, metric: Measure, *data: Any) -> float:
        """Return a metric's mean over what `_data` makes of `data`, computed where `fit` trained."""
        result = self.result_
        with self._there():
            return result.evaluate(self._data(*data), {"mean": metric})["mean"]


def _warmed_up(warmup: int, round: int) -> float:
    return min(1.0, (round + 1) / (warmup + 1))


def _built(module: Any, size: dict[str, Any], schema: Schema) -> nn.Module:
    outputs = () if module is Decoder else (schema.num_outputs,)
    built: nn.Module = module(schema.vocab_size, *outputs, **size)
    return built


class LanguageModel(TextEstimator):
    """Learns to go on with texts; a :class:`dasktrain.models.Decoder`.

    Examples
    --------
    >>> import dasktrain as dt
    >>> model = LanguageModel(layers=1, width=16, heads=2, context=8, epochs=1, client=dt.LocalWire())
    >>> model.fit(["to be or not to be", "that is the question"]).generate(["to be"], max_tokens=1)  # doctest: +SKIP
    [' ']
    """

    _module, _loss, _accuracy = Decoder, staticmethod(cross_entropy), staticmethod(token_accuracy)

    def fit(self, X: Any, y: None = None, eval_set: Any = None) -> Self:
        """Train on documents: a Bag, a column, a list, or ``dt.Text(...)``; `eval_set` is more of them.

        The history's ``accuracy`` is that of tokens; perplexity is exp(loss).
        """
        return self._fit(X, eval_set)

    def _data(self, X: Any, y: Any = None) -> TextSource:
        return X if isinstance(X, TextSource) else Text(X, tokenizer=self.tokenizer, context=self.context)

    def generate(self, X: Any, **settings: Any) -> Any:
        """Go on with each text, lazily; see :func:`dasktrain.generate.generate`."""
        return self.result_.generate(X, **settings)

    def perplexity(self, X: Any) -> float:
        """Return exp of the mean of -log p over all tokens of documents but the first."""
        return math.exp(self._mean(cross_entropy, X))


class PairedText(TextEstimator):
    """What the estimators share that learn to say something of each text."""

    #: what dt.Text calls it
    _role: str

    def fit(self, X: Any, y: Any = None, text: Any = None, eval_set: Any = None) -> Self:
        """Train on texts with what is to be said of each.

        Parameters
        ----------
        X
            DataFrame, Bag of records, list of them or Parquet URL, as :func:`dasktrain.Text` takes them; or a Text.
        y, text
            Column, key or place of what is to be said, and of the text to be read.
        eval_set
            More of the kind of X.
        """
        self._fields = {"text": text, self._role: y}
        return self._fit(X, eval_set)

    def _data(self, X: Any, y: Any = None) -> TextSource:
        if isinstance(X, TextSource):
            return X
        fields = self._fields if y is None else self._fields | {self._role: y}
        if fields[self._role] is None:
            raise BadInput("y must name the column, key or place of what is to be said of a text, however it is None")
        return Text(X, tokenizer=self.tokenizer, context=self.context, **fields)


class TextClassifier(ClassifierMixin, PairedText):  # type: ignore[misc]
    """Learns labels of texts; a :class:`dasktrain.models.Encoder`.

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted.
    """

    _role, _module, _loss, _accuracy = "label", Encoder, nn.CrossEntropyLoss(), staticmethod(accuracy)

    @property
    def classes_(self) -> Any:
        """The labels, sorted."""
        return np.asarray(self.result_.encoding.target.values)  # type: ignore[union-attr]

    def predict(self, X: Any) -> Any:
        """Return the label of each text, lazily; see :meth:`dasktrain.Result.predict`."""
        return self.result_.predict(X)

    def predict_proba(self, X: Any) -> Any:
        """Return the probability of each label for each text, lazily."""
        return self.result_.predict_proba(X)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the share of texts whose label is predicted; `y` names another column of them."""
        return self._mean(accuracy, X, y)


class Seq2Seq(PairedText):
    """Learns to turn texts into others; a :class:`dasktrain.models.EncoderDecoder`."""

    _role, _module = "into", EncoderDecoder
    _loss, _accuracy = staticmethod(cross_entropy), staticmethod(token_accuracy)

    def predict(self, X: Any, **settings: Any) -> Any:
        """Return the most probable text for each text, lazily; see :func:`dasktrain.generate.generate`."""
        return self.result_.generate(X, **settings)

    def score(self, X: Any, y: Sequence[str], metric: str = "exact") -> float:
        """Compare what is written for texts with what should be.

        Parameters
        ----------
        X
            Texts to read; see :meth:`predict`. Computed here.
        y
            What should be written for each.
        metric
            ``"exact"``: the share of texts that are written without a fault. ``"bleu"`` or ``"chrf"``: of the corpus,
            by sacrebleu (an extra), 0 to 100.
        """
        written = self.predict(X)
        written = list(written.compute() if hasattr(written, "compute") else written)
        wanted = list(y)
        if len(written) != len(wanted):
            raise BadInput(f"y must have a text for each of {len(written)}, however it has {len(wanted)}")
        if metric == "exact":
            return float((pd.Series(written) == pd.Series(wanted)).mean())
        if metric not in ("bleu", "chrf"):
            raise BadInput(f'metric must be "exact", "bleu" or "chrf", however it is {metric!r}')
        import sacrebleu  # an extra

        scorer = sacrebleu.corpus_bleu if metric == "bleu" else sacrebleu.corpus_chrf
        return float(scorer(written, [wanted]).score)
