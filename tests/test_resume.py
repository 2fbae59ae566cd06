"""Stop anywhere, go on elsewhere: the digest and the history are those of a run that never stopped."""

import json
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

import dasktrain as dt
from dasktrain.checkpoint import Store
from dasktrain.errors import AttachError, BadInput
from dasktrain.observe import PARTS
from tests.problems import OPTIMIZERS, PROBLEMS, SETTINGS, expected
from tests.small import Watcher, fit, linear, table

ROUNDS = 9
SCHEDULERS: dict[str, tuple[Any, str]] = {
    "none": (None, "epoch"),
    "steps": (partial(lr_scheduler.StepLR, step_size=1, gamma=0.5), "epoch"),
    "one cycle": (partial(lr_scheduler.OneCycleLR, max_lr=0.2, total_steps=40), "round"),
    "milestones": (partial(lr_scheduler.MultiStepLR, milestones=[3, 5, 11]), "round"),
    "plateau": (partial(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=1.0), "epoch"),
}


@pytest.fixture
def url() -> Iterator[str]:
    """A place that is empty before and after."""
    emptied()
    yield "memory://resume"
    emptied()


def emptied() -> None:
    fs = fsspec.filesystem("memory")
    if fs.exists("/resume"):
        fs.rm("/resume", recursive=True)


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in record.items() if "second" not in name and name not in PARTS}
        for record in records
    ]


