"""Progress in a notebook, as a real Jupyter kernel shows it."""

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
SETTING_UP = """
import torch
import dasktrain as dt
from tests.small import fit, table

class Raising(dt.Observer):
    def epoch(self, record):
        raise LookupError("an observer's own error")

progress = dt.Progress()
"""
IN_THIS_PROCESS = "fit(table(), validation=table(20), epochs=3, observers=[progress]); print('beside it')"
FAILING = """
for settings in {"observers": [progress, Raising()]}, {"observers": [progress], "loss": lambda output, target: None}:
    try:
        fit(table(), **settings)
    except (LookupError, dt.errors.ModelError) as error:
        print(error)
"""
ON_A_CLUSTER = """
import dask
from dask.distributed import Client, LocalCluster

with (
    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
    LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
    Client(cluster) as client,
):
    fit(table(), client, epochs=2, observers=[progress])
"""


@pytest.fixture(scope="module")
def outputs() -> list[list[Any]]:
    """Execute the notebook, and return the outputs of each of its cells."""
    cells = [SETTING_UP, IN_THIS_PROCESS, IN_THIS_PROCESS, FAILING, ON_A_CLUSTER]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    client = NotebookClient(notebook, timeout=100, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}})
    return [cell.outputs for cell in client.execute(env=os.environ | {"PYTHONPATH": path}).cells]


def shown(outputs: list[Any]) -> list[str]:
    return [output.data["text/html"] for output in outputs if output.output_type == "display_data"]


def printed(outputs: list[Any]) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream")


@pytest.mark.parametrize("cell", [1, 2, 4], ids=["in this process", "again", "on a cluster"])
def test_run_is_one_output_with_a_line_an_epoch(outputs: list[list[Any]], cell: int) -> None:
    (html,) = shown(outputs[cell])
    assert html.count("3/3") == (2 if cell == 4 else 3)
    for text in ("looking for workers", "60 rows, 3 rounds an epoch", "rows/s", "loss"):
        assert html.count(text) >= 1, text
    assert html.count("looking for workers") == 1
    assert "\x1b" not in html


def test_output_has_a_text_for_those_that_show_no_html(outputs: list[list[Any]]) -> None:
    (text,) = (output.data["text/plain"] for output in outputs[1] if output.output_type == "display_data")
    assert text.count("3/3") == 3


def test_nothing_is_written_beside_it(outputs: list[list[Any]]) -> None:
    assert printed(outputs[1]) == "beside it\n"
    assert not any(output.output_type == "error" for cell in outputs for output in cell)


def test_run_that_failed_leaves_what_was_shown_and_the_next_has_an_output_of_its_own(outputs: list[list[Any]]) -> None:
    html = shown(outputs[3])
    assert [each.count("looking for workers") for each in html] == [1, 1]
    assert "60 rows, 3 rounds an epoch" in html[0]
    assert "own error" in printed(outputs[3])
