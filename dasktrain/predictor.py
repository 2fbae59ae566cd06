"""A trained module on rows that are here; Dask is not needed for it."""

from typing import Any, Literal

import torch
from torch import nn

from dasktrain.data.block import batches, call, scores, unlabelled
from dasktrain.data.source import Encoding
from dasktrain.data.target import Indicators, Labels, Target
from dasktrain.errors import BadInput

Kind = Literal["prediction", "probability"]
#: rows per forward pass, of a table and of texts
ROWS, TEXTS = 8192, 64


def predict_at_once(module: nn.Module, encoding: Encoding, partition: Any, kind: Kind) -> Any:
    """Return labels, numbers or probabilities for the rows of one partition, computed here."""
    check_kind(encoding, kind)
    return Predictor(module, encoding, kind)(partition)


def check_kind(encoding: Encoding, kind: Kind) -> None:
    """Raise BadInput if what is predicted is not of a kind."""
    if encoding.target is None:
        raise BadInput("Predictions must be of labels or numbers, however this model's are neither; use generate")
    if kind == "probability" and not isinstance(encoding.target, Labels | Indicators):
        raise BadInput("Probabilities must be of class labels, however the target is numeric; use predict")


class Predictor:
    """Module and encoding on a worker."""

    def __init__(self, module: nn.Module, encoding: Encoding, kind: Kind) -> None:
        self._module, self.encoding, self._kind = module.eval(), encoding, kind
        self._rows = TEXTS if encoding.collate.by_length else ROWS

    def __call__(self, partition: Any) -> Any:
        """Return labels, numbers or probabilities for a partition's rows."""
        target = self.encoding.target
        assert target is not None
        at_once = batches(unlabelled(self.encoding.inputs(partition)), self.encoding.collate, self._rows)
        with torch.no_grad():
            pieces = [scores(call(self._module, batch.inputs)) for batch in at_once]
            output = torch.cat(pieces) if pieces else torch.empty(0, target.num_outputs)
            return (
                _probabilities(target, output) if self._kind == "probability" else target.decode(output.float().numpy())
            )


def _probabilities(target: Target, output: torch.Tensor) -> Any:
    if isinstance(target, Indicators):
        return output.float().sigmoid().numpy()
    if output.ndim > 1 and output.shape[1] > 1:
        return output.float().softmax(dim=1).numpy()
    positive = output.float().reshape(len(output)).sigmoid()
    return torch.stack([1 - positive, positive], dim=1).numpy()