@given(
    st.sampled_from(["normalised", "embedded"]),
    st.sampled_from(sorted(OPTIMIZERS)),
    st.sampled_from(sorted(SCHEDULERS)),
    st.sampled_from(["1 rounds", "2 rounds", "5 rounds", "1 epoch", "1 h"]),
    st.lists(st.integers(1, 3 * ROUNDS), max_size=3),
    st.lists(st.integers(1, 4), min_size=4, max_size=4),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_stopped_any_number_of_times_a_run_ends_as_if_it_had_not(
    model: str, optimizer: str, scheduler: str, every: str, stops: list[int], workers: list[int]
) -> None:
    problem = next(each for each in PROBLEMS if (each.model, each.optimizer) == (model, optimizer))
    emptied()

    def run(observers: list[dt.Observer], workers: int, **other: Any) -> dt.Result:
        trainer = problem.trainer(observers)
        trainer.scheduler, trainer.schedule_every = SCHEDULERS[scheduler]
        X, y = problem.arrays
        validation = dt.Arrays(X[:90], y[:90])
        return trainer.fit(problem.data, validation, client=dt.LocalWire(workers), **(SETTINGS | {"epochs": 3} | other))

    def early() -> dt.EarlyStopping:
        return dt.EarlyStopping("valid_loss", patience=2, min_delta=0.3)

    whole, resume = run([early()], 1), None
    for stop, count in zip(sorted(stops), workers, strict=False):
        run([early(), dt.Checkpoint("memory://resume", every, keep=2)], count, max_rounds=stop, resume=resume)
        resume = "memory://resume"
    last = run([early(), dt.Checkpoint("memory://resume", every)], workers[-1], resume=resume)
    assert last.digest == whole.digest
    assert last.ended == whole.ended
    assert timeless(last.history) == timeless(whole.history)
    assert timeless(last.history.rounds) == timeless(whole.history.rounds)


def test_a_failed_run_leaves_its_last_round_and_goes_on_from_it(url: str) -> None:
    class Fails(dt.Observer):
        def round(self, record: dict[str, Any]) -> None:
            if (record["epoch"], record["round"]) == (1, 3):
                raise OSError("the window was closed")

    problem = PROBLEMS[2]
    with pytest.raises(OSError, match="window"):
        problem.trainer([Fails(), dt.Checkpoint(url, "100 rounds")]).fit(
            problem.data, client=dt.LocalWire(2), **SETTINGS
        )
    assert Store(url).numbers() == [ROUNDS + 4]
    watcher = Watcher()
    result = problem.trainer([watcher]).fit(problem.data, client=dt.LocalWire(), resume=url, **SETTINGS)
    assert len(watcher.rounds) == ROUNDS - 4
    assert result.digest == expected(problem)


def test_a_finished_run_is_finished_and_may_be_prolonged(url: str) -> None:
    short = fit(table(), epochs=2, observers=[dt.Checkpoint(url)])
    watcher = Watcher()
    assert fit(table(), epochs=2, observers=[watcher], resume=url).digest == short.digest
    assert watcher.rounds == []
    assert fit(table(), epochs=4, resume=url).digest == fit(table(), epochs=4).digest


def test_shards_are_those_of_the_checkpoint_and_workers_need_not_be(url: str) -> None:
    fit(table(), dt.LocalWire(20), epochs=1, observers=[dt.Checkpoint(url)])
    result = fit(table(), dt.LocalWire(1), epochs=3, resume=url)
    assert result.settings["shards"] == 32
    assert result.digest == fit(table(), dt.LocalWire(20), epochs=3).digest


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "batch size": ({"batch_size": 10}, "batch_size is 10 and was 20"),
    "shards": ({"shards": 5}, "shards is 5 and was 8"),
    "seed": ({"seed": 1}, "seed is 1 and was 0"),
    "shuffle": ({"shuffle": False}, "shuffle is False and was shard"),
    "partition": ({"partition": "random"}, "partition is random and was block"),
    "window": ({"window": 10}, "window is 10 and was 65536"),
    "optimizer": ({"optimizer": torch.optim.Adam}, "optimizer is Adam and was SGD"),
    "scheduler": ({"scheduler": partial(lr_scheduler.StepLR, step_size=1)}, "scheduler is StepLR and was NoneType"),
    "model": ({"model": lambda schema: nn.Sequential(linear(schema))}, "parameters is"),
    "validation": ({"validation": table(20)}, "the evaluate data has 8 partitions and had 0"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_plan_or_model_is_refused_and_named(url: str, other: str) -> None:
    fit(table(), epochs=1, observers=[dt.Checkpoint(url)])
    changed, message = OTHERS[other]
    watcher = Watcher()
    with pytest.raises(BadInput, match=rf"must have the plan, model and data of the checkpoint .*{message}"):
        fit(table(), epochs=3, resume=url, observers=[watcher], **changed)
    assert watcher.rounds == []


def test_another_data_set_is_refused_and_its_partitions_named(url: str) -> None:
    X, y = PROBLEMS[0].arrays
    settings = {"client": dt.LocalWire(), **SETTINGS}
    PROBLEMS[0].trainer([dt.Checkpoint(url)]).fit(PROBLEMS[0].data, **settings)  # type: ignore[arg-type]
    data = PROBLEMS[0].data
    data.y = data.y.map_blocks(lambda block: block[::-1].copy() if len(block) in (33, 97) else block, dtype=y.dtype)
    with pytest.raises(BadInput, match=r"partitions 0, 4 of the train data hold other rows \(2 of 6\)"):
        PROBLEMS[0].trainer().fit(data, resume=url, **settings)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"the train data has \d+ partitions and had 6"):
        PROBLEMS[0].trainer().fit(dt.Arrays(X, y), resume=url, **settings)  # type: ignore[arg-type]


def test_frozen_parameters_must_be_the_same(url: str) -> None:
    def model(frozen: float) -> nn.Module:
        module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
        for parameter in module[0].parameters():
            nn.init.constant_(parameter, frozen)
            parameter.requires_grad_(False)
        return module

    torch.manual_seed(0)
    fit(table(), model=model(0.5), epochs=1, observers=[dt.Checkpoint(url)])
    with pytest.raises(BadInput, match="frozen parameters is"):
        fit(table(), model=model(0.6), epochs=2, resume=url)


def test_a_cluster_of_another_determinism_domain_is_refused(url: str) -> None:
    fit(table(), epochs=1, observers=[dt.Checkpoint(url)])
    with fsspec.open(f"{url}/round-{3:012d}/dasktrain.json") as file:
        facts = json.load(file)
    tensors, _ = Store(url).newest()
    facts["domain"]["kernel path"] = "VSX"
    Store(url).write(4, tensors, {name: value for name, value in facts.items() if name not in ("seal", "sha256")})
    with pytest.raises(AttachError, match=r"local-000 must be in the run's determinism domain.*kernel path is .* VSX"):
        fit(table(), epochs=2, resume=url)
    assert fit(table(), epochs=2, resume=url, determinism="off").ended == "epochs"


def test_nothing_there_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="complete checkpoint"):
        fit(table(), resume=str(tmp_path / "nothing"))


def test_checkpoints_of_another_run_are_not_mixed_in(url: str) -> None:
    fit(table(), epochs=1, observers=[dt.Checkpoint(url)])
    with pytest.raises(BadInput, match=r"must hold no checkpoints of another run, however there is one after 3 rounds"):
        fit(table(), epochs=1, observers=[dt.Checkpoint(url)])


@pytest.mark.parametrize(
    ("every", "numbers"),
    [("1 round", [5, 6, 7]), ("2 rounds", [4, 6, 7]), ("1 epoch", [3, 6, 7]), ("2 epochs", [6, 7]), ("1 h", [7])],
)
def test_checkpoints_are_as_often_and_as_many_as_asked_for(url: str, every: str, numbers: list[int]) -> None:
    fit(table(), epochs=3, max_rounds=7, observers=[dt.Checkpoint(url, every, keep=3)])
    assert Store(url).numbers() == numbers


def test_checkpoints_go_by_the_clock_too(url: str) -> None:
    fit(table(), epochs=3, observers=[dt.Checkpoint(url, "1 us", keep=100)])
    assert Store(url).numbers() == list(range(1, 10))


