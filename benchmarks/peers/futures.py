"""The loop that comes to mind first: a round scatters parameters, submits a task a worker and gathers gradients.

Rows, their order and the module stay on the workers; parameters and gradients travel as one array each.
"""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from dask.distributed import Client, Future, LocalCluster
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from benchmarks.peers.training import BATCH, SHARE, WORKERS, adamw, model, rows_of


def seconds(folder: Path, warm: int) -> float:
    """Return the seconds of an epoch."""
    torch.set_num_threads(1)
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        loop = Loop(client, folder)
        loop.run(warm)
        started = perf_counter()
        loop.run(loop.rounds)
        return perf_counter() - started


class Loop:
    """The parameters here, the rows on the workers.

    Attributes
    ----------
    rounds : int
        Of an epoch.
    """

    def __init__(self, client: Client, folder: Path) -> None:
        self._client, self._workers = client, sorted(client.nthreads())
        self._model = model()
        self._optimizer = adamw(self._model)
        self._modules = [self._on(worker, model) for worker in self._workers]
        self._rows = [self._on(worker, rows_of, folder, rank, WORKERS) for rank, worker in enumerate(self._workers)]
        orders = client.gather(self._orders())
        self.rounds = -(-sum(map(len, orders)) // BATCH)

    def _on(self, worker: str, function: Callable[..., Any], *arguments: object) -> Future:
        return self._client.submit(function, *arguments, workers=[worker], pure=False)

    def _orders(self) -> list[Future]:
        return [self._on(worker, order, rows) for worker, rows in zip(self._workers, self._rows, strict=True)]

    def run(self, rounds: int) -> None:
        """Take the first rounds of an epoch."""
        orders = self._orders()
        for round in range(rounds):
            self._step(orders, round)

    def _step(self, orders: list[Future], round: int) -> None:
        vector = parameters_to_vector(self._model.parameters()).detach().numpy()
        parameters = self._client.scatter(vector, broadcast=True, direct=True, hash=False)
        each = zip(self._workers, self._modules, self._rows, orders, strict=True)
        futures = [self._on(worker, gradient, *held, round, parameters) for worker, *held in each]
        total = torch.from_numpy(sum(self._client.gather(futures, direct=True)) / WORKERS)
        parts = total.split([parameter.numel() for parameter in self._model.parameters()])
        for parameter, part in zip(self._model.parameters(), parts, strict=True):
            parameter.grad = part.view_as(parameter)
        self._optimizer.step()


def order(rows: tuple[Tensor, Tensor]) -> Tensor:
    """Return the order of a worker's rows in an epoch."""
    return torch.randperm(len(rows[0]))


def gradient(
    module: nn.Module, rows: tuple[Tensor, Tensor], order: Tensor, round: int, parameters: np.ndarray
) -> np.ndarray:
    """Return the gradient of a worker's rows in a round."""
    vector_to_parameters(torch.tensor(parameters), module.parameters())  # a copy: what came is read-only
    module.zero_grad()
    chosen = order[round * SHARE : (round + 1) * SHARE]
    F.cross_entropy(module(rows[0][chosen]), rows[1][chosen]).backward()
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()]).numpy()
