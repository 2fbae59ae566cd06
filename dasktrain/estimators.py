"""Texts in three lines: estimators over the Trainer, with models of `dasktrain.models`."""

import inspect
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import pandas as pd
import torch
from torch import nn

from dasktrain.data.source import Schema, Source
from dasktrain.data.text import Text
from dasktrain.data.tokenised import TextSource
from dasktrain.errors import BadInput, known_keywords
from dasktrain.models import Decoder, Encoder, EncoderDecoder
from dasktrain.objective import Measure, accuracy
from dasktrain.observe import History, Observer
from dasktrain.result import Result
from dasktrain.text import cross_entropy, token_accuracy
from dasktrain.trainer import Trainer

E = TypeVar("E", bound="TextEstimator")


class TextEstimator:
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
    shards, seed, client, observers
        As of :meth:`dasktrain.Trainer.fit` and :class:`dasktrain.Trainer`.

    Attributes
    ----------
    result_ : Result
        Of the latest `fit`.
    history_ : History
        Of the latest `fit`.
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
        seed: int = 0,
        client: Any = None,
        observers: Sequence[Observer] | None = None,
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
        self.seed = seed
        self.client = client
        self.observers = observers

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments it was made with."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self: E, **params: Any) -> E:
        """Change arguments."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise BadInput(f"A parameter must be one of {sorted(known)}, however it is {name!r}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = {name: each.default for name, each in inspect.signature(type(self)).parameters.items()}
        changed = (
            f"{name}={reprlib.repr(value)}" for name, value in self.get_params().items() if value != defaults[name]
        )
        return f"{type(self).__name__}({', '.join(changed)})"

    #: what a subclass makes of data as its `fit` takes them
    _data: Callable[..., TextSource]

    @property
    def result_(self) -> Result:
        """What the latest `fit` left."""
        if not hasattr(self, "_result"):
            raise BadInput(f"A {type(self).__name__} must be fitted first, however it is not; call fit")
        return self._result

    @property
    def history_(self) -> History:
        """One dict an epoch."""
        return self.result_.history

    def _fit(
        self: E,
        data: Source,
        validation: Source | None,
        model: Callable[[Schema], nn.Module],
        loss: Measure,
        metrics: Mapping[str, Measure],
    ) -> E:
        trainer = Trainer(
            model,
            loss,
            partial(torch.optim.AdamW, lr=self.learning_rate, weight_decay=self.weight_decay),
            metrics,
            self.observers,
            scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=partial(_warmed_up, self.warmup)),
            schedule_every="round",
        )
        self._result = trainer.fit(
            data,
            validation,
            epochs=self.epochs,
            max_rounds=self.max_rounds,
            batch_size=self.batch_size,
            shards=self.shards,
            seed=self.seed,
            client=self.client,
        )
        return self

    def _mean(self, metric: Measure, *data: Any) -> float:
        """Return a metric's mean over what `_data` makes of `data`, computed where `fit` trained if on a cluster."""
        result, as_current = self.result_, getattr(self.client, "as_current", nullcontext)
        with as_current():
            return result.evaluate(self._data(*data), {"mean": metric})["mean"]

    def _size(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("layers", "width", "heads", "context", "dropout")}


def _warmed_up(warmup: int, round: int) -> float:
    return min(1.0, (round + 1) / (warmup + 1))


