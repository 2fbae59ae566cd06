"""scikit-learn's conventions over the Trainer: fit, predict, score; in pipelines and searches; on a cluster or here."""

from dasktrain.estimators.base import Estimator, NotFitted
from dasktrain.estimators.classifier import TabularClassifier
from dasktrain.estimators.regressor import TabularRegressor
from dasktrain.estimators.text import LanguageModel, Seq2Seq, TextClassifier

__all__ = [
    "Estimator",
    "LanguageModel",
    "NotFitted",
    "Seq2Seq",
    "TabularClassifier",
    "TabularRegressor",
    "TextClassifier",
]
