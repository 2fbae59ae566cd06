"""What every compression promises. A new one is one more line of `COMPRESSIONS`."""

from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dasktrain as dt
from dasktrain.accumulate import Sum
from dasktrain.codes import rounded, unpack
from dasktrain.compression import Compression, Stretches
from dasktrain.events import Left
from dasktrain.messages import Task
from dasktrain.packer import Packer
from dasktrain.plan import Plan, rows_only
from dasktrain.vector import Layout
from tests.chaos_wire import ChaosWire, Clock
from tests.small import Watcher, fit, linear, table

pytestmark = pytest.mark.usefixtures("one_thread")
COMPRESSIONS: dict[str, Any] = {
    "bfloat16": lambda every: dt.Rounding("bfloat16"),
    "float16": lambda every: dt.Rounding("float16"),
    "int8": lambda every: dt.Rounding("int8"),
    "top": lambda every: dt.TopK(0.1, every),
    "columns": lambda every: dt.PowerSGD(1, every),
}
SETTINGS: dict[str, Any] = {"epochs": 2, "shards": 4, "batch_size": 14}
LAYOUT = Layout({"matrix": (6, 5), "vector": (5,), "kernel": (4, 3, 2)})
SUMS = Layout({"loss": (1,), "used": (3,)})
PLAN = Plan(rows_only([40]), 2, 8, 0)


@pytest.fixture(params=COMPRESSIONS.values(), ids=COMPRESSIONS)
def make(request: pytest.FixtureRequest) -> Any:
    return request.param


def model(schema: dt.Schema) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 3))


def trained(compression: Compression | None, wire: Any = None, **settings: Any) -> dt.Result:
    return fit(table(120), wire, **({"model": model, "compression": compression} | SETTINGS | settings))


@cache
def wanted(make: Any, every: int = 4) -> dt.Result:
    """Return what one worker comes to."""
    return trained(make(every))


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "workers"), [(4, 2), (4, 3), (100, 4)])
def test_it_gives_the_same_bits_on_any_number_of_workers(make: Any, every: int, workers: int) -> None:
    assert trained(make(every), dt.LocalWire(workers)).digest == wanted(make, every).digest


def test_shards_without_rows_send_what_they_have_kept(make: Any) -> None:
    settings = {"model": linear, "batch_size": 3, "epochs": 1}
    digests = {trained(make(4), dt.LocalWire(workers), **settings).digest for workers in (1, 3)}
    assert len(digests) == 1


@pytest.mark.parametrize("seed", range(2))
def test_it_gives_the_same_bits_whatever_becomes_of_workers(make: Any, seed: int) -> None:
    clock = Clock()
    wire = ChaosWire(Random(seed), 3, clock)
    with clock.ticking():
        found = trained(make(4), wire)
    assert found.digest == wanted(make).digest
    assert told(found) == told(wanted(make))


def told(result: dt.Result) -> list[tuple[int, int, float]]:
    """Return what does not depend on time."""
    return [(record["epoch"], record["round"], record["loss"]) for record in result.history.rounds]


def test_it_learns(make: Any) -> None:
    history = trained(make(5), epochs=6).history
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize("strategy", [dt.DiLoCo(steps=2), dt.GradientAveraging(clip_norm=0.1)])
def test_it_goes_with_every_strategy(make: Any, strategy: Any) -> None:
    alone = trained(make(2), strategy=strategy).digest
    assert trained(make(2), dt.LocalWire(3), strategy=strategy).digest == alone


