"""What benchmarks compare is the same work: the peers' parts that can be seen without measuring."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import cost_model, network, table
from benchmarks.peers import __main__ as peers
from benchmarks.peers import futures
from benchmarks.peers.training import SHARE, Shuffled, model, rows_of
from benchmarks.problems import write_table

#: what scripts need that tests do not
EXTRA = {"ray_train": "ray", "dask_pytorch_ddp": "dask_pytorch_ddp"}


@pytest.fixture
def rows(tmp_path: Path) -> tuple[Tensor, Tensor]:
    """All rows of a table."""
    return rows_of(write_table(tmp_path / "table", 1200, 4))


@pytest.mark.parametrize("name", [peer.script for peer in table.PEERS.values()])
def test_each_peer_has_a_script(name: str) -> None:
    if (package := EXTRA.get(name)) and find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    assert callable(import_module(f"benchmarks.peers.{name}").seconds)


def test_what_is_not_installed_has_no_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(peers, "import_module", missing)
    with pytest.raises(ModuleNotFoundError):  # of ours
        peers.seconds("nobody", tmp_path, 0)
    monkeypatch.setattr(peers, "import_module", lambda name: missing("ray"))
    assert peers.seconds("ray_train", tmp_path, 0) is None


def test_workers_share_out_all_rows(tmp_path: Path, rows: tuple[Tensor, Tensor]) -> None:
    shares = [rows_of(tmp_path / "table", rank, 2)[0] for rank in range(2)]
    assert torch.equal(torch.cat(shares).sort(0).values, rows[0].sort(0).values)


def test_an_epoch_has_every_row_once(rows: tuple[Tensor, Tensor]) -> None:
    seen = torch.cat([X for X, _ in Shuffled(*rows, SHARE)])
    assert torch.equal(seen.sort(0).values, rows[0].sort(0).values)


def test_a_task_returns_the_gradient_of_its_rows(rows: tuple[Tensor, Tensor]) -> None:
    module, order = model(), torch.arange(len(rows[0]))
    parameters = torch.nn.utils.parameters_to_vector(module.parameters()).detach().numpy()
    found = futures.gradient(model(), rows, order, 1, parameters)
    F.cross_entropy(module(rows[0][SHARE : 2 * SHARE]), rows[1][SHARE : 2 * SHARE]).backward()
    wanted = torch.cat([parameter.grad.flatten() for parameter in module.parameters()]).numpy()
    np.testing.assert_array_equal(found, wanted)


def test_turns_that_fail_are_left_out_of_the_ratio() -> None:
    rates: table.Rates = {table.OURS: [30.0, 40.0], "Ray Train": [None, 20.0], "DDP, DataLoader": [None, None]}
    found = table.figures(rates)
    assert found["Ray Train"][f"{table.OURS} / this"]["p50"] == 2
    assert found["Ray Train"]["turns"] == 1
    assert found["DDP, DataLoader"] == "not installed, or failed"


def test_payload_is_what_goes_out_to_each_worker_and_comes_back() -> None:
    found = {"bare": 1.25e8, "remote": [4.0], "local": [0.8], "bytes": [399310240]}
    figures = network.figures(found, mbit=1000)
    assert figures["parameters"] == 24_956_890
    assert figures["payload of a round, MB"] == 399.3
    assert figures["wire time / (payload / bandwidth)"]["p50"] == figures["wire time / bare connection"]["p50"]
    assert figures["remote bytes / payload"]["p50"] == 1


def test_an_error_is_what_a_prediction_is_off_by() -> None:
    local = [{"seconds": 0.5, "reduce": 0.1, "step": 0.1}]
    plan = cost_model.predicted(3, local, cost_model.WIDTH, 200, "sharded")
    assert (plan.topology, plan.compute, plan.step) == ("sharded", pytest.approx(0.3), pytest.approx(0.2))
    took = [{"seconds": plan.seconds / 1.1}]
    (row,) = cost_model.compared([{"workers": 3, "local": local, "sharded": took}], cost_model.WIDTH, 200)
    assert (row["workers"], row["way"], row["error"]) == (3, "sharded", 0.1)
