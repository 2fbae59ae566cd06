"""Workers on hosts that are not the driver's reduce among themselves: the same bits, whoever dies or stands still."""

import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Any

import dask
import pytest
import torch
from distributed import Client, LocalCluster
from distributed.security import Security
from torch import nn

import dasktrain as dt
from dasktrain import buckets, topology
from dasktrain.errors import BadInput
from dasktrain.messages import Bucket, Header, Task, Vector
from dasktrain.observe import Run
from dasktrain.reduce import Node
from dasktrain.strategies import Strategy
from dasktrain.topology import AMONG, Reduction
from dasktrain.wire import bandwidth
from dasktrain.wire.channel import Channel, Message
from dasktrain.wire.handout import Handout
from tests.cluster.test_shared_memory import pids
from tests.cluster.test_together import PROBLEM, ROUNDS, made
from tests.leftovers import assert_left
from tests.saboteurs import Once

WORKERS, SHARDS = 3, 4
NUMBERS = sum(parameter.numel() for parameter in made().parameters())


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
def came(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[Node, int]]:
    """Count how often each bucket of each node comes to the driver."""
    seen, add = Counter[tuple[Node, int]](), buckets.Incoming.add

    def noted(incoming: buckets.Incoming, bucket: Bucket) -> None:
        seen[(bucket.start, bucket.stop), bucket.offset] += 1
        add(incoming, bucket)

    monkeypatch.setattr(buckets.Incoming, "add", noted)
    return seen


def once_each(came: Counter[tuple[Node, int]], sums: int = ROUNDS) -> bool:
    """Return whether the sum of all has come in several buckets, each once of each sum, and nothing else."""
    return len(came) > 1 and set(came.values()) == {sums} and {node for node, _ in came} == {(0, SHARDS)}


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


