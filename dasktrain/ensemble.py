"""Several trained models that predict together."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dasktrain.assessment import BINS, Assessment, assess
from dasktrain.data.block import call, scores
from dasktrain.data.source import Source
from dasktrain.data.target import Indicators, Labels
from dasktrain.errors import BadInput
from dasktrain.evaluate import evaluate
from dasktrain.predict import predict
from dasktrain.result import Result
from dasktrain.shipping import shipped


class Ensemble:
    """The mean of several results' probabilities, or of their numbers.

    Parameters
    ----------
    results
        Trained on the same data, so that their encodings are the same: of a :func:`dasktrain.search`, for example.

    Attributes
    ----------
    model : nn.Module
        Returns scores as each of the models does: the logarithm, or logit, of the mean probability.

    Raises
    ------
    BadInput
        There is none, they have other encodings than each other, or they predict neither labels nor numbers.
    """

    def __init__(self, results: Sequence[Result]) -> None:
        if not results:
            raise BadInput("An ensemble must have results, however there is none")
        self.encoding = results[0].encoding
        plain = self.encoding.to_json()
        if any(result.encoding.to_json() != plain for result in results):
            raise BadInput("An ensemble must be of one encoding, however these differ; train them on the same data")
        if self.encoding.target is None:
            raise BadInput("An ensemble must predict labels or numbers, however these results predict neither")
        self._ship = tuple(sorted({package for result in results for package in result.ship}))
        kind = self.encoding.target
        how = "labels" if isinstance(kind, Labels) else "indicators" if isinstance(kind, Indicators) else "numbers"
        self.model = _Mean([result.model for result in results], how).eval()

    def predict(self, data: Any) -> Any:
        """Return labels or numbers for every row, lazily; see :meth:`dasktrain.Result.predict`."""
        with shipped(self._ship):
            return predict(self.model, self.encoding, data, "prediction")

    def predict_proba(self, data: Any) -> Any:
        """Return the mean probability of each class for every row, lazily."""
        with shipped(self._ship):
            return predict(self.model, self.encoding, data, "probability")

    def evaluate(self, data: Source, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Return each metric over a data set; see :func:`dasktrain.evaluate.evaluate`."""
        with shipped(self._ship):
            return evaluate(self.model, self.encoding, data, metrics)

    def assess(self, data: Source, bins: int = BINS) -> Assessment:
        """Count on the cluster how a classifier does: confusion, ROC, precision and recall, calibration.

        See :func:`dasktrain.assessment.assess`.
        """
        with shipped(self._ship):
            return assess(self.model, self.encoding, data, bins)


class _Mean(nn.Module):
    """Calls every model with the same inputs."""

    def __init__(self, models: Sequence[nn.Module], how: str) -> None:
        super().__init__()
        self.models, self.how = nn.ModuleList(models), how

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Return the scores of the mean."""
        found = torch.stack([scores(call(model, named or inputs)).float() for model in self.models])
        if self.how == "numbers":
            return found.mean(dim=0)
        if self.how == "labels" and found.ndim > 2 and found.shape[-1] > 1:  # (models, rows, classes)
            return found.log_softmax(dim=-1).logsumexp(dim=0) - torch.tensor(float(len(found))).log()
        return found.sigmoid().mean(dim=0).logit()
