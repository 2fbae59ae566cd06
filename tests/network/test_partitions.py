"""Several hosts, their links cut, deaf or slow in the middle of a round: the digest is that of an undisturbed run."""

from collections.abc import Callable, Iterator

import pytest

import dasktrain as dt
from tests.network import faults
from tests.network.cluster import Cluster, running
from tests.network.driver import fit
from tests.network.hosts import missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("hosts")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed() -> str:
    return fit(dt.LocalWire(2)).digest


@pytest.mark.parametrize(
    "fault", [faults.one_is_cut, faults.half_are_cut, faults.one_is_not_heard], ids=lambda fault: fault.__name__
)
def test_a_partition_in_the_middle_of_a_round_changes_no_bit(
    cluster: Cluster, undisturbed: str, fault: Callable[[Cluster], faults.Said]
) -> None:
    said = fault(cluster)
    assert said["digest"] == undisturbed
    assert faults.noticed(said), "nobody was lost"
