"""Three workers on hosts of their own: the driver's link carries parameters and a gradient once, not thrice."""

from pathlib import Path

import pytest

from tests.network.hosts import missing
from tests.network.test_together import said

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def test_parameters_and_gradient_cross_the_drivers_link_once(tmp_path: Path) -> None:
    found = said("tests.network.sharded", ("amy", "bob", "cat"), tmp_path)
    assert len(set(found["digests"])) == 1
    for direction in (0, 1):
        sharded, flat = (min(numbers[direction] for numbers in rounds) for rounds in found["carried"])
        assert sharded / flat == pytest.approx(1 / 3, abs=0.03)
