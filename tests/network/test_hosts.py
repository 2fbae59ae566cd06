"""The links that other tests cut are cut, in the directions that they mean, and nothing of them stays."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.network.hosts import Network, connected, missing, space

RECEIVE = """
import socket, sys
with socket.socket(type=socket.SOCK_DGRAM) as here:
    here.bind(("", 9))
    here.settimeout(float(sys.argv[1]))
    print("listening", flush=True)
    try:
        print(here.recv(100).decode())
    except TimeoutError:
        print("nothing")
"""
SEND = """
import socket, sys
with socket.socket(type=socket.SOCK_DGRAM) as here:
    here.sendto(b"something", (sys.argv[1], 9))
"""
#: seconds for a datagram that comes, and for one that does not
PATIENCE, GLANCE = 10.0, 0.3

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture
def two() -> Iterator[Network]:
    """Two hosts, a and b, that know each other's hardware address."""
    with connected("a", "b") as network:
        assert heard(network, "a", "b", PATIENCE) == heard(network, "b", "a", PATIENCE) == "something"
        yield network


def heard(network: Network, sender: str, receiver: str, patience: float = GLANCE) -> str:
    """Send a datagram; return what arrived."""
    listening = network.start(receiver, sys.executable, "-c", RECEIVE, str(patience), stdout=subprocess.PIPE, text=True)
    assert listening.stdout is not None
    assert listening.stdout.readline() == "listening\n"
    network.start(sender, sys.executable, "-c", SEND, network.address(receiver)).wait(PATIENCE)
    return str(listening.stdout.readline()).strip()


def test_cut_link_loses_both_directions_until_it_is_healed(two: Network) -> None:
    two.cut("a")
    assert heard(two, "a", "b") == heard(two, "b", "a") == "nothing"
    two.heal("a")
    assert heard(two, "a", "b", PATIENCE) == heard(two, "b", "a", PATIENCE) == "something"


def test_one_way_drop_loses_one_direction_until_it_is_healed(two: Network) -> None:
    two.drop_from("a")
    assert heard(two, "a", "b") == "nothing"
    assert heard(two, "b", "a", PATIENCE) == "something"
    two.heal("a")
    assert heard(two, "a", "b", PATIENCE) == "something"


def test_nothing_stays_of_hosts_whose_test_fails() -> None:
    started: list[subprocess.Popen[str]] = []

    def fails() -> None:
        with connected("a") as network:
            started.append(network.start("a", "sleep", "1000"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert started[0].poll() is not None
    spaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert space("") not in spaces
