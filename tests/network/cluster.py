"""A scheduler, workers and a driver on hosts of their own."""

import json
import os
import select
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.network.doors import FOLDER, HOST, PATIENCE, door
from tests.network.hosts import Network, connected, ended

WORKERS = ("amy", "bob", "cat", "dan")
HOSTS = ("scheduler", "driver", *WORKERS)
DASK = str(Path(sys.executable).with_name("dask"))
#: of workers that have torch when they join: rounds are over in less time than importing it takes
WORKER = ("--nthreads", "1", "--no-dashboard", "--no-nanny", "--preload", "dasktrain.trainer")
ROOT = Path(__file__).parents[2]
#: everybody gives a silent peer up within seconds; TCP does so after 11 s, which is the least that Dask takes
HASTE = {
    "DASK_DASKTRAIN__TIMEOUTS__SILENCE": "2s",
    "DASK_DASKTRAIN__TIMEOUTS__CLOSE": "2s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "11s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s",
}


class Cluster:
    """Made by `running`.

    Attributes
    ----------
    network : Network
        With `HOSTS`.
    lost : list of str
        Hosts that need another worker before the next run.
    """

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self._folder = network, folder
        self.lost: list[str] = []
        self._address = f"tcp://{network.address('scheduler')}:8786"
        self._workers: dict[str, subprocess.Popen[Any]] = {}
        self._names: dict[str, str] = {}  # host -> name of its worker, another for each that is started
        scheduler = ("scheduler", "--host", network.address("scheduler"), "--port", "8786", "--no-dashboard")
        self._start("scheduler", DASK, *scheduler)
        for host in WORKERS:
            self._start_worker(host)
        driver = (sys.executable, "-m", "tests.network.driver", self._address)
        self._driver = self._start("driver", *driver, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _start(self, host: str, *command: str, **options: Any) -> "subprocess.Popen[Any]":
        environment = os.environ | HASTE | {FOLDER: str(self._folder), HOST: host}
        with (self._folder / f"{host}.log").open("ab") as log:
            told = {"stdout": log, "stderr": log} | options
            return self.network.start(host, *command, env=environment, cwd=ROOT, **told)

    def _start_worker(self, host: str) -> None:
        self._names[host] = f"{host}-{uuid.uuid4().hex[:6]}"
        place = ("--host", self.network.address(host), "--local-directory", str(self._folder / f"{host}.spill"))
        options = (*WORKER, "--name", self._names[host])
        self._workers[host] = self._start(host, DASK, "worker", self._address, *place, *options)

    def _restore(self) -> None:
        """Heal the links of hosts that are lost, and start their workers anew."""
        for host in self.lost:
            self._workers[host].kill()  # asked to end, it would first tell a scheduler that it cannot reach
            ended(self._workers[host])
            self.network.heal(host)
            self._start_worker(host)
        self.lost = []

    # -- runs -------------------------------------------------------------------------------------------------

    def begin(self, hold: int = -1) -> None:
        """Have the driver train once these workers are there and no others, and say so after `hold` rounds and wait."""
        self._restore()
        self.tell(workers=sorted(self._names.values()), hold=hold)

    @contextmanager
    def in_a_round(self, hosts: Sequence[str], hold: int = -1) -> Iterator[None]:
        """Begin; while the block runs, the workers of `hosts` stand still in the middle of a round."""
        with ExitStack() as doors:
            stopped = [doors.enter_context(door(self._folder, host)) for host in hosts]
            self.begin(hold)
            for await_worker in stopped:
                await_worker()
            yield

    def tell(self, **what: Any) -> None:
        """Send the driver a line."""
        assert self._driver.stdin is not None
        self._driver.stdin.write(json.dumps(what).encode() + b"\n")
        self._driver.stdin.flush()

    def said(self) -> dict[str, Any]:
        """Return the next line that the driver says."""
        pipe = self._driver.stdout
        assert pipe is not None
        if not select.select([pipe], [], [], PATIENCE)[0] or not (line := pipe.readline()):
            raise TimeoutError(f"The driver must say something within {PATIENCE:g} s, however:\n{self._logs()}")
        said: dict[str, Any] = json.loads(line)
        return said

    def _logs(self) -> str:
        return "\n".join(f"{log.name}:\n{log.read_text()[-3000:]}" for log in self._folder.glob("*.log"))


@contextmanager
def running(folder: Path, delay: float = 0.0) -> Iterator[Cluster]:
    """Start everything, and end it afterwards."""
    with connected(*HOSTS, delay=delay) as network:
        yield Cluster(network, folder)
