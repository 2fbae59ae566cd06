"""Two workers on one host and one on another: the driver's link carries a gradient for each host."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.network.cluster import DASK, ROOT, WORKER
from tests.network.hosts import connected, missing

SCHEDULER, PATIENCE = "tcp://10.77.0.1:8786", 120.0

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def said(module: str, workers: Sequence[str], folder: Path) -> Any:
    """Run workers on their hosts and a module on the driver's; return what it says."""
    with connected("driver", *dict.fromkeys(workers)) as network, (folder / "log").open("w") as log:

        def start(host: str, *command: str) -> None:
            network.start(host, *command, stdout=log, stderr=log, cwd=ROOT)

        start("driver", DASK, "scheduler", "--host", network.address("driver"), "--port", "8786", "--no-dashboard")
        for number, host in enumerate(workers):
            place = ("--host", network.address(host), "--local-directory", str(folder / str(number)))
            start(host, DASK, "worker", SCHEDULER, *place, *WORKER)
        command = (sys.executable, "-m", module, SCHEDULER, str(len(workers)))
        driver = network.start("driver", *command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT)
        text, _ = driver.communicate(timeout=PATIENCE)
    assert not driver.returncode, (folder / "log").read_text()[-3000:]
    return json.loads(text)


def test_a_gradient_crosses_the_drivers_link_once_for_each_host(tmp_path: Path) -> None:
    found = said("tests.network.together", ("amy", "amy", "bob"), tmp_path)
    assert len(set(found["digests"])) == 1
    together, apart = map(min, found["read"])  # in a round in which nobody was late
    assert together / apart == pytest.approx(2 / 3, abs=0.02)
