"""A trained model by itself: what feeds it comes along, and neither a cluster nor Dask is needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dasktrain.data.encodings import ArrayEncoding, LabelledEncoding, TableEncoding
from dasktrain.data.saved import with_function
from dasktrain.data.source import Encoding
from dasktrain.errors import BadInput
from dasktrain.predictor import predict_at_once
from dasktrain.stored import Stored


@dataclass(frozen=True)
class LocalModel:
    """A module with its encoders and labels; :meth:`dasktrain.Result.to_local` makes one.

    It can be pickled, and needs no more than torch, pandas and dasktrain's own files where it is used.

    Attributes
    ----------
    model : nn.Module
        On the CPU, in evaluation mode.
    encoding : Encoding
        How rows become its inputs, and its outputs labels.

    Raises
    ------
    BadInput
        The model was not trained to predict labels or numbers of a table, an array or texts.
    """

    model: nn.Module
    encoding: Encoding

    def __post_init__(self) -> None:
        if not isinstance(self.encoding, TableEncoding | ArrayEncoding | LabelledEncoding):
            raise BadInput(
                "A local model must predict labels or numbers of tables, arrays or texts, however this one was trained "
                f"on {type(self.encoding).__name__}; use its .model"
            )

    def predict(self, rows: Any) -> Any:
        """Return labels or numbers, (rows,) or (rows, targets).

        Parameters
        ----------
        rows
            pandas DataFrame of a Table's columns, NumPy array of Arrays' rows, or texts.
        """
        return predict_at_once(self.model, self.encoding, rows, "prediction")

    def predict_proba(self, rows: Any) -> Any:
        """Return the probability of each class, (rows, classes) float32, in sorted order."""
        return predict_at_once(self.model, self.encoding, rows, "probability")


def load_local(url: str, model: Any, tokenizer: Callable[[str], Sequence[int]] | None = None) -> LocalModel:
    """Read what :meth:`dasktrain.Result.save` wrote, to predict where Dask is not installed.

    Parameters
    ----------
    url, model, tokenizer
        As :func:`dasktrain.load` takes them.

    Raises
    ------
    BadInput
        There is nothing complete there.
    ModelError
        The module has other parameters than the saved one.
    """
    stored = Stored.read(url)
    encoding = stored.encoding if tokenizer is None else with_function(stored.encoding, tokenizer)
    return LocalModel(stored.filled(model, encoding.schema), encoding)
