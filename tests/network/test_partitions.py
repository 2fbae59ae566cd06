"""Several hosts, their links cut, deaf or slow in the middle of a round: the digest is that of an undisturbed run."""

from pathlib import Path

import pytest

import dasktrain as dt
from tests.network import faults
from tests.network.cluster import running
from tests.network.driver import fit
from tests.network.hosts import missing

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.timeout(300),  # half a minute, if nothing else goes on
]


#: the others are what ``python -m benchmarks.chaos network`` does
FAULTS = (faults.one_is_cut, faults.one_is_not_heard, faults.half_are_cut)


def test_partitions_in_the_middle_of_a_round_change_no_bit(tmp_path: Path) -> None:
    """One test, or each of the processes that share out tests would start a cluster."""
    undisturbed = fit(dt.LocalWire(2)).digest
    with running(tmp_path) as cluster:
        for fault in FAULTS:
            said = fault(cluster)
            assert said["digest"] == undisturbed, fault.__doc__
            assert faults.noticed(said), f"nobody was lost: {fault.__doc__}"
