"""The promise, on Dask clusters of every size and kind: the digest is the reference's."""

import warnings
from collections.abc import Iterator

import pytest
from distributed import Client, LocalCluster
from distributed.security import Security

from tests.problems import PROBLEMS, Problem, expected


@pytest.fixture(scope="module", params=[1, 2, 3, 5])
def clusters(request: pytest.FixtureRequest) -> Iterator[Client]:
    with (
        LocalCluster(n_workers=request.param, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: f"{problem.model}-{problem.optimizer}")
def test_digest_equals_the_reference(problem: Problem, clusters: Client) -> None:
    assert problem.fit(clusters).digest == expected(problem)


def test_digest_equals_the_reference_on_tls() -> None:
    security = Security.temporary()
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", protocol="tls", security=security) as c,
        Client(c, set_as_default=False) as client,
    ):
        assert all(worker.startswith("tls://") for worker in client.nthreads())
        assert PROBLEMS[2].fit(client).digest == expected(PROBLEMS[2])


def test_digest_equals_the_reference_in_one_process() -> None:
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=":0", processes=False) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        assert all(worker.startswith("inproc://") for worker in client.nthreads())
        assert PROBLEMS[2].fit(client).digest == expected(PROBLEMS[2])


def test_data_moves_between_workers_under_global_shuffle(clean: Client) -> None:
    from dasktrain import LocalWire

    settings = {"shuffle": "global", "window": 16}
    problem = PROBLEMS[0]
    assert problem.fit(clean, **settings).digest == problem.fit(LocalWire(), **settings).digest


def test_current_client_is_found(cluster: Client) -> None:
    with cluster.as_current(), warnings.catch_warnings():
        assert PROBLEMS[0].fit(None).digest == expected(PROBLEMS[0])
