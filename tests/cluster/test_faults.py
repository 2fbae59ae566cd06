"""What goes wrong without a worker dying: the run ends within seconds, says what happened, and leaves nothing."""

import os
import signal
import threading

import dask
import pytest
import torch
from distributed import Client, Event, LocalCluster, wait
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.errors import AttachError, NonFinite, ReplicaError
from tests.drivers import driving, said_of_a_round
from tests.leftovers import assert_left, left_on
from tests.problems import PROBLEMS
from tests.saboteurs import After


def test_interrupt_that_kills_the_workers_leaves_the_result_so_far() -> None:
    """Ctrl-C in a terminal reaches the processes of a LocalCluster as well."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        pids, main = list(client.run(os.getpid).values()), threading.main_thread().ident
        assert main is not None
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

        def interrupt() -> None:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            signal.pthread_kill(main, signal.SIGINT)

        trainer = PROBLEMS[0].trainer([After(3, interrupt)])
        try:
            result = trainer.fit(PROBLEMS[0].data, batch_size=50, max_rounds=100_000, client=client)
        finally:
            signal.signal(signal.SIGINT, before)
        assert result.ended == "interrupt"
        done = len(result.history.rounds)
        assert result.digest == PROBLEMS[0].fit(dt.LocalWire(), seed=0, max_rounds=done).digest


class Raises(nn.Module):
    """Fails on workers, not in the driver's trial."""

    def __init__(self, driver: int, nan: bool) -> None:
        super().__init__()
        self.linear, self.driver, self.nan = nn.Linear(6, 3), driver, nan

    def forward(self, x: Tensor) -> Tensor:
        if os.getpid() != self.driver and self.nan:
            return self.linear(x) * torch.nan
        if os.getpid() != self.driver:
            raise RuntimeError("no such file: weights.bin")
        return self.linear(x)


def test_raising_module_is_reported_with_its_traceback(clean: Client) -> None:
    trainer = dt.Trainer(Raises(os.getpid(), nan=False), nn.CrossEntropyLoss(), torch.optim.SGD, observers=[])
    with pytest.raises(ReplicaError, match=r"weights\.bin.*epoch 0, round 0 on worker tcp://") as caught:
        trainer.fit(PROBLEMS[0].data, client=clean)
    assert "in forward" in "".join(caught.value.__notes__)


def test_nan_loss_names_round_shard_and_partition(clean: Client) -> None:
    trainer = dt.Trainer(Raises(os.getpid(), nan=True), nn.CrossEntropyLoss(), torch.optim.SGD, observers=[])
    with pytest.raises(NonFinite, match=r"round 0, shard \d, with rows of partition \d"):
        trainer.fit(PROBLEMS[0].data, client=clean)


class Steep(nn.Module):
    """Has a finite output whose gradient is not finite for some rows, on workers."""

    def __init__(self, driver: int) -> None:
        super().__init__()
        self.linear, self.driver = nn.Linear(6, 3), driver

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        bad = (x[:, :1] > x[:, :1].median()) & (os.getpid() != self.driver)
        return out + torch.where(bad, (out * 0).square().sqrt(), 0.0)


@pytest.mark.parametrize("shared", [True, False], ids=["shared memory", "sockets"])
def test_gradient_that_is_not_finite_names_round_shard_and_partition(clean: Client, shared: bool) -> None:
    trainer = dt.Trainer(Steep(os.getpid()), nn.CrossEntropyLoss(), torch.optim.SGD, observers=[])
    with (
        dask.config.set({"dasktrain.shared-memory": shared}),
        pytest.raises(NonFinite, match=r"The gradient must be finite.*round 0, shard \d, with rows of partition \d"),
    ):
        trainer.fit(PROBLEMS[0].data, client=clean)


class Unbuildable(nn.Linear):
    """Cannot be unpickled outside the driver."""

    def __setstate__(self, state: dict[str, object]) -> None:
        if os.getpid() != state["driver"]:
            raise ImportError("No module named 'secret'")
        super().__setstate__(state)  # type: ignore[no-untyped-call]


def test_replica_that_cannot_be_built_is_an_error_before_the_first_round(clean: Client) -> None:
    model = Unbuildable(6, 3)
    model.driver = os.getpid()  # type: ignore[assignment]
    trainer = dt.Trainer(model, nn.CrossEntropyLoss(), torch.optim.SGD, observers=[])
    with pytest.raises(AttachError, match=r"secret.*worker tcp://"):
        trainer.fit(PROBLEMS[0].data, client=clean)


def test_busy_workers_are_an_error_within_the_deadline(clean: Client) -> None:
    def block() -> None:
        Event("release").wait(30)

    class Busy(dt.Observer):
        """Takes the workers' only thread once the data is in place."""

        def stage(self, text: str) -> None:
            if text.startswith("building"):
                self.blockers = [clean.submit(block, workers=[worker], pure=False) for worker in clean.nthreads()]

    busy = Busy()
    try:
        with (
            dask.config.set({"dasktrain.timeouts.attach": "1s"}),
            pytest.raises(AttachError, match="start its lease within 1 s"),
        ):
            PROBLEMS[0].trainer([busy]).fit(PROBLEMS[0].data, client=clean)
    finally:
        with clean.as_current():
            Event("release").set()
            wait(busy.blockers)
            del busy.blockers


def test_no_workers_within_the_deadline() -> None:
    with (
        LocalCluster(n_workers=0, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
        dask.config.set({"dasktrain.timeouts.workers": "0.5s"}),
        pytest.raises(AttachError, match=r"a worker within 0\.5 s, .* has none; start one with 'dask worker'"),
    ):
        PROBLEMS[0].fit(client)


def test_killed_driver_leaves_nothing_on_the_cluster(clean: Client) -> None:
    before = left_on(clean)
    with driving(clean, 0, batch_size=50, max_rounds=10**9) as (_, said):
        assert said_of_a_round(said)
    assert_left(clean, before)
