"""Frictions that need a cluster; tests/test_frictions.py says which."""

import multiprocessing
import warnings
from typing import Any

import dask
import dask.bag as db
import pytest
import torch
from distributed import Client, LocalCluster, get_worker
from torch import nn
from torch.utils.data import DataLoader

import dasktrain as dt
from tests.problems import PROBLEMS
from tests.small import SGD, fit, frame

#: more than this of a graph is warned of
LARGE = "100 kB"


def test_a_replica_has_its_workers_threads_although_dask_gives_torch_one() -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        assert client.submit(torch.get_num_threads).result() == 1
        result = fit(dt.Arrays(*PROBLEMS[0].arrays), client, metrics={"threads": _threads}, shards=1)
        assert [record["threads"] for record in result.history] == [2.0]
        assert result.settings["threads"] == 2
        assert client.submit(torch.get_num_threads, pure=False).result() == 1


def _threads(output: Any, target: Any) -> torch.Tensor:
    return torch.full((len(target),), float(torch.get_num_threads()))


def test_a_dataloader_with_processes_fails_on_a_worker_and_we_need_none(clean: Client) -> None:
    loading = clean.submit(lambda: list(DataLoader(list(range(4)), num_workers=1)))  # type: ignore[arg-type]
    assert "daemonic processes are not allowed to have children" in str(loading.exception())
    loading.release()
    bag = db.from_sequence([(number, number % 2) for number in range(40)], npartitions=4)
    trainer = dt.Trainer(nn.Linear(1, 2), nn.CrossEntropyLoss(), SGD, observers=[])
    assert len(trainer.fit(dt.Records(bag, _collate), epochs=1, batch_size=10, client=clean).history.rounds) == 4


def _collate(records: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    assert not multiprocessing.current_process().daemon or not multiprocessing.active_children()
    return torch.tensor([[float(number)] for number, _ in records]), torch.tensor([label for _, label in records])


def test_a_large_model_is_in_no_graph_of_a_run(clean: Client) -> None:
    model = nn.Sequential(nn.Linear(2, 20_000), nn.Linear(20_000, 3))
    data = dt.Table(frame()[["a", "b", "label"]], "label")
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": LARGE}):
        with pytest.warns(UserWarning, match="Sending large graph"):
            clean.submit(_evaluated, model).result()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fit(data, clean, model=model)


def _evaluated(model: nn.Module) -> str:
    return str(get_worker().address) if model.eval() else ""
