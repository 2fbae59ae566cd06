"""Records of any kind: the bits of a plain loop, whatever form batches have, and the same bytes for equal records."""

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import dask
import dask.bag as db
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.data.records import RecordsEncoding
from dasktrain.errors import BadInput, DataError, ModelError, UnknownKeyword
from dasktrain.plan import Plan, rows_only
from dasktrain.shipping import record_from_bytes, record_to_bytes
from tests import small
from tests.reference import trained_digest
from tests.test_bad_input import refused

COUNTS, SHARDS, BATCH = (13, 0, 7, 1, 9), 4, 8
few = settings(max_examples=50, deadline=None)


def records() -> list[dict[str, Any]]:
    rng = np.random.default_rng(2)
    return [
        {"left": rng.normal(size=3).tolist(), "right": rng.normal(size=2), "kind": n % 3, "weight": n % 4 / 2}
        for n in range(sum(COUNTS))
    ]


def partitions(values: Sequence[Any] | None = None) -> list[Any]:
    cuts = np.cumsum([0, *COUNTS]).tolist()
    values = records() if values is None else values
    return [dask.delayed(list)(values[start:stop]) for start, stop in pairwise(cuts)]


class Two(nn.Module):
    """Reads two vectors; which is which matters."""

    def __init__(self) -> None:
        super().__init__()
        self.of_left, self.of_right, self.drop = nn.Linear(3, 3), nn.Linear(2, 3), nn.Dropout(0.3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        out: Tensor = self.of_left(self.drop(left)) + self.of_right(right)
        return out


def parts(some: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
    left, right = torch.tensor([each["left"] for each in some]), np.stack([each["right"] for each in some])
    return left, torch.from_numpy(right).float(), torch.tensor([each["kind"] for each in some])


def by_name(some: list[Any]) -> Any:
    left, right, kind = parts(some)
    return {"right": right, "left": left}, kind


def by_place(some: list[Any]) -> Any:
    left, right, kind = parts(some)
    return (left, right), kind


def alone(some: list[Any]) -> Any:
    left, right, kind = parts(some)
    return torch.cat([left, right], dim=1), kind


def weighted(some: list[Any]) -> Any:
    return *by_place(some), [each["weight"] for each in some]


class One(nn.Module):
    """Reads both vectors as one."""

    def __init__(self) -> None:
        super().__init__()
        self.two = Two()

    def forward(self, both: Tensor) -> Tensor:
        out: Tensor = self.two(both[:, :3], both[:, 3:])
        return out


def fit(collate: Callable[[list[Any]], Any], wire: dt.LocalWire | None = None, **other: Any) -> dt.Result:
    torch.manual_seed(0)
    given = {"model": Two(), "batch_size": BATCH, "shards": SHARDS, "epochs": 2}
    return small.fit(dt.Records(partitions(), collate), wire, **(given | other))


def expected(loss_of: Callable[[nn.Module, list[Any]], tuple[Tensor, float]]) -> str:
    """Return the digest of a plain loop."""
    everything, threads, state = records(), torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)

    def build() -> nn.Module:
        torch.manual_seed(0)
        return Two()

    def loss(model: nn.Module, rows: np.ndarray) -> tuple[Tensor, float]:
        return loss_of(model, [everything[row] for row in rows])

    found = trained_digest(Plan(rows_only(COUNTS), SHARDS, BATCH), build, small.SGD, 2, loss)
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    return found


def cross_entropy(model: nn.Module, some: list[Any]) -> tuple[Tensor, float]:
    left, right, kind = parts(some)
    return F.cross_entropy(model(left, right), kind, reduction="none").sum(), len(some)


def weighted_cross_entropy(model: nn.Module, some: list[Any]) -> tuple[Tensor, float]:
    left, right, kind = parts(some)
    weight = torch.tensor([each["weight"] for each in some])
    return (F.cross_entropy(model(left, right), kind, reduction="none") * weight).sum(), float(weight.sum())


# -- batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("collate", [by_name, by_place])
def test_records_have_the_bits_of_a_plain_loop(collate: Callable[[list[Any]], Any], workers: int) -> None:
    result = fit(collate, dt.LocalWire(workers))
    assert result.digest == expected(cross_entropy)
    assert [record["rows"] for record in result.history] == [sum(COUNTS)] * 2


def test_inputs_may_be_one_tensor() -> None:
    torch.manual_seed(0)
    result, two = fit(alone, model=One()), fit(by_place)
    for name, parameter in two.model.named_parameters():
        assert torch.equal(parameter, result.model.get_parameter(f"two.{name}"))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_weighted_records_have_the_bits_of_a_plain_loop(workers: int) -> None:
    assert fit(weighted, dt.LocalWire(workers)).digest == expected(weighted_cross_entropy)


def test_named_inputs_are_passed_in_their_order_to_a_module_that_does_not_name_them() -> None:
    def named(some: list[Any]) -> Any:
        left, right, kind = parts(some)
        return {"first": left, "second": right}, kind

    assert fit(named).digest == fit(by_place).digest


def test_loss_that_is_a_mean_is_one_over_records() -> None:
    def mean(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)

    still = {"optimizer": partial(torch.optim.SGD, lr=0.0), "epochs": 1}
    torch.manual_seed(0)
    model = Two().eval()
    with torch.no_grad():
        whole = mean(model(*parts(records())[:2]), parts(records())[2])
    result = fit(by_place, loss=mean, model=model, validation=dt.Records(partitions(), by_place), **still)
    assert result.history[0]["valid_loss"] == pytest.approx(float(whole), rel=1e-6)


@pytest.mark.parametrize("form", ["Bag", "list", "delayed"])
def test_records_come_in_any_form(form: str) -> None:
    values = records()[:16]
    source: Any = {
        "Bag": lambda: db.from_sequence(values, npartitions=8),
        "list": lambda: values,
        "delayed": lambda: [dask.delayed(iter)(values[start : start + 2]) for start in range(0, 16, 2)],
    }[form]()
    torch.manual_seed(0)
    found = small.fit(dt.Records(source, by_name), model=Two(), batch_size=BATCH)
    torch.manual_seed(0)
    assert found.digest == small.fit(dt.Records(values, by_name), model=Two(), batch_size=BATCH).digest


def test_result_evaluates_records_and_says_that_it_does_not_predict() -> None:
    result = fit(by_name)
    left, right, kind = parts(records())
    with torch.no_grad():
        share = (result.model(left, right).argmax(dim=1) == kind).double().mean()
    with dask.config.set(scheduler="sync"):
        found = result.evaluate(dt.Records(partitions(), by_name), {"accuracy": dt.accuracy})
    assert found["accuracy"] == pytest.approx(float(share))
    with pytest.raises(BadInput, match="neither"):
        result.predict(db.from_sequence(records()))


def test_saved_model_lacks_its_collate_function(tmp_path: Path) -> None:
    fit(by_name).save(str(tmp_path))
    back = dt.load(str(tmp_path), Two())
    assert isinstance(back.encoding, RecordsEncoding)
    assert back.encoding.to_json() == {"source": "records", "collate": "by_name"}
    with pytest.raises(BadInput, match="that of a saved model, 'by_name', is not"):
        back.encoding.collate.batch(records())


# -- pickles ----------------------------------------------------------------------------------------------------

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
values = st.recursive(
    leaves, lambda more: st.lists(more) | st.tuples(more, more) | st.dictionaries(st.text(), more), max_leaves=8
)


class Pair(NamedTuple):
    one: Any
    other: Any


@dataclass
class Point:
    x: Any


def others(value: Any) -> list[Any]:
    """Return equal values made of other objects, or of one object more often."""
    again = pickle.loads(pickle.dumps(value))
    return [again, copy.deepcopy(value), pickle.loads(pickle.dumps([value, value]))[1]]


@few
@given(values)
def test_equal_records_are_the_same_bytes_whatever_objects_they_are_made_of(value: Any) -> None:
    written = record_to_bytes([value, value])
    for other in others(value):
        assert record_to_bytes([value, other]) == record_to_bytes([other, value]) == written
    assert repr(record_from_bytes(written)) == repr([value, value])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0), (2, 3)])
