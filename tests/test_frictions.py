"""What newcomers run into: each heading of docs/troubleshooting.md has tests that it is gone, or met with advice."""

import multiprocessing
import re
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import pandas as pd
import pytest
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.errors import BadInput
from tests.small import LABELS, SGD, fit, frame, linear, table
from tests.test_docs import is_there

PAGE = (Path(__file__).parents[1] / "docs" / "troubleshooting.md").read_text()
HEADINGS = re.findall(r"^## \d+\. (.*)$", PAGE, re.MULTILINE)
HERE, CLUSTER = "tests/test_frictions.py", "tests/cluster/test_frictions.py"
#: heading -> its tests, most of which are where the rest of their subject is tested
TESTS = {
    "Versions differ": (
        "tests/cluster/test_processes.py::test_worker_without_a_package_is_refused_by_name",
        "tests/cluster/test_processes.py::test_worker_with_another_torch_is_refused_by_name",
        "tests/test_inspection.py::test_other_versions_are_found",
    ),
    "A module is missing on the scheduler or the workers": (
        "tests/cluster/test_processes.py::test_scheduler_needs_neither_torch_nor_dasktrain",
        "tests/cluster/test_user_code.py::test_users_classes_get_to_workers",
        "tests/cluster/test_user_code.py::test_package_that_is_not_sent_is_named",
    ),
    "A script without main guard": (f"{HERE}::test_script_without_a_main_guard_is_told_of_it",),
    "Threads": (f"{CLUSTER}::test_a_replica_has_its_workers_threads_although_dask_gives_torch_one",),
    "DataLoader in a worker": (f"{CLUSTER}::test_a_dataloader_with_processes_fails_on_a_worker_and_we_need_none",),
    "Partitions of X and y do not match": (
        f"{HERE}::test_selections_of_one_parquet_have_other_partitions_and_train_alike",
    ),
    "Empty partitions": (
        f"{HERE}::test_partitions_that_a_filter_emptied_change_nothing",
        "tests/test_table.py::test_parquet_of_several_files_one_of_them_empty",
        "tests/test_same_bits.py::test_digest_equals_the_reference",
    ),
    "Uneven rows": (
        "tests/test_plan.py::test_rounds_are_as_few_and_as_even_as_can_be",
        "tests/cluster/test_leaves_nothing.py::test_every_row_is_consumed_once_an_epoch",
    ),
    "Unknown chunk sizes": (
        "tests/test_arrays.py::test_any_form_of_array_gives_the_same_rows",
        "tests/test_arrays.py::test_blocks_of_unknown_size_must_have_equal_rows",
    ),
    "Unknown categories": (f"{HERE}::test_categories_that_dask_does_not_know_are_found",),
    "Column types": (
        "tests/test_encoders.py::test_numeric_dtype_becomes_floats",
        "tests/test_encoders.py::test_other_dtypes_have_no_encoding",
        "tests/test_table.py::test_unsupported_column_is_named_with_its_dtype_and_a_fix",
    ),
    "Sending large graph": (
        f"{CLUSTER}::test_a_large_model_is_in_no_graph_of_a_run",
        "tests/test_predict.py::test_model_is_in_the_graph_once",
    ),
    "A worker dies": (
        "tests/cluster/test_survival.py::test_a_worker_killed_in_any_phase_changes_no_bit",
        "tests/cluster/test_survival.py::test_no_worker_left_is_an_error_within_the_deadline",
        "tests/cluster/test_survival.py::test_a_stopped_worker_is_backed_up_and_its_late_answer_dropped",
    ),
    "Addresses and network interfaces": (
        "tests/cluster/test_remote.py::test_a_client_that_cannot_reach_the_workers_gets_a_driver_on_the_cluster",
        "tests/network/test_partitions.py::test_partitions_in_the_middle_of_a_round_change_no_bit",
    ),
    "No progress is seen": (
        "tests/test_observe.py::test_progress_in_a_log_moves_no_cursor",
        "tests/test_observe.py::test_progress_is_what_a_trainer_shows_by_default",
        "tests/cluster/test_remote.py::test_driver_on_the_cluster_gives_the_same_bits_and_shows_the_same",
    ),
    "processes=False": (
        "tests/cluster/test_same_bits_on_clusters.py::test_digest_equals_the_reference_in_one_process",
    ),
    "Commands that are no more": (
        "tests/test_manifests.py::test_pods_run_todays_commands",
        "tests/test_manifests.py::test_the_charts_commands_are_in_the_image",
        "tests/cluster/test_faults.py::test_no_workers_within_the_deadline",
    ),
    "Sorted data": (
        f"{HERE}::test_rounds_of_sorted_data_have_the_mix_if_they_are_asked_to",
        "tests/test_plan.py::test_stratified_window_has_its_mix_in_every_round",
    ),
    "Two jobs at once": ("tests/cluster/test_survival.py::test_two_runs_at_once_end_with_their_own_bits",),
    "Predictions do not fit into memory": (
        "tests/test_predict.py::test_nothing_is_computed_until_asked",
        "tests/test_predict.py::test_predictions_can_go_on_in_dask",
    ),
}