@pytest.mark.parametrize("every", ["", "0 rounds", "epoch", "5 weeks of rounds", "-1 s", "1.5 rounds"])
def test_an_interval_that_cannot_be_read_is_refused(every: str) -> None:
    with pytest.raises(BadInput, match="every must be like"):
        dt.Checkpoint("memory://x", every)


def test_keeping_none_is_refused() -> None:
    with pytest.raises(BadInput, match="keep must be at least 1"):
        dt.Checkpoint("memory://x", keep=0)


def test_a_place_that_cannot_be_written_is_an_error_before_the_first_round(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    watcher = Watcher()
    with pytest.raises(BadInput):
        fit(table(), observers=[watcher, dt.Checkpoint(str(tmp_path / "file" / "x"))])
    assert watcher.rounds == []


def test_a_checkpoint_that_fails_warns_and_the_run_goes_on(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, write = fit(table(), epochs=2), Store.write

    def full(store: Store, number: int, *arguments: Any) -> None:
        if number == 2:
            raise OSError("No space left on device")
        write(store, number, *arguments)

    monkeypatch.setattr(Store, "write", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fit(table(), epochs=2, observers=[dt.Checkpoint(url, "2 rounds", keep=9)])
    assert [str(each.message) for each in caught if "No space left" in str(each.message)]
    assert result.digest == whole.digest
    assert Store(url).numbers() == [4, 6]


def test_a_step_that_raises_half_way_is_not_kept(url: str) -> None:
    class Fails(torch.optim.SGD):
        count = 0

        def step(self, closure: Any = None) -> Any:
            self.count += 1
            super().step()
            if self.count == 5:
                raise FloatingPointError("half a step")

    with pytest.raises(FloatingPointError):
        fit(table(), optimizer=partial(Fails, lr=0.1), epochs=3, observers=[dt.Checkpoint(url, "4 rounds")])
    assert Store(url).numbers() == [4]


def test_observers_that_moved_are_told_to_start_anew(url: str) -> None:
    early = dt.EarlyStopping("loss")
    fit(table(), epochs=1, observers=[early, dt.Checkpoint(url)])
    with pytest.warns(UserWarning, match="EarlyStopping is at place 1, which Checkpoint had"):
        fit(table(), epochs=2, observers=[Watcher(), early], resume=url)


def test_a_log_of_a_resumed_run_is_whole(url: str, tmp_path: Path) -> None:
    log = dt.Log(tmp_path / "rounds.jsonl", every="round")
    fit(table(), epochs=2, max_rounds=4, observers=[log, dt.Checkpoint(url)])
    fit(table(), epochs=2, observers=[dt.Log(tmp_path / "rounds.jsonl", every="round")], resume=url)
    lines = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["round"]) for line in lines] == [
        (epoch, round) for epoch in (0, 1) for round in range(3)
    ]


def test_history_of_rounds_is_the_same_object_the_result_has(url: str) -> None:
    fit(table(), epochs=1, observers=[dt.Checkpoint(url)])
    result = fit(table(), epochs=2, resume=url)
    assert np.isfinite([record["loss"] for record in result.history.rounds]).all()
    assert len(result.history.rounds) == 6


def test_a_run_interrupted_by_the_last_round_of_an_epoch_finishes_it_once_it_is_resumed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only then: what it recorded of the epoch when it ended is not the epoch's record."""

    def run(*observers: dt.Observer, **other: Any) -> dt.Result:
        return fit(table(), epochs=3, validation=table(20), observers=[*observers], **other)

    stops: list[threading.Event] = []

    class Interrupts(Watcher):
        def round(self, record: dict[str, Any]) -> None:
            if record["round"] == 2:
                stops[0].set()

    def in_this_thread(work: Any, stop: threading.Event) -> Any:
        stops.append(stop)
        return work()

    whole = run()
    with monkeypatch.context() as patch:
        patch.setattr("dasktrain.trainer._in_thread", in_this_thread)
        first = run(Interrupts(), dt.Checkpoint(url, "1 h"))
    assert (first.ended, len(first.history.rounds), "valid_loss" in first.history[0]) == ("interrupt", 3, False)
    again = run(dt.Checkpoint(url), resume=url, max_rounds=3)
    assert (again.ended, timeless(again.history)) == ("max_rounds", timeless(whole.history[:1]))
    last = run(resume=url)
    assert last.digest == whole.digest
    assert timeless(last.history) == timeless(whole.history)


def test_a_checkpoint_is_there_before_another_round_is_done(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write, seen = Store.write, list[int]()

    def slow(store: Store, *arguments: Any) -> None:
        threading.Event().wait(0.05)
        write(store, *arguments)

    class Looks(dt.Observer):
        def round(self, record: dict[str, Any]) -> None:
            seen.append(max(Store(url).numbers(), default=0))

    monkeypatch.setattr(Store, "write", slow)
    fit(table(), epochs=2, observers=[dt.Checkpoint(url, "1 round"), Looks()])
    assert seen == list(range(len(seen)))
