"""Records of any kind, and a function that makes a batch of some of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dask.bag as db
import torch
from dask.delayed import Delayed
from torch import Tensor

from dasktrain.data.block import Batch, Block, Column, Gathered, as_block
from dasktrain.data.ragged import Ragged
from dasktrain.data.source import Encoding, Persist, Schema, Survey
from dasktrain.data.target import TargetSurvey
from dasktrain.data.tokenised import run_each
from dasktrain.errors import BadInput, DataError, known_keywords
from dasktrain.shipping import record_from_bytes, record_to_bytes

#: records of a made-up batch, at most
SAMPLE_RECORDS = 8


@dataclass(frozen=True)
class ByFunction:
    """Makes a batch of pickled records with the user's function."""

    function: Callable[[list[Any]], Any]

    by_length = False

    def __call__(self, rows: Gathered) -> Batch:
        """Unpickle records and collate them."""
        (pickled,) = rows.columns
        return self.batch([record_from_bytes(pickled.row(number).tobytes()) for number in range(rows.count)])

    def batch(self, records: list[Any]) -> Batch:
        """Call the user's function, and see that it returned what it must."""
        returned = self.function(records)
        if not isinstance(returned, tuple) or len(returned) not in (2, 3):
            raise DataError(
                "collate(records) must return (inputs, target) or (inputs, target, weight), however it returned "
                f"{type(returned).__name__}{f' of {len(returned)}' if isinstance(returned, tuple) else ''}"
            )
        inputs, target, *weights = returned
        if isinstance(inputs, Tensor):
            inputs = (inputs,)
        if not isinstance(inputs, tuple | dict):
            raise DataError(
                "collate(records) must return inputs that are a tensor, a tuple of arguments or a dict of named ones, "
                f"however they are {type(inputs).__name__}"
            )
        weight = torch.as_tensor(weights[0], dtype=torch.float64) if weights else None
        if weight is not None and weight.shape != (len(records),):
            raise DataError(
                f"collate(records) must return a weight a record, however for {len(records)} they are of shape "
                f"{tuple(weight.shape)}"
            )
        return Batch(inputs, target, weight, len(records))


@dataclass(frozen=True)
class NotSaved:
    """Stands for the collate function of a saved model."""

    name: str

    def __call__(self, records: list[Any]) -> Any:
        """Raise BadInput."""
        raise BadInput(
            f"A collate function must be at hand, however that of a saved model, {self.name!r}, is not; call the model "
            "with batches of your own"
        )


@dataclass(frozen=True)
class RecordsEncoding:
    """How records become ``model(*inputs)`` or ``model(**inputs)``."""

    collate: ByFunction

    target = None

    @property
    def schema(self) -> Schema:
        """Nothing is known of what a model must fit."""
        return Schema((), 0)

    def inputs(self, partition: Any) -> tuple[Column, ...]:
        """Pickle one partition's records."""
        return (pickled(list(partition)),)

    def to_json(self) -> dict[str, Any]:
        """Return the name of the collate function: functions are not saved."""
        function = self.collate.function
        name = function.name if isinstance(function, NotSaved) else getattr(function, "__name__", "collate")
        return {"source": "records", "collate": name}


class Records:
    """Records of any kind, dicts or tuples or images, in a Dask Bag or in delayed lists.

    Parameters
    ----------
    source
        Dask Bag, a sequence of Delayed whose results are iterables of records, or a list of records. A record must
        pickle, and to the same bytes whenever it is computed: sets do not. Records are kept as pickles.
    collate
        ``collate(records)`` makes a batch of a list of records, and returns

        - ``inputs``: a tensor, a tuple of arguments or a dict of named ones for the model;
        - ``target``: what the loss is given beside the model's output;
        - optionally ``weight``: a (records,) tensor of sample weights.

        It runs on the workers, and once beforehand with real records. It must not be random: a shard that is asked for
        again must be the same again. Draw in the module, which is seeded for each shard of each round.

    Notes
    -----
    The plan counts records, and a loss that returns a mean is taken as one over records. The model must be a module,
    or be made without a look at the schema, which is empty.

    Examples
    --------
    >>> records = Records([{"x": 1.0, "y": 2.0}] * 4, lambda some: (torch.tensor([r["x"] for r in some]), None))
    >>> records
    Records(4 partitions)
    """

    @known_keywords
    def __init__(self, source: Any, collate: Callable[[list[Any]], Any]) -> None:
        if isinstance(source, list) and not any(isinstance(part, Delayed) for part in source):
            source = db.from_sequence(source, npartitions=min(8, max(1, len(source))))
        partitions = list(source.to_delayed()) if isinstance(source, db.Bag) else source
        if not isinstance(partitions, Sequence) or not all(isinstance(part, Delayed) for part in partitions):
            raise DataError(f"Records must come as a Dask Bag, delayed lists or a list, however they are {source!r}")
        if not callable(collate):
            raise DataError(f"collate must be a function of a list of records, however it is {type(collate)}")
        self.collate = ByFunction(collate)
        self.partitions = list(partitions)

    def __repr__(self) -> str:
        return f"Records({len(self.partitions)} partitions)"

    def staged(self, persist: Persist) -> "Records":
        """Return these records: what is read twice is the user's own."""
        return self

    def survey(self) -> list[Delayed]:
        """Return one task per partition whose result is its Survey."""
        return run_each(_survey, (), self.partitions)

    def fit(self, surveys: Sequence[Survey]) -> RecordsEncoding:
        """Return the encoding; nothing is fitted."""
        return RecordsEncoding(self.collate)

    def sample(self, encoding: Encoding, surveys: Sequence[Survey], rows: int) -> Batch:
        """Collate the first records there are."""
        if not isinstance(encoding, RecordsEncoding):
            raise DataError("The validation data must be of the training data's kind, however they are Records")
        first = next((survey.columns["first"] for survey in surveys if survey.rows), None)
        if first is None:
            raise DataError("The validation data must have rows, however there are no Records")
        try:
            return encoding.collate.batch([record_from_bytes(first)] * min(rows, SAMPLE_RECORDS))
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"collate(records) must accept records like the first, however {type(error).__name__}: {error}"
            ) from error

    def convert(self, encoding: Encoding, surveys: Sequence[Survey], by_class: bool) -> list[Delayed]:
        """Return one task per partition whose result is its Block."""
        return run_each(_block, (), self.partitions)


def pickled(records: Sequence[Any]) -> Ragged:
    """Return each record's pickle."""
    return Ragged.of_bytes([record_to_bytes(record) for record in records])


def _block(partition: Any) -> Block:
    return as_block((pickled(list(partition)),))


def _survey(partition: Any) -> Survey:
    records = list(partition)
    first = record_to_bytes(records[0]) if records else None
    return Survey(len(records), TargetSurvey(None, 0), columns={"first": first})
