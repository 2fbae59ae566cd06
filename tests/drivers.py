"""Drivers in processes of their own, which are killed in the middle of a run."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from distributed import Client

import dasktrain as dt
from tests.problems import PROBLEMS

PATIENCE = 20.0


class Says(dt.Observer):
    """Says what it is told, and that a round is over."""

    runs_on = "client"

    def __init__(self, to: Connection) -> None:
        self._to = to

    def stage(self, text: str) -> None:
        self._to.send(text)

    def round(self, record: dict[str, Any]) -> None:
        self._to.send("round")


@contextmanager
def driving(client: Client, problem: int, **settings: Any) -> Iterator[tuple[BaseProcess, Connection]]:
    """Start a driver of a run; yield its process, and what it says. It is killed afterwards."""
    said, to = multiprocessing.Pipe(duplex=False)
    arguments = (client.scheduler.address, problem, settings, to)
    driver = multiprocessing.get_context("forkserver").Process(target=_drive, args=arguments)
    with said, to:
        driver.start()
        try:
            yield driver, said
        finally:
            driver.kill()
            driver.join(PATIENCE)


def said_of_a_round(said: Connection) -> list[str]:
    """Return what a driver says until its first round is over."""
    told: list[str] = []
    while not told or told[-1] != "round":
        assert said.poll(PATIENCE)
        told.append(said.recv())
    return told


def _drive(scheduler: str, problem: int, settings: dict[str, Any], to: Connection) -> None:
    with Client(scheduler, set_as_default=False) as client:
        PROBLEMS[problem].trainer([Says(to)]).fit(PROBLEMS[problem].data, client=client, **settings)
