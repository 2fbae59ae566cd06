"""On tls:// nobody reads parameters on their way, and nobody without the cluster's certificate gets a byte of them."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import dask
import pytest
import torch
from distributed import Client, LocalCluster
from distributed.security import Security
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.wire.watch import Watch
from tests.problems import PROBLEMS, SETTINGS
from tests.saboteurs import After

MARK = b"These parameters are a secret..."
PATIENCE = 10.0


class Marked(nn.Module):
    """Has parameters whose bytes one recognises, and which no step changes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3)
        self.mark = nn.Parameter(torch.frombuffer(bytearray(MARK * 500), dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, 6) -> (rows, 3)."""
        out: Tensor = self.body(x)
        return out


def fit(client: object, *observers: dt.Observer) -> dt.Result:
    trainer = PROBLEMS[0].trainer(list(observers))
    trainer.model, trainer.optimizer = lambda schema: Marked(), partial(torch.optim.SGD, lr=0.1)
    return trainer.fit(PROBLEMS[0].data, client=client, **SETTINGS)  # type: ignore[arg-type]


# -- on the way -------------------------------------------------------------------------------------------------------


class Tap:
    """Stands between a worker and everybody who connects to it, and keeps what passes."""

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.passed: dict[int, bytearray] = {}  # each direction of each connection

    async def serve(self, listener: socket.socket) -> None:
        """Serve until cancelled."""
        async with await asyncio.start_server(self._connected, sock=listener) as server:
            await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", self.worker)
        await asyncio.gather(self._pass_on(reader, outer), self._pass_on(inner, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = self.passed[len(self.passed)] = bytearray()
        try:
            while data := await reader.read(1 << 16):
                passed += data
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # one end is gone, and so will be the other
        finally:
            writer.close()


@contextmanager
def tapped(protocol: str, security: Security | None) -> Iterator[tuple[Client, Tap]]:
    """Start a worker that says it is where the tap is."""
    listener, tap = socket.create_server(("127.0.0.1", 0)), Tap(free_port())
    loop = asyncio.new_event_loop()
    serving = loop.create_task(tap.serve(listener))
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.wait([serving])), name="dasktrain-tap")
    thread.start()
    try:
        with (
            LocalCluster(
                n_workers=1,
                threads_per_worker=1,
                dashboard_address=":0",
                protocol=protocol,
                security=security,
                worker_port=tap.worker,
                contact_address=f"{protocol}://127.0.0.1:{listener.getsockname()[1]}",
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client, tap
    finally:
        loop.call_soon_threadsafe(serving.cancel)
        thread.join(PATIENCE)
        loop.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@pytest.mark.parametrize(("protocol", "legible"), [("tcp", True), ("tls", False)])
def test_parameters_can_be_read_on_the_way_by(protocol: str, legible: bool) -> None:
    security = Security.temporary() if protocol == "tls" else None
    with tapped(protocol, security) as (client, tap), dask.config.set({"dasktrain.shared-memory": False}):
        digest = fit(client).digest
    assert digest == fit(dt.LocalWire()).digest
    assert max(map(len, tap.passed.values())) > 18 * 500 * len(MARK), "rounds went another way"
    assert any(MARK in passed for passed in tap.passed.values()) is legible


# -- at the door ------------------------------------------------------------------------------------------------------


def heard(address: str, context: ssl.SSLContext | None) -> bytes:
    """Return what a worker says to somebody who connects; with None, it is said without TLS."""
    host, _, port = address.partition("://")[2].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as raw:
        try:
            if context is None:
                raw.sendall(bytes(100))
                return raw.recv(1 << 16)
            with context.wrap_socket(raw) as peer:
                return peer.recv(1 << 16)
        except (ssl.SSLError, ConnectionError):
            return b""


def context_of(security: Security | None) -> ssl.SSLContext:
    """Return how somebody with these certificates connects to a server whose own they do not care for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if security is not None:
        context = security.get_connection_args("client")["ssl_context"]
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def test_strangers_hear_nothing_from_a_worker_in_the_middle_of_a_run() -> None:
    security, found = Security.temporary(), dict[str, bytes]()

    def try_all() -> None:
        found["member"] = heard(worker, context_of(security))
        found["no certificate"] = heard(worker, context_of(None))
        found["certificate of another authority"] = heard(worker, context_of(Security.temporary()))
        found["no TLS"] = heard(worker, None)

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", protocol="tls", security=security) as c,
        Client(c, set_as_default=False) as client,
    ):
        [worker] = client.nthreads()
        digest = fit(client, After(5, try_all)).digest
    assert digest == fit(dt.LocalWire()).digest
    assert found.pop("member"), "not even a member of the cluster was heard"
    alert = found.pop("no TLS")
    assert len(alert) <= 7, "more was said than a TLS alert"
    assert found == dict.fromkeys(found, b"")


def test_a_driver_on_a_worker_watches_by_the_workers_certificate() -> None:
    """As on clusters whose workers are given certificates by options, or by a gateway: they have no client's."""
    everything = Security.temporary()
    with LocalCluster(n_workers=0, dashboard_address=":0", protocol="tls", security=everything) as cluster:
        files = {name: getattr(everything, name) for name in ("tls_ca_file", "tls_worker_cert", "tls_worker_key")}
        security = Security(require_encryption=True, **files)
        with Client(cluster.scheduler_address, security=security, name="worker", set_as_default=False) as client:
            watch = Watch(client, lambda event: None)
            assert not watch.lost
            watch.close()
