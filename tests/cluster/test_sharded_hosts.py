"""Two hosts of two workers reduce among themselves: the same bits, whoever dies or stands still."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import dask
import pytest
from distributed import Client, Worker

import dasktrain as dt
from dasktrain.messages import Answer, Bucket, Header, Task, encode_reply
from dasktrain.reduce import Node
from dasktrain.topology import AMONG, Reduction
from dasktrain.wire import dask as on_dask
from dasktrain.wire import together
from dasktrain.wire.parties import Ask
from dasktrain.wire.peers import Peers
from dasktrain.wire.shared import POSSIBLE
from dasktrain.wire.ways import Way
from tests.cluster import test_sharded
from tests.cluster.test_sharded import Notes, cluster_of, fit, made, once_each
from tests.cluster.test_shared_memory import eventually, held_by_workers, pids
from tests.cluster.test_together import strike_before_it_gives
from tests.leftovers import assert_left
from tests.processes import named_sockets
from tests.saboteurs import Once

HOSTS, EACH = 2, 2
WORKERS = HOSTS * EACH

pytestmark = pytest.mark.skipif(not POSSIBLE, reason="This system must have anonymous memory that can be sealed")

patient, came = test_sharded.patient, test_sharded.came


def be_of_the_address(dask_worker: Worker) -> None:
    """Have this worker say that its host is what its address says."""
    together.host = lambda: str(urlsplit(dask_worker.address).hostname)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    with cluster_of(WORKERS, EACH) as client:
        yield client


@pytest.fixture
def remote(cluster: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Workers that share memory with those of their host alone, and not with their driver; nothing is left on them."""
    monkeypatch.setattr(on_dask, "POSSIBLE", False)
    cluster.wait_for_workers(WORKERS, timeout=60)
    cluster.run(be_of_the_address)
    with dask.config.set({"dasktrain.timeouts.silence": "4s"}):
        yield cluster
    cluster.wait_for_workers(WORKERS, timeout=60)
    assert_left(cluster, {"workers": dict.fromkeys(cluster.nthreads(), ([], [], 0)), "scheduler": []})
    eventually(lambda: held_by_workers(cluster), [([], 0)] * WORKERS)
    assert {name for pid in pids(cluster) for name in named_sockets(pid)} == set()


@pytest.fixture(scope="module")
def wanted() -> str:
    return fit(dt.LocalWire(), made(), reduction="sharded").digest


@pytest.mark.parametrize("reduction", AMONG)
def test_each_sum_comes_once_from_the_host_that_it_is_complete_with(
    remote: Client, wanted: str, came: Counter[tuple[Node, int]], reduction: Reduction
) -> None:
    notes = Notes()
    assert fit(remote, made(), notes, reduction=reduction).digest == wanted
    assert once_each(came)
    told = [text for text in notes.told if "4 workers on 2 hosts reduce among themselves" in text]
    assert [f"({reduction})" in text for text in told] == [True]


@pytest.mark.parametrize(
    ("place", "number"),
    [(0, signal.SIGKILL), (0, signal.SIGSTOP), (1, signal.SIGKILL), (1, signal.SIGSTOP)],
    ids=["the one that adds-SIGKILL", "the one that adds-SIGSTOP", "another-SIGKILL", "another-SIGSTOP"],
)
def test_one_that_is_struck_in_a_round_changes_no_bit(
    remote: Client, wanted: str, tmp_path: Path, place: int, number: signal.Signals
) -> None:
    once, struck = Once(tmp_path), pids(remote)[place]
    try:
        assert fit(remote, made(struck, number, once), reduction="sharded").digest == wanted
    finally:
        with suppress(ProcessLookupError):  # it was killed
            os.kill(struck, signal.SIGCONT)
    assert not once(), "nobody was struck"


def deliver_late(once: Once, pause: float) -> None:
    """Have this worker send the driver what it adds only a while after its peers know that they are done, once."""
    from dasktrain.wire.member import DRIVER, Member

    give, finish, held = Member._give, Member.finish, list[Bucket]()

    def holding(member: Member, bucket: Bucket) -> None:
        is_last = member._routes.adder(bucket.offset, (bucket.start, bucket.stop)) == DRIVER
        held.append(bucket) if is_last else give(member, bucket)

    def late(member: Member, *given: Any) -> Header:
        header = finish(member, *given)
        if once():
            Event().wait(pause)
        while held:
            member._channel.send(*encode_reply(held.pop()))
        return header

    Member._give = holding  # type: ignore[method-assign]
    Member.finish = late  # type: ignore[method-assign]


def test_what_a_lost_one_had_passed_on_is_asked_anew(
    remote: Client, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed when its answers wait for what another is to send."""
    processes, lost, asked = remote.run(os.getpid), list[Ask](), list[Ask]()
    first, _, other, _ = sorted(processes)
    answered, forget, post = Peers.answered, Peers.forget, on_dask.DaskWire._post

    def killing(peers: Peers, worker: str, answer: Answer, missed: frozenset[int] | None) -> bool:
        counts = answered(peers, worker, answer, missed)
        if worker == first and first in peers.held and not lost:
            os.kill(processes[first], signal.SIGKILL)
        return counts

    def noted(peers: Peers, worker: str) -> list[Ask]:
        found = forget(peers, worker)
        lost.extend(found)
        return found

    def posting(wire: on_dask.DaskWire, worker: str, task: Task, way: Way) -> None:
        asked.append((worker, task))
        post(wire, worker, task, way)

    monkeypatch.setattr(on_dask.DaskWire, "_post", posting)
    monkeypatch.setattr(Peers, "answered", killing)
    monkeypatch.setattr(Peers, "forget", noted)
    remote.run(deliver_late, Once(tmp_path), 1.0, workers=[other])
    assert fit(remote, made(), reduction="sharded").digest == wanted
    assert [task.start for _, task in lost] == [1]
    assert asked.count(lost[0]) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_one_that_is_struck_before_it_gives_parameters_changes_no_bit(
    remote: Client, wanted: str, tmp_path: Path, number: signal.Signals
) -> None:
    once, first, struck = Once(tmp_path), min(remote.nthreads()), pids(remote)[0]
    remote.run(strike_before_it_gives, number, once, 0.8, workers=[first])
    try:
        assert fit(remote, made(), reduction="sharded").digest == wanted
    finally:
        with suppress(ProcessLookupError):  # it was killed
            os.kill(struck, signal.SIGCONT)
    assert not once(), "nobody was struck"
