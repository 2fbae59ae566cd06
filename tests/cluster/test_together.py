"""Workers of one host that is not the driver's: the same bits in fewer buckets, whoever dies or stands still."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import dask
import pytest
import torch
from distributed import Client, LocalCluster
from torch import Tensor, nn

import dasktrain as dt
from dasktrain import buckets, cut
from dasktrain.fitting import CANARY_ROWS
from dasktrain.messages import Bucket, State, Task
from dasktrain.wire import dask as on_dask
from dasktrain.wire.shared import POSSIBLE
from tests.cluster.test_shared_memory import eventually, held_by_workers, pids
from tests.leftovers import assert_left
from tests.problems import PROBLEMS
from tests.processes import named_sockets
from tests.saboteurs import Once

PROBLEM = PROBLEMS[0]
#: numbers in several buckets
WIDE = 5 * cut.SIZE // 2
WORKERS, SHARDS, ROUNDS = 2, 4, 6
#: the shards of each worker, and of all of them
APART, TOGETHER = {(0, 2), (2, 4)}, (0, SHARDS)

pytestmark = pytest.mark.skipif(not POSSIBLE, reason="This system must have anonymous memory that can be sealed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    """Workers that may be killed; their nannies start others."""
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}):
        cluster = LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0")
        with Client(cluster, set_as_default=False) as client:
            yield client
        with suppress(KeyError):  # LocalCluster.close trips over a worker that it has not seen come back
            cluster.close()


@pytest.fixture
def remote(cluster: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Workers that share no memory with their driver, as if it were elsewhere; nothing of ours is left on them."""
    monkeypatch.setattr(on_dask, "POSSIBLE", False)
    cluster.wait_for_workers(WORKERS, timeout=60)
    yield cluster
    cluster.wait_for_workers(WORKERS, timeout=60)
    assert_left(cluster, {"workers": dict.fromkeys(cluster.nthreads(), ([], [], 0)), "scheduler": []})
    eventually(lambda: held_by_workers(cluster), [([], 0)] * WORKERS)
    assert {name for pid in pids(cluster) for name in named_sockets(pid)} == set()


class Struck(nn.Module):
    """Sends one process a signal in the middle of a round, once; the same numbers as ever everywhere else."""

    def __init__(self, process: int = 0, number: int = 0, once: Once | None = None) -> None:
        super().__init__()
        self.process, self.number, self.once = process, number, once
        self.body, self.wide, self.calls = nn.Linear(6, 3), nn.Parameter(torch.zeros(WIDE)), 0

    def forward(self, x: Tensor) -> Tensor:
        """(rows, 6) -> (rows, 3)."""
        self.calls += len(x) != CANARY_ROWS
        if self.calls == 6 and os.getpid() == self.process and self.once is not None and self.once():
            os.kill(self.process, self.number)
        output: Tensor = self.body(x) + self.wide[:1] + self.wide[-1:]
        return output


def fit(client: object, module: nn.Module) -> dt.Result:
    """Train some rounds."""
    trainer = PROBLEM.trainer()
    trainer.model = lambda schema: module
    torch.manual_seed(0)
    settings: dict[str, Any] = {"batch_size": 50, "shards": SHARDS, "max_rounds": ROUNDS, "seed": 7}
    return trainer.fit(PROBLEM.data, client=client, **settings)  # type: ignore[arg-type]


def made(*struck: Any) -> nn.Module:
    """Return a module whose parameters are always the same."""
    torch.manual_seed(0)
    return Struck(*struck)


@pytest.fixture(scope="module")
def wanted() -> str:
    return fit(dt.LocalWire(), made()).digest


@pytest.mark.parametrize("share", [True, False])
def test_their_sums_come_as_one(remote: Client, wanted: str, monkeypatch: pytest.MonkeyPatch, share: bool) -> None:
    nodes, add = set[tuple[int, int]](), buckets.Incoming.add

    def noted(incoming: buckets.Incoming, bucket: Bucket) -> None:
        nodes.add((bucket.start, bucket.stop))
        add(incoming, bucket)

    monkeypatch.setattr(buckets.Incoming, "add", noted)
    with dask.config.set({"dasktrain.shared-memory": share}):
        assert fit(remote, made()).digest == wanted
    assert TOGETHER in nodes if share else nodes == APART


def test_their_parameters_come_once(remote: Client, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, encode = dict[int, list[int]](), on_dask.encode_ask

    def noted(task: Task, state: State) -> tuple[dict[str, Any], list[Any]]:
        sent.setdefault(task.round, []).append(len(state.parameters))
        return encode(task, state)

    monkeypatch.setattr(on_dask, "encode_ask", noted)
    module = made()
    assert fit(remote, module).digest == wanted
    numbers = sum(parameter.numel() for parameter in module.parameters())
    assert {round: sorted(found) for round, found in sent.items()} == {
        round: [0] * (WORKERS - 1) + [numbers] for round in range(ROUNDS)
    }


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
@pytest.mark.parametrize("place", [0, 1], ids=["the one that adds", "another"])
def test_one_that_is_struck_in_a_round_changes_no_bit(
    remote: Client, wanted: str, tmp_path: Path, place: int, number: signal.Signals
) -> None:
    once, struck = Once(tmp_path), pids(remote)[place]
    try:
        with dask.config.set({"dasktrain.timeouts.silence": "4s"}):  # of a worker whose partitions are needed
            assert fit(remote, made(struck, number, once)).digest == wanted
    finally:
        with suppress(ProcessLookupError):  # it was killed
            os.kill(struck, signal.SIGCONT)
    assert not once(), "nobody was struck"


def strike_before_it_gives(number: int, once: Once, pause: float) -> None:
    """Have this worker be sent a signal, once, when it is about to give parameters that others wait for."""
    from dasktrain.wire.adding import Adding

    give = Adding._give

    def struck(adding: Adding, *given: Any) -> None:
        if once():
            Event().wait(pause)
            os.kill(os.getpid(), number)
        give(adding, *given)

    Adding._give = struck  # type: ignore[method-assign]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_one_that_is_struck_before_it_gives_parameters_changes_no_bit(
    remote: Client, wanted: str, tmp_path: Path, number: signal.Signals
) -> None:
    once, first, struck = Once(tmp_path), min(remote.nthreads()), pids(remote)[0]
    remote.run(strike_before_it_gives, number, once, 0.8, workers=[first])
    try:
        with dask.config.set({"dasktrain.timeouts.silence": "4s"}):
            assert fit(remote, made()).digest == wanted
    finally:
        with suppress(ProcessLookupError):  # it was killed
            os.kill(struck, signal.SIGCONT)
    assert not once(), "nobody was struck"
