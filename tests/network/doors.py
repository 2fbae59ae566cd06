"""A place in the middle of a round where a worker stops until a test lets it go on."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from torch import Tensor, nn

from tests.problems import normalised

#: in the environment of a worker: the folder of the doors, and its host's name
FOLDER, HOST = "DASKTRAIN_TEST_DOORS", "DASKTRAIN_TEST_HOST"
#: seconds that anybody here waits for anybody
PATIENCE = 60.0
#: forward passes of a worker before it comes to its door: some rounds, and then some shards of the next
PASSES = 10


@contextmanager
def door(folder: Path, host: str) -> Iterator[Callable[[], None]]:
    """Have a host's worker stop in its next run, once; it goes on at the end of the block.

    Parameters
    ----------
    folder
        Of all doors: Unix sockets, which need no network.
    host
        The worker's.

    Yields
    ------
    Callable
        Waits until the worker has stopped.
    """
    path, worker = folder / host, ExitStack()
    with worker, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(PATIENCE)

        def await_worker() -> None:
            worker.enter_context(listener.accept()[0])
            path.unlink()  # no other stops here

        try:
            yield await_worker
        finally:
            path.unlink(missing_ok=True)


class Stopping(nn.Module):
    """Stops at the door of its host, if there is one; the same numbers as ever everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.passes = normalised(), 0

    def forward(self, x: Tensor) -> Tensor:
        """(rows, 6) -> (rows, classes)."""
        self.passes += self.training
        if self.passes >= PASSES and HOST in os.environ:
            _stop_at(os.path.join(os.environ[FOLDER], os.environ[HOST]))
        out: Tensor = self.body(x)
        return out


def _stop_at(path: str) -> None:
    if os.path.exists(path):
        with socket.socket(socket.AF_UNIX) as us, suppress(ConnectionError, FileNotFoundError):
            us.settimeout(PATIENCE)
            us.connect(path)
            us.recv(1)  # nothing comes: the door is opened by being closed
