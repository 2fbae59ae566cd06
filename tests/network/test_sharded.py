"""Hosts that reduce among themselves: the driver's link carries parameters and a gradient once, not for each host."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.network.hosts import missing
from tests.network.test_together import said

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.mark.parametrize("workers", [("amy", "bob", "cat"), ("amy", "amy", "bob", "bob")], ids=["three", "two pairs"])
def test_parameters_and_gradient_cross_the_drivers_link_once(tmp_path: Path, workers: Sequence[str]) -> None:
    found = said("tests.network.sharded", workers, tmp_path)
    assert len(set(found["digests"])) == 1
    for direction in (0, 1):
        sharded, flat = (min(numbers[direction] for numbers in rounds) for rounds in found["carried"])
        assert sharded / flat == pytest.approx(1 / len(set(workers)), abs=0.03)