def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(make: Any, tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    begun = trained(make(4), observers=[dt.Checkpoint(url, every="1 round")], max_rounds=2)
    assert len(begun.history.rounds) == max(2, make(4).every)  # a run ends where shards keep nothing
    resumed = trained(make(4), dt.LocalWire(3), resume=url)
    assert resumed.digest == wanted(make).digest
    assert told(resumed) == told(wanted(make))


def test_checkpoints_are_where_shards_keep_nothing(make: Any, tmp_path: Path) -> None:
    written: list[int] = []

    class Counting(dt.Checkpoint):
        def _write(self, run: Any) -> None:
            written.append(run.cursor.done)
            super()._write(run)

    trained(make(4), observers=[Counting(str(tmp_path), every="1 round")], epochs=1)
    assert written == ([4, 8, 9] if make(4).every == 4 else list(range(1, 10)))


def test_an_observer_that_wishes_an_end_gets_it_where_shards_keep_nothing(make: Any) -> None:
    watcher = Watcher(stop_after_rounds=2)
    assert len(trained(make(4), observers=[watcher]).history.rounds) == max(2, make(4).every)


def test_a_resumed_run_must_be_compressed_alike(make: Any, tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    trained(make(4), observers=[dt.Checkpoint(url)], epochs=1)
    for other in (dt.TopK(0.2, every=5), None):
        with pytest.raises(dt.errors.BadInput, match="compression"):
            trained(other, resume=url)


def test_validation_is_of_the_parameters_of_record(make: Any) -> None:
    found = trained(make(4), validation=table(120), epochs=2)
    loss = found.evaluate(table(120), {"loss": nn.CrossEntropyLoss()})["loss"]
    assert found.history[-1]["valid_loss"] == pytest.approx(loss, rel=1e-6)


# -- a worker that goes away ------------------------------------------------------------------------------------------


class Dying(dt.LocalWire):
    """Has a worker die once, in a round of the first epoch."""

    def __init__(self, workers: int, round: int) -> None:
        super().__init__(workers)
        self._at = round
        self.asked: list[int] = []  # rounds of the first epoch, once for each worker

    def send(self, worker: str, task: Task) -> None:
        if task.epoch == 0:
            self.asked.append(task.round)
        if task.epoch == 0 and task.round == self._at and worker == self.workers[-1] and worker in self._replicas:
            self.release(worker)
            self._events.append(Left(worker, "it was killed"))
            return
        super().send(worker, task)


@pytest.mark.parametrize("round", [0, 3, 6])
def test_a_death_costs_a_stretch_at_most(make: Any, round: int) -> None:
    wire, compression = Dying(3, round), make(4)
    watcher = Watcher()
    found = trained(compression, wire, observers=[watcher])
    assert found.digest == wanted(make).digest
    assert [record["round"] for record in watcher.rounds] == list(range(9)) * 2  # nobody is told twice
    again = round % compression.every
    assert sorted(each for each in range(round) if wire.asked.count(each) > 3) == list(range(round - again, round))


# -- what is sent -----------------------------------------------------------------------------------------------------


def test_nothing_of_a_shard_is_lost_in_a_stretch(make: Any) -> None:
    """What a shard sends in a stretch stands for all of its gradients, but for the rounding of the last."""
    compression = make(4)
    if compression.every == 1:
        pytest.skip("it says that it forgets")
    stretches = Stretches(compression, LAYOUT, 1, PLAN.rounds)
    packer, rng = Packer(stretches, LAYOUT, SUMS, PLAN), np.random.default_rng(0)
    gone, came = np.zeros(LAYOUT.size), np.zeros(LAYOUT.size)
    for round in range(4):
        assert packer.begin(Task("", "train", 0, round, 1, 2))
        gradient = torch.from_numpy(rng.normal(size=LAYOUT.size).astype(np.float32))
        gone += gradient.numpy()
        found = packer.leaf(1, Sum(list(LAYOUT.views(gradient).values()), np.ones(SUMS.size)))
        packed, form = packer.partial(1, 2, found).vector, stretches.sent(round).form
        assert packed is not None
        sent = torch.from_numpy(unpack(packed, form.size))
        if round == 3:
            gone = came + rounded(stretches.sent(round).code, (gone - came).astype(np.float32))
        came += form.gradient(sent).numpy()
        assert (round == 3) == np.allclose(came, gone, rtol=0, atol=1e-4)


def test_it_says_how_much_is_sent(make: Any) -> None:
    form = make(4).form(LAYOUT)
    sent = form.sent(torch.ones(LAYOUT.size))
    assert len(sent) == form.size
    assert form.gradient(sent).shape == (LAYOUT.size,)


def test_sums_of_what_is_sent_stand_for_sums_or_it_says_that_they_do_not(make: Any) -> None:
    """So that the driver can make gradients of the tree's sum, whoever added it up."""
    form = make(4).form(LAYOUT)
    one, other = (form.sent(torch.randn(LAYOUT.size)) for _ in range(2))
    assert torch.allclose(form.gradient(one + other), form.gradient(one) + form.gradient(other)) == form.adds


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_stretches_have_a_whole_number_of_sums(make: Any, every: Any) -> None:
    if make(4).every == 1:
        pytest.skip("it keeps nothing")
    with pytest.raises(dt.errors.BadInput, match="every must be a whole number and at least 1"):
        make(every)