class LanguageModel(TextEstimator):
    """Learns to go on with texts; a :class:`dasktrain.models.Decoder`.

    Examples
    --------
    >>> import dasktrain as dt
    >>> model = LanguageModel(layers=1, width=16, heads=2, context=8, epochs=1, client=dt.LocalWire(), observers=[])
    >>> model.fit(["to be or not to be", "that is the question"]).generate(["to be"], max_tokens=1)  # doctest: +SKIP
    [' ']
    """

    def fit(self, X: Any, y: None = None, validation: Any = None) -> "LanguageModel":
        """Train on documents: a Bag, a column, a list, or ``dt.Text(...)``.

        The history's ``accuracy`` is that of tokens; perplexity is exp(loss).
        """
        return self._fit(
            self._data(X),
            None if validation is None else self._data(validation),
            partial(_decoder, self._size()),
            cross_entropy,
            {"accuracy": token_accuracy},
        )

    def _data(self, X: Any) -> TextSource:
        return X if isinstance(X, TextSource) else Text(X, tokenizer=self.tokenizer, context=self.context)

    def generate(self, X: Any, **settings: Any) -> Any:
        """Go on with each text, lazily; see :func:`dasktrain.generate.generate`."""
        return self.result_.generate(X, **settings)

    def perplexity(self, X: Any) -> float:
        """Return exp of the mean of -log p over all tokens of documents but the first."""
        return math.exp(self._mean(cross_entropy, X))


class TextClassifier(TextEstimator):
    """Learns labels of texts; a :class:`dasktrain.models.Encoder`."""

    def fit(self, X: Any, y: Any = None, text: Any = None, validation: Any = None) -> "TextClassifier":
        """Train on labelled texts.

        Parameters
        ----------
        X
            DataFrame, Bag of records, list of them or Parquet URL, as :func:`dasktrain.Text` takes them; or a Text.
        y, text
            Column, key or place of the label and of the text.
        validation
            More of the kind of X.
        """
        self._fields = {"text": text, "label": y}
        return self._fit(
            self._data(X),
            None if validation is None else self._data(validation),
            partial(_encoder, self._size()),
            nn.CrossEntropyLoss(),
            {"accuracy": accuracy},
        )

    def _data(self, X: Any, y: Any = None) -> TextSource:
        if isinstance(X, TextSource):
            return X
        fields = self._fields if y is None else self._fields | {"label": y}
        if fields["label"] is None:
            raise BadInput("y must name the label's column, key or place, however it is None")
        return Text(X, tokenizer=self.tokenizer, context=self.context, **fields)

    def predict(self, X: Any) -> Any:
        """Return the label of each text, lazily; see :meth:`dasktrain.Result.predict`."""
        return self.result_.predict(X)

    def predict_proba(self, X: Any) -> Any:
        """Return the probability of each label for each text, lazily."""
        return self.result_.predict_proba(X)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the share of texts whose label is predicted."""
        return self._mean(accuracy, X, y)


class Seq2Seq(TextEstimator):
    """Learns to turn texts into others; a :class:`dasktrain.models.EncoderDecoder`."""

    def fit(self, X: Any, y: Any = None, text: Any = None, validation: Any = None) -> "Seq2Seq":
        """Train on pairs of texts.

        Parameters
        ----------
        X
            DataFrame, Bag of records, list of them or Parquet URL, as :func:`dasktrain.Text` takes them; or a Text.
        y, text
            Column, key or place of the text to be written and of the text to be read.
        validation
            More of the kind of X.
        """
        self._fields = {"text": text, "into": y}
        return self._fit(
            self._data(X),
            None if validation is None else self._data(validation),
            partial(_encoder_decoder, self._size()),
            cross_entropy,
            {"accuracy": token_accuracy},
        )

    def _data(self, X: Any) -> TextSource:
        if isinstance(X, TextSource):
            return X
        if self._fields["into"] is None:
            raise BadInput("y must name the column, key or place of what is to be written, however it is None")
        return Text(X, tokenizer=self.tokenizer, context=self.context, **self._fields)

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


def _decoder(size: dict[str, Any], schema: Schema) -> nn.Module:
    return Decoder(schema.vocab_size, **size)


def _encoder(size: dict[str, Any], schema: Schema) -> nn.Module:
    return Encoder(schema.vocab_size, schema.num_outputs, **size)


def _encoder_decoder(size: dict[str, Any], schema: Schema) -> nn.Module:
    return EncoderDecoder(schema.vocab_size, schema.num_outputs, **size)
