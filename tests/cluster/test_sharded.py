"""Workers on hosts that are not the driver's reduce among themselves: the same bits, whoever dies or stands still."""

import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
import pytest
import torch
from distributed import Client, LocalCluster
from distributed.security import Security
from torch import nn

import dasktrain as dt
from dasktrain import buckets
from dasktrain.cut import Cut, small_for
from dasktrain.errors import BadInput
from dasktrain.messages import Bucket, Header, Vector
from dasktrain.wire import bandwidth
from dasktrain.wire.channel import Channel, Message
from tests.cluster.test_shared_memory import pids
from tests.cluster.test_together import PROBLEM, ROUNDS, made
from tests.leftovers import assert_left
from tests.saboteurs import Once

WORKERS, SHARDS = 3, 4
NUMBERS = sum(parameter.numel() for parameter in made().parameters())
#: buckets of a gradient
BUCKETS = len(Cut(NUMBERS, small_for(NUMBERS, WORKERS)).offsets)


class Hosts(LocalCluster):
    """Workers have addresses as if so many were on each of several hosts."""

    each = 1

    def new_worker_spec(self) -> dict[int, Any]:
        """Return the next worker's number and how it is started."""
        ((number, spec),) = super().new_worker_spec().items()
        return {number: spec | {"options": spec["options"] | {"host": f"127.0.0.{number // self.each + 2}"}}}


@contextmanager
def cluster_of(workers: int = WORKERS, each: int = 1, **security: Any) -> Iterator[Client]:
    """Start workers, so many on each host, that may be killed, whose nannies start others."""
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}):
        cluster = Hosts(n_workers=0, threads_per_worker=1, dashboard_address=":0", **security)
        cluster.each = each
        cluster.scale(workers)
        with Client(cluster, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=60)
            client.run(exec, "import dasktrain.replica")  # so that none is late for the first round
            yield client
        with suppress(KeyError):  # LocalCluster.close trips over a worker that it has not seen come back
            cluster.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    with cluster_of() as client:
        yield client


@pytest.fixture
def remote(cluster: Client) -> Iterator[Client]:
    """Workers that share no memory, as if each were on a host of its own; nothing of ours is left on them."""
    cluster.wait_for_workers(WORKERS, timeout=60)
    with dask.config.set({"dasktrain.shared-memory": False, "dasktrain.timeouts.silence": "4s"}):
        yield cluster
    cluster.wait_for_workers(WORKERS, timeout=60)
    assert_left(cluster, {"workers": dict.fromkeys(cluster.nthreads(), ([], [], 0)), "scheduler": []})


class Notes(dt.Observer):
    """Keeps what is told of a run."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def stage(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture
def came(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, int]]:
    """Count the buckets that come to the driver, by the nodes they are of."""
    nodes, add = Counter[tuple[int, int]](), buckets.Incoming.add

    def noted(incoming: buckets.Incoming, bucket: Bucket) -> None:
        nodes[bucket.start, bucket.stop] += 1
        add(incoming, bucket)

    monkeypatch.setattr(buckets.Incoming, "add", noted)
    return nodes


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> dict[Channel, list[int]]:
    """Keep the bytes of each probe of each link."""
    sizes, send = dict[Channel, list[int]](), Channel.send

    def noted(channel: Channel, header: Header, arrays: Sequence[Vector | bytes] = ()) -> None:
        if "probe" in header:
            sizes.setdefault(channel, []).extend(map(len, arrays))
        send(channel, header, arrays)

    monkeypatch.setattr(Channel, "send", noted)
    return sizes


def fit(client: object, module: nn.Module, *observers: dt.Observer, **settings: Any) -> dt.Result:
    """Train some rounds, and validate."""
    trainer = PROBLEM.trainer(list(observers))
    trainer.model = lambda schema: module
    torch.manual_seed(0)
    given = {"batch_size": 50, "shards": SHARDS, "max_rounds": ROUNDS, "seed": 7} | settings
    return trainer.fit(PROBLEM.data, client=client, **given)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have runs begin with all workers: who is slow to attach takes no part in six rounds, and two reduce nothing."""
    monkeypatch.setattr("dasktrain.coordinator.GRACE", 60.0)


