"""Whatever goes wrong, and wherever a run is resumed, the bits stay as they are."""

import pytest

from tests.chaos import schedule, schedules

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
def test_results_are_those_of_one_worker_on_which_all_goes_well(batch: int) -> None:
    happened = schedules(BATCH, first_seed=batch * BATCH)
    assert happened["schedules"] == BATCH
    assert [fault for fault in USUAL if not happened[fault]] == []


def test_a_schedule_can_be_run_again_to_look_into_it() -> None:
    assert schedule(2) == schedule(2)