def test_tensors_are_the_same_bytes_and_no_more_than_they_need(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(6, dtype=torch.float32)[: int(np.prod(shape))].reshape(shape).to(dtype)
    written = record_to_bytes({"x": tensor})
    of_many = tensor.expand(1000, *shape).contiguous()
    for other in (tensor.clone(), of_many[3], torch.stack([tensor, tensor], dim=-1)[..., 1]):
        assert record_to_bytes({"x": other}) == written
    back = record_from_bytes(written)["x"]
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(back, tensor)


def test_records_may_be_of_classes_of_the_script() -> None:
    class Local(NamedTuple):
        x: int

    @dataclass
    class Recursive:
        x: Any

        def method(self) -> str:
            return super().__repr__() + Recursive.__name__

    for one, other in ((Local(1), Local(1)), (Recursive([1]), Recursive([1])), (Pair(1, "a"), Pair(1, "a"))):
        assert record_to_bytes(one) == record_to_bytes(other)
        assert record_from_bytes(record_to_bytes(one)) == one
    assert record_from_bytes(record_to_bytes(lambda: 3))() == 3


def test_partition_computed_again_has_its_fingerprint() -> None:
    def made(number: int) -> list[Any]:
        rng = np.random.default_rng(number)
        return [{"x": torch.from_numpy(rng.normal(size=3)), "y": [Pair(str(number), rng.normal(size=2))]}] * 2

    def fingerprints() -> list[str]:
        data = dt.Records([dask.delayed(made)(number) for number in range(3)], by_name)
        return [block.fingerprint for block in dask.compute(*data.convert(data.fit([]), [], False), scheduler="sync")]

    assert fingerprints() == fingerprints()
    assert len(set(fingerprints())) == 3


# -- bad input --------------------------------------------------------------------------------------------------


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def train(data: Any, validation: Any = None) -> Callable[[Any, Any], Any]:
    return lambda wire, watcher: small.fit(
        data() if callable(data) else data, wire, model=Two(), observers=[watcher], validation=validation
    )


RECORDS: dict[str, tuple[type[Exception], Callable[[], Any], list[str]]] = {
    "no tuple": (DataError, lambda: dt.Records(partitions(), lambda some: some), ["(inputs, target)", "returned list"]),
    "too many": (DataError, lambda: dt.Records(partitions(), lambda some: (1, 2, 3, 4)), ["returned tuple of 4"]),
    "inputs are a list": (DataError, lambda: dt.Records(partitions(), lambda some: ([1], 2)), ["inputs", "list"]),
    "a weight too few": (
        DataError,
        lambda: dt.Records(partitions(), lambda some: (*by_place(some), torch.ones(1)[None])),
        ["a weight a record", "(1, 1)"],
    ),
    "collate raises": (DataError, lambda: dt.Records([[1]] * 4, by_name), ["collate", "TypeError"]),
    "does not fit": (ModelError, lambda: dt.Records(partitions(), alone), ["model", "right"]),
    "no records": (DataError, lambda: dt.Records([], by_name), ["training data must have rows"]),
    "empty partitions": (DataError, lambda: dt.Records([dask.delayed(list)()], by_name), ["must have rows"]),
    "cycle": (DataError, lambda: dt.Records([dask.delayed(cyclic)()], by_name), ["must pickle", "cyclic"]),
    "does not pickle": (DataError, lambda: dt.Records([(n for n in "ab")], by_name), ["must pickle", "generator"]),
    "source": (DataError, lambda: dt.Records(3, by_name), ["Dask Bag", "3"]),
    "collate is no function": (DataError, lambda: dt.Records(partitions(), 3), ["collate", "int"]),
    "keyword": (UnknownKeyword, lambda: dt.Records(partitions(), colate=by_name), ["'colate'", "'collate'"]),
}


@pytest.mark.parametrize(("error", "data", "words"), RECORDS.values(), ids=RECORDS.keys())
def test_records_that_cannot_be_used(error: type[Exception], data: Callable[[], Any], words: list[str]) -> None:
    refused(error, words, train(data))


def test_mean_cannot_be_weighted() -> None:
    data = dt.Records(partitions(), weighted)
    words = ["sample weights", "a mean"]
    refused(
        ModelError,
        words,
        lambda wire, watcher: small.fit(
            data, wire, model=Two(), loss=lambda output, target: F.cross_entropy(output, target), observers=[watcher]
        ),
    )


def test_validation_that_does_not_fit() -> None:
    data = dt.Records(partitions(), by_name)
    refused(DataError, ["validation data must have rows"], train(data, dt.Records([], by_name)))
    refused(DataError, ["validation", "kind", "tokens"], train(data, dt.Text(["to be"])))
    refused(
        DataError,
        ["validation", "kind", "Records"],
        lambda wire, watcher: small.fit(small.table(), wire, validation=data, observers=[watcher]),
    )
