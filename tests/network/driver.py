"""What the driver's host runs: it trains whenever it is told to, and says how that goes, in lines of JSON."""

import json
import sys
from threading import Event
from time import monotonic
from typing import Any

from distributed import Client

import dasktrain as dt
from tests.network.doors import PATIENCE, Stopping
from tests.problems import PROBLEMS, SETTINGS

PROBLEM = PROBLEMS[2]


class Holds(dt.Observer):
    """Says that so many rounds are done, and waits for a line."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    def start(self, run: dt.observe.Run) -> None:
        self._run = run

    def round(self, record: dict[str, Any]) -> None:
        if self._run.cursor.done == self._rounds:
            say(done=self._rounds)
            sys.stdin.readline()


class Notes(dt.Observer):
    """Keeps what is told of workers."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def stage(self, text: str) -> None:
        self.told.append(text)


def fit(client: object, *observers: dt.Observer) -> dt.Result:
    """Train; the digest is the same on every client."""
    trainer = PROBLEM.trainer(list(observers))
    trainer.model = lambda schema: Stopping()
    return trainer.fit(PROBLEM.data, client=client, **SETTINGS)  # type: ignore[arg-type]


def await_workers(client: Client, names: list[str]) -> None:
    """Wait until these workers are there, and the scheduler has forgotten all others."""
    deadline, tick = monotonic() + PATIENCE, Event()
    while (found := sorted(worker["name"] for worker in members(client))) != names:
        if monotonic() > deadline:
            raise TimeoutError(f"Workers {names} must be there within {PATIENCE:g} s, however there are {found}")
        tick.wait(0.05)


def members(client: Client) -> list[dict[str, Any]]:
    """Return what the scheduler knows of its workers."""
    return list(client.sync(client.scheduler.identity, n_workers=-1)["workers"].values())


def say(**what: Any) -> None:
    """Print a line."""
    print(json.dumps(what), flush=True)


def main(scheduler: str) -> None:
    """Train once for every line: which workers there must be, and the round to hold after."""
    with Client(scheduler, timeout="60s", set_as_default=False) as client:
        for line in sys.stdin:
            told, notes = json.loads(line), Notes()
            await_workers(client, told["workers"])
            say(digest=fit(client, notes, Holds(told["hold"])).digest, told=notes.told)


if __name__ == "__main__":
    main(sys.argv[1])
