"""Hosts that reduce among themselves: the driver's link carries parameters and a gradient once, not for each host.

Where they step, it carries a gradient alone.
"""

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
    share = 1 / len(set(workers))
    for direction, told in ((0, share), (1, 0.0)):
        given, stepped, flat = (min(numbers[direction] for numbers in rounds) for rounds in found["carried"])
        assert given / flat == pytest.approx(share, abs=0.03)
        assert stepped / flat == pytest.approx(told, abs=0.03)