def test_every_heading_has_tests_and_every_test_is_there() -> None:
    assert len(HEADINGS) == 20
    assert list(TESTS) == HEADINGS
    assert [test for tests in TESTS.values() for test in tests if not is_there(test)] == []


def test_what_is_here_is_of_some_heading() -> None:
    named = {test for tests in TESTS.values() for test in tests}
    for file in (HERE, CLUSTER):
        tests = re.findall(r"^def (test_\w+)", (Path(__file__).parents[1] / file).read_text(), re.MULTILINE)
        others = {test for test in tests if f"{file}::{test}" not in named}
        assert others <= {
            "test_every_heading_has_tests_and_every_test_is_there",
            "test_what_is_here_is_of_some_heading",
        }


def test_script_without_a_main_guard_is_told_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that is being started, as those are that read a script whose cluster they are to be of."""
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    trainer = dt.Trainer(linear, nn.CrossEntropyLoss(), SGD, observers=[])
    with pytest.raises(RuntimeError, match="bootstrapping phase"):
        multiprocessing.get_context("spawn").Process(target=print).start()
    with pytest.raises(BadInput, match='below if __name__ == "__main__":'):
        trainer.fit(table())


def test_selections_of_one_parquet_have_other_partitions_and_train_alike(tmp_path: Path) -> None:
    wide = frame(200).assign(**{f"more{number}": 1.0 * number for number in range(20)})
    dd.from_pandas(wide, npartitions=10).to_parquet(tmp_path)
    whole = dd.read_parquet(tmp_path)
    X, y = whole.drop(columns="label"), whole["label"]
    assert X.optimize().npartitions != y.optimize().npartitions
    models = [dt.TabularClassifier(epochs=1, client=dt.LocalWire()) for _ in range(2)]
    together, apart = models[0].fit(whole, y="label"), models[1].fit(X, y)
    assert apart.result_.digest == together.result_.digest


def test_partitions_that_a_filter_emptied_change_nothing() -> None:
    few = dd.from_pandas(frame(80).assign(place=range(80)), npartitions=8)
    kept = few[few.place >= 60]
    assert [len(part) for part in dask.compute(*kept.to_delayed(), scheduler="sync")][:5] == [0] * 5
    result = fit(dt.Table(kept[["a", "b", "label"]], target="label"), dt.LocalWire(3))
    assert sum(record["rows"] for record in result.history.rounds) == 20
    with pytest.raises(BadInput, match="all 8 partitions are empty"):
        fit(dt.Table(few[few.place > 1000][["a", "b", "label"]], target="label"))


def test_categories_that_dask_does_not_know_are_found(tmp_path: Path) -> None:
    table = frame(80)[["label", "a"]].assign(shop=pd.Categorical(["north", "south"] * 40))
    dd.from_pandas(table, npartitions=4).to_parquet(tmp_path)
    lazy = dd.read_parquet(tmp_path)
    lazy["shop"] = lazy.shop.astype("category")
    assert not lazy.shop.cat.known
    encoding = fit(dt.Table(lazy, "label", numeric=[], categorical=["shop"]), model=_embedding).encoding
    assert encoding.categorical[0].values == ("north", "south")


def _embedding(schema: dt.Schema) -> nn.Module:
    return nn.Sequential(nn.Embedding(schema.cardinalities[0], schema.num_outputs), nn.Flatten())


def test_rounds_of_sorted_data_have_the_mix_if_they_are_asked_to() -> None:
    ordered = dd.from_pandas(frame(120).sort_values("label")[["a", "label"]].reset_index(drop=True), npartitions=6)

    def high(output: Tensor, target: Tensor) -> Tensor:
        return (target == LABELS.index("high")).float()

    def unevenness(**settings: Any) -> float:
        data = dt.Table(ordered, "label")
        rounds = fit(data, metrics={"high": high}, shards=2, batch_size=20, **settings).history.rounds
        shares = [record["high"] for record in rounds]
        return max(shares) - min(shares)

    assert unevenness(partition="stratified") < 0.2 < unevenness(shuffle=False)
