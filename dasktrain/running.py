"""Which runs a cluster has, whoever drives them."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from distributed import Client

from dasktrain.errors import BadInput
from dasktrain.remote import RemoteRun, control_topic, driver_name
from dasktrain.wire.leases import LEASE


@dataclass(frozen=True)
class RunStatus:
    """What a cluster knows of a run.

    Attributes
    ----------
    id : str
        What :func:`dasktrain.attach` and :func:`dasktrain.stop` take.
    driver : {"client", "cluster"}
        Where its rounds are driven.
    state : str
        "running", or how it ended: "finished" until its result is fetched, or "error".
    workers : int
        Leased now.
    epoch, round : int or None
        Last one done, from 0; None where the driver is beside a client, which alone knows.
    loss : float or None
        Of that round.
    """

    id: str
    driver: Literal["client", "cluster"]
    state: str
    workers: int
    epoch: int | None = None
    round: int | None = None
    loss: float | None = None


def runs(client: Client | None = None) -> list[RunStatus]:
    """Return the runs on a cluster, those with a driver there first.

    Parameters
    ----------
    client
        A Dask Client; None: the current one.
    """
    client = client or Client.current()
    leases = _leases(client)
    published = [name for name in map(str, client.list_datasets()) if name.startswith(driver_name(""))]
    there = [_on_cluster(client, name.removeprefix(driver_name("")), leases) for name in sorted(published)]
    elsewhere = sorted(leases.keys() - {run.id for run in there})
    return there + [RunStatus(run, "client", "running", leases[run]) for run in elsewhere]


def stop(run: str, client: Client | None = None) -> None:
    """Ask a run to end after the round under way; whoever waits for it has the result so far.

    Parameters
    ----------
    run
        Its id.
    client
        A Dask Client; None: the current one.

    Raises
    ------
    BadInput
        No such run is going on.
    """
    client = client or Client.current()
    going = [found.id for found in runs(client) if found.state == "running"]
    if run not in going:
        raise BadInput(f"A run must be going on to be stopped, however {run!r} is none of {going}")
    client.log_event(control_topic(run), "stop")


def _leases(client: Client) -> Counter[str]:
    """Return run -> workers that are leased for it."""
    held: Counter[str] = Counter()
    for worker, keys in client.processing().items():
        for key in map(str, keys):
            if key.startswith(LEASE):
                attempt = key.removeprefix(LEASE).removesuffix(f"-{worker}")
                held[attempt.partition("-")[0]] += 1  # a driver on the cluster tells its attempts apart behind a dash
    return held


def _on_cluster(client: Client, run: str, leases: Counter[str]) -> RunStatus:
    future = client.get_dataset(driver_name(run))
    state = {"pending": "running"}.get(future.status, future.status)
    rounds = RemoteRun(run, client, future, []).progress().rounds
    last = rounds[-1] if rounds else {}
    return RunStatus(run, "cluster", state, leases[run], *(last.get(figure) for figure in ("epoch", "round", "loss")))