@pytest.fixture(scope="module")
def wanted() -> str:
    return fit(dt.LocalWire(), made(), reduction="sharded").digest


def test_each_sum_comes_once_from_its_owner(remote: Client, wanted: str, came: Counter[tuple[int, int]]) -> None:
    notes = Notes()
    assert fit(remote, made(), notes, reduction="sharded").digest == wanted
    assert came == {(0, SHARDS): ROUNDS * BUCKETS}
    assert [text for text in notes.told if "reduce among themselves (sharded)" in text]


def test_flat_sends_all_of_them_to_the_driver(remote: Client, wanted: str, came: Counter[tuple[int, int]]) -> None:
    assert fit(remote, made(), reduction="flat").digest == wanted
    assert (0, SHARDS) not in came


def test_auto_tells_what_it_chose(remote: Client, wanted: str) -> None:
    notes = Notes()
    assert fit(remote, made(), notes).digest == wanted
    assert len([text for text in notes.told if "of a round on the wire at" in text]) == 1


def test_links_are_probed_with_few_bytes_at_first_where_it_depends_on_them(
    remote: Client, probes: dict[Channel, list[int]]
) -> None:
    fit(remote, made(), max_rounds=1)
    assert len(probes) == WORKERS - 1, "with the first alone there is nothing to choose"
    for sizes in probes.values():
        assert sizes[0] <= 1 << 16
        assert sorted(sizes) == sizes, "they grow until one takes long enough to tell"


@pytest.mark.parametrize(
    ("module", "reduction"),
    [(made(), "flat"), (made(), "sharded"), (nn.Linear(6, 3), "auto")],
    ids=["flat", "sharded", "nothing to own for one"],
)
def test_links_are_not_probed_where_nothing_depends_on_them(
    remote: Client, probes: dict[Channel, list[int]], module: nn.Module, reduction: str
) -> None:
    fit(remote, module, reduction=reduction, max_rounds=1)
    assert probes == {}


def test_a_probe_that_takes_too_long_costs_no_worker(
    remote: Client, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive, late = Channel.receive, list[Channel]()

    def impatient(channel: Channel, timeout: float | None = None) -> Message:
        if timeout == bandwidth.PATIENCE:
            late.append(channel)
            raise TimeoutError  # and the echo comes during the rounds
        return receive(channel, timeout)

    monkeypatch.setattr(Channel, "receive", impatient)
    monkeypatch.setattr(bandwidth, "LONG", 0.0)
    notes = Notes()
    assert fit(remote, made(), notes).digest == wanted
    assert late
    assert [text for text in notes.told if "went away" in text] == []


def test_validation_is_the_same(remote: Client) -> None:
    figures = [
        fit(client, made(), reduction=reduction, max_rounds=None, epochs=1, validation=PROBLEM.data).history[-1]
        for client, reduction in ((dt.LocalWire(), "flat"), (remote, "sharded"))
    ]
    assert figures[0]["valid_loss"] == figures[1]["valid_loss"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_one_that_is_struck_in_a_round_changes_no_bit(
    remote: Client, wanted: str, tmp_path: Path, number: signal.Signals
) -> None:
    once, struck = Once(tmp_path), pids(remote)[1]
    try:
        assert fit(remote, made(struck, number, once), reduction="sharded").digest == wanted
    finally:
        with suppress(ProcessLookupError):  # it was killed
            os.kill(struck, signal.SIGCONT)
    assert not once(), "nobody was struck"


def test_peers_meet_by_tls_on_a_cluster_that_has_it(wanted: str, came: Counter[tuple[int, int]]) -> None:
    notes = Notes()
    with ExitStack() as ends:
        client = ends.enter_context(cluster_of(protocol="tls", security=Security.temporary()))
        ends.enter_context(dask.config.set({"dasktrain.shared-memory": False}))
        client.wait_for_workers(WORKERS, timeout=60)
        assert fit(client, made(), notes, reduction="sharded").digest == wanted
    assert came == {(0, SHARDS): ROUNDS * BUCKETS}, "\n".join(notes.told)


def test_another_way_is_refused() -> None:
    with pytest.raises(BadInput, match="reduction must be one of"):
        fit(dt.LocalWire(), made(), reduction="shraded")
