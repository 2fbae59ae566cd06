"""A generator of rare rows: the same bits on any number of workers, rows like the real ones, and what is refused."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client

import dasktrain as dt
from dasktrain.errors import BadInput, DataError, PlanError
from tests.small import fit

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS, RARE = 600, 60
SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 90, "window": 100, "shards": 4}


def rare(shift: float = 2.0) -> pd.DataFrame:
    """Return rows of which a tenth are of another class, and lie elsewhere."""
    rng = np.random.default_rng(0)
    few = rng.permutation(ROWS) < RARE
    a, b = rng.normal(size=(2, ROWS)) + shift * few
    return pd.DataFrame({"a": a, "b": b - 2 * shift * few, "kind": np.where(few, "rare", "common")})


def table(**settings: Any) -> dt.Table:
    return dt.Table(rare(), **({"target": "kind", "categorical": []} | settings))


def trained(client: Any = None, **settings: Any) -> dt.balance.Gan:
    wire = dt.LocalWire() if client is None else client
    given = {"ratio": 0.5, "rounds": 8, "observers": [], "shards": 4} | settings
    return dt.balance.Gan.trained(table(), client=wire, **given)


def test_the_same_bits_on_any_number_of_workers(clean: Client) -> None:
    gans = [trained(wire) for wire in (dt.LocalWire(), dt.LocalWire(2), dt.LocalWire(3), clean)]
    assert len({gan.digest for gan in gans}) == 1
    results = [
        fit(table(), wire, balance=gans[0], **SETTINGS)
        for wire in (dt.LocalWire(), dt.LocalWire(2), dt.LocalWire(3), clean)
    ]
    assert len({result.digest for result in results}) == 1
    assert results[0].digest != fit(table(), balance=dt.balance.Oversample(0.5), **SETTINGS).digest


def test_made_up_rows_are_like_the_rare_ones() -> None:
    gan = trained(rounds=400, shards=1)
    features, labels = np.zeros((1, 2), dtype=np.float32), np.zeros(1, dtype=np.int64)
    made = gan.synthesis(features, labels, {1: 2000}, seed=3)[1]
    rows = rare()
    numbers = rows[["a", "b"]]
    real = ((numbers - numbers.mean()) / numbers.std(ddof=0))[rows["kind"] == "rare"]
    assert np.abs(made.mean(axis=0) - real.mean().to_numpy()).max() < 0.35
    assert np.abs(np.log(made.std(axis=0) / real.std().to_numpy())).max() < 0.7
    again = gan.synthesis(features, labels, {1: 2000}, seed=3)[1]
    assert (again == made).all()
    assert (gan.synthesis(features, labels, {1: 2000}, seed=4)[1] != made).any()


def test_a_run_goes_on_with_the_same_generator_only(tmp_path: Any) -> None:
    url, gan = str(tmp_path / "run"), trained()
    whole = fit(table(), balance=gan, **SETTINGS)
    fit(table(), balance=gan, observers=[dt.Checkpoint(url, every="1 round")], max_rounds=5, **SETTINGS)
    assert fit(table(), dt.LocalWire(3), balance=trained(), resume=url, **SETTINGS).digest == whole.digest
    with pytest.raises(BadInput, match="balance"):
        fit(table(), balance=trained(seed=1), resume=url, **SETTINGS)


def test_it_is_for_the_data_it_was_trained_on() -> None:
    other = dt.Table(rare(shift=5.0), target="kind", categorical=[])
    with pytest.raises(DataError, match="must be encoded as those that the generator was trained on"):
        fit(other, balance=trained(), **SETTINGS)


def test_some_class_must_be_rare_and_columns_be_numbers() -> None:
    with pytest.raises(PlanError, match=r"must have fewer than 0\.05 rows for every row of the largest"):
        trained(ratio=0.05)
    users = dt.Table(rare().assign(user="x"), target="kind", categorical=["user"])
    with pytest.raises(BadInput, match="Rows must be numbers to make up others"):
        dt.balance.Gan.trained(users, client=dt.LocalWire(), observers=[])
