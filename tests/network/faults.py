"""What happens to links in the middle of a round, and what the driver then says."""

from collections.abc import Callable
from typing import Any

from tests.network.cluster import HOSTS, Cluster
from tests.network.hosts import SLOW

#: a late answer is still awaited then: rounds without the lost worker are quick
SOON_AFTER = 12
Said = dict[str, Any]


def noticed(said: Said) -> bool:
    """Return whether the driver was told of a worker that is late or gone."""
    return any("backs up" in text or "went away" in text for text in said["told"])


def one_is_cut(cluster: Cluster) -> Said:
    """One worker's cable is pulled, for good."""
    return _lost(cluster, ["bob"], cluster.network.cut)


def half_are_cut(cluster: Cluster) -> Said:
    """The cables of half of the workers are pulled, for good."""
    return _lost(cluster, ["bob", "dan"], cluster.network.cut)


def one_is_not_heard(cluster: Cluster) -> Said:
    """All that one worker sends is lost; it hears the others."""
    return _lost(cluster, ["cat"], cluster.network.drop_from)


def one_is_cut_and_comes_back(cluster: Cluster) -> Said:
    """One worker's cable is pulled and put back some rounds later, before anybody has given the worker up."""
    with cluster.in_a_round(["amy"], hold=SOON_AFTER):
        cluster.network.cut("amy")
    cluster.said()
    cluster.network.heal("amy")
    cluster.tell()
    return _done(cluster, ["amy"])


def links_are_slow(cluster: Cluster) -> Said:
    """Every link carries 50 Mbit/s."""
    for host in HOSTS:
        cluster.network.shape(host, *SLOW)
    cluster.begin()
    said = cluster.said()
    for host in HOSTS:
        cluster.network.heal(host)
    return said


def _lost(cluster: Cluster, hosts: list[str], lose: Callable[[str], None]) -> Said:
    with cluster.in_a_round(hosts):
        for host in hosts:
            lose(host)
    return _done(cluster, hosts)


def _done(cluster: Cluster, hosts: list[str]) -> Said:
    cluster.lost += hosts
    return cluster.said()