def fit(
    client: object, module: nn.Module, *observers: dt.Observer, strategy: Strategy | None = None, **settings: Any
) -> dt.Result:
    """Train some rounds, and validate."""
    trainer = PROBLEM.trainer(list(observers))
    trainer.strategy = strategy or trainer.strategy
    trainer.model = lambda schema: module
    torch.manual_seed(0)
    given = {"batch_size": 50, "shards": SHARDS, "max_rounds": ROUNDS, "seed": 7} | settings
    return trainer.fit(PROBLEM.data, client=client, **given)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have runs begin with all workers: who is slow to attach takes no part in six rounds, and two reduce nothing."""
    monkeypatch.setattr("dasktrain.coordinator.GRACE", 60.0)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int, str]]:
    """Count what owners are given in each round, however quick links are: steps, values to step, or values alone."""
    seen, parts = Counter[tuple[str, int, str]](), Handout.parts

    def noted(handout: Handout, worker: str, mesh: str, task: Task, *given: Any) -> Iterator[Message]:
        for header, arrays in parts(handout, worker, mesh, task, *given):
            kind = next(kind for kind in ("stepped", "made", "pieces", "part") if kind in header)
            seen[task.kind, task.round, kind] += 1
            yield header, arrays

    monkeypatch.setattr(Handout, "parts", noted)
    monkeypatch.setattr(topology, "CHECKED", inf)
    monkeypatch.setattr(topology, "STEPPED", inf)
    return seen


@pytest.fixture(scope="module")
def wanted() -> str:
    return fit(dt.LocalWire(), made(), reduction="sharded").digest


@pytest.mark.parametrize("reduction", AMONG)
def test_each_sum_comes_once_from_whom_it_is_complete_with(
    remote: Client, wanted: str, came: Counter[tuple[Node, int]], reduction: Reduction
) -> None:
    notes = Notes()
    assert fit(remote, made(), notes, reduction=reduction).digest == wanted
    assert once_each(came)
    assert [text for text in notes.told if "reduce among themselves" in text and f"({reduction})" in text]


@pytest.mark.parametrize("reduction", AMONG)
def test_how_far_shards_have_come_by_themselves_is_added_likewise(
    remote: Client, came: Counter[tuple[Node, int]], reduction: Reduction
) -> None:
    alone = fit(dt.LocalWire(), made(), strategy=dt.LocalSGD(steps=2)).digest
    came.clear()
    assert fit(remote, made(), strategy=dt.LocalSGD(steps=2), reduction=reduction).digest == alone
    assert once_each(came, ROUNDS // 2)


def test_owners_step_what_they_own(
    remote: Client, came: Counter[tuple[Node, int]], told: Counter[tuple[str, int, str]]
) -> None:
    """Between a round and validation, and from there to the next epoch, each has what it had."""
    given: dict[str, Any] = {"max_rounds": None, "epochs": 2, "validation": PROBLEM.data}
    digest = fit(dt.LocalWire(), made(), **given).digest
    came.clear()
    result = fit(remote, made(), reduction="sharded", **given)
    assert result.digest == digest
    rounds, buckets = len(result.history.rounds) // 2, len({offset for _, offset in came})
    assert rounds > 1
    assert set(came.values()) == {2 * rounds}
    wanted = Counter({("train", 0, "part"): buckets, ("train", 1, "pieces"): buckets})
    for kind, place in [*(("train", place) for place in range(2, rounds)), ("evaluate", rounds - 1)]:
        wanted += Counter({(kind, place, "stepped"): WORKERS, (kind, place, "made"): buckets})
    wanted += Counter({("train", 0, "made"): buckets})  # of the second epoch
    for kind, place in [*(("train", place) for place in range(1, rounds)), ("evaluate", rounds - 1)]:
        wanted += Counter({(kind, place, "stepped"): WORKERS, (kind, place, "made"): buckets})
    assert told == wanted


class Shift(dt.Observer):
    """Changes parameters now and then, where nobody sees it."""

    def start(self, run: Run) -> None:
        self._run = run

    def round(self, record: dict[str, Any]) -> None:
        if record["round"] in (2, 4):
            assert self._run.state is not None
            next(iter(self._run.state.module.parameters())).data += 0.125


def test_observers_may_change_parameters_between_steps(remote: Client, told: Counter[tuple[str, int, str]]) -> None:
    assert fit(remote, made(), Shift(), reduction="sharded").digest == fit(dt.LocalWire(), made(), Shift()).digest
    assert told["train", 2, "stepped"] == told["train", 3, "stepped"] == WORKERS
    assert told["train", 4, "stepped"] < WORKERS, "whose buckets became something else are given values"


def test_flat_sends_all_of_them_to_the_driver(remote: Client, wanted: str, came: Counter[tuple[Node, int]]) -> None:
    assert fit(remote, made(), reduction="flat").digest == wanted
    assert (0, SHARDS) not in {node for node, _ in came}


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
    [(made(), "flat"), (nn.Linear(6, 3), "sharded"), (nn.Linear(6, 3), "auto")],
    ids=["flat", "nothing to own for one", "nothing to choose"],
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
        for client, reduction in ((dt.LocalWire(), "flat"), (remote, "sharded"), (remote, "tree"))
    ]
    assert len({found["valid_loss"] for found in figures}) == 1


@pytest.mark.parametrize("reduction", AMONG)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_one_that_is_struck_in_a_round_changes_no_bit(
    remote: Client,
    wanted: str,
    tmp_path: Path,
    number: signal.Signals,
    reduction: Reduction,
    told: Counter[tuple[str, int, str]],
) -> None:
    """Along a tree over four shards the second adds the first half, or all."""
    once, struck = Once(tmp_path), pids(remote)[1]
    try:
        assert fit(remote, made(struck, number, once), reduction=reduction).digest == wanted
    finally:
        with suppress(ProcessLookupError):  # it was killed
            os.kill(struck, signal.SIGCONT)
    assert not once(), "nobody was struck"
    assert sum(told[kind] for kind in told if "stepped" in kind) >= WORKERS * (reduction == "sharded")


def test_peers_meet_by_tls_on_a_cluster_that_has_it(wanted: str, came: Counter[tuple[Node, int]]) -> None:
    notes = Notes()
    with ExitStack() as ends:
        client = ends.enter_context(cluster_of(protocol="tls", security=Security.temporary()))
        ends.enter_context(dask.config.set({"dasktrain.shared-memory": False}))
        client.wait_for_workers(WORKERS, timeout=60)
        assert fit(client, made(), notes, reduction="sharded").digest == wanted
    assert once_each(came), "\n".join(notes.told)


def test_another_way_is_refused() -> None:
    with pytest.raises(BadInput, match="reduction must be one of"):
        fit(dt.LocalWire(), made(), reduction="shraded")
