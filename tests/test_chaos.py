"""Whatever goes wrong, and wherever a run is resumed, the bits stay as they are."""

from functools import partial

import fsspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dasktrain as dt
from tests.chaos import WHERE, schedule, schedules

BATCH = 20
#: what happens in every batch; the rest is rare
USUAL = (
    "answered twice",
    "answers to an older round",
    "asked again",
    "backed up",
    "failed",
    "joined",
    "killed",
    "killed while it computed",
    "nobody there",
    "refused",
    "resumed",
    "slow",
)


@pytest.mark.parametrize("batch", range(10))
def test_results_are_those_of_one_worker_on_which_all_goes_well(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_parts = bool(batch % 2)
    if in_parts:
        monkeypatch.setattr("dasktrain.cut.SIZE", 7)
    happened = schedules(BATCH, first_seed=batch * BATCH)
    assert happened["schedules"] == BATCH
    assert [fault for fault in USUAL if not happened[fault]] == []
    assert bool(happened["came in parts"]) == in_parts


class Moving(nn.Module):
    """Reads, while it trains, a buffer that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("usual", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x - self.usual)
        self.usual += 0.1 * (x.mean(dim=0) - self.usual)
        return output


def test_workers_are_those_of_the_run_they_resume_although_all_that_they_read_has_changed() -> None:
    rng = np.random.default_rng(1)
    data = dt.Arrays(rng.normal(size=(60, 3)).astype(np.float32), rng.integers(0, 2, 60))
    keeps = dt.Checkpoint(f"{WHERE}/moving", "1 round", keep=1)

    def fit(**settings: object) -> str:
        trainer = dt.Trainer(
            lambda schema: Moving(), nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=0.1), observers=[keeps]
        )
        return trainer.fit(data, client=dt.LocalWire(2), batch_size=20, **settings).digest  # type: ignore[arg-type]

    fit(max_rounds=2)
    resumed = fit(max_rounds=5, resume=keeps.url)
    fsspec.filesystem("memory").rm(keeps.url, recursive=True)
    assert resumed == fit(max_rounds=5)
    fsspec.filesystem("memory").rm(keeps.url, recursive=True)


def test_a_schedule_can_be_run_again_to_look_into_it() -> None:
    assert schedule(2) == schedule(2)
