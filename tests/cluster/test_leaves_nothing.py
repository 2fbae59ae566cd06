"""A run takes what it needs, sends the scheduler nothing while rounds go on, and leaves the cluster as it was."""

import functools
import inspect
import os
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client, LocalCluster, get_worker, secede
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.errors import BadInput
from dasktrain.fitting import CANARY_ROWS
from dasktrain.wire.lease import Terms, _Blocks
from tests.leftovers import assert_left, left_on
from tests.problems import CLASSES, PARTITIONS, PROBLEMS


def test_success_leaves_nothing(clean: Client) -> None:
    PROBLEMS[2].fit(clean)


def test_bad_input_leaves_nothing(clean: Client) -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": [1.0, None, 2.0]})
    trainer = dt.Trainer(nn.Linear(1, 1), nn.MSELoss(), torch.optim.SGD, observers=[])
    with pytest.raises(BadInput, match="partition"):
        trainer.fit(dt.Table(frame, target="y"), client=clean)


def test_failing_observer_leaves_nothing(clean: Client) -> None:
    class Fails(dt.Observer):
        def round(self, record: dict[str, object]) -> None:
            raise KeyError("disk full")

    with pytest.raises(KeyError, match="disk full"):
        PROBLEMS[0].trainer([Fails()]).fit(PROBLEMS[0].data, client=clean)


class Seen(_Blocks):
    """Leaves a handler while it looks for a partition."""

    async def _from_peers(self, kind: str, key: Any) -> Any:
        self._worker.handlers["dasktrain-looks"] = str
        return await super()._from_peers(kind, key)


def look() -> None:
    """Look for a partition that nobody has, as a lease does."""
    worker = get_worker()
    secede()
    try:
        Seen(worker, {"train": ["nowhere"]}, Terms("run", worker.address, 60.0, 60.0, None))("train", 0)
    finally:
        worker.handlers.pop("dasktrain-looks", None)


def test_a_lease_that_looks_for_a_partition_ends_with_its_run(clean: Client) -> None:
    before = left_on(clean)
    looking, tick, deadline = clean.submit(look, pure=False), Event(), monotonic() + 10.0
    while "dasktrain-looks" not in str(left_on(clean)):
        assert monotonic() < deadline, looking.status
        tick.wait(0.05)
    looking.cancel()
    del looking
    assert_left(clean, before)


def _count(dask_scheduler: object) -> None:
    """Have the scheduler count every message by its name."""
    counts: Counter[str] = Counter()
    dask_scheduler.counted = counts  # type: ignore[attr-defined]

    def counting(name: str, handler: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(handler)
        def counted(*args: object, **kwargs: object) -> object:
            counts[name] += 1
            return handler(*args, **kwargs)

        return counted

    for handlers in (dask_scheduler.handlers, dask_scheduler.stream_handlers):  # type: ignore[attr-defined]
        for name, handler in list(handlers.items()):
            if not inspect.iscoroutinefunction(handler):
                handlers[name] = counting(name, handler)


def _counted(dask_scheduler: object) -> dict[str, int]:
    counted = dict(dask_scheduler.counted)  # type: ignore[attr-defined]
    dask_scheduler.counted.clear()  # type: ignore[attr-defined]
    return {name: count for name, count in counted.items() if "heartbeat" not in name}


def test_rounds_send_the_scheduler_nothing() -> None:
    """A run of 400 rounds sends it what one of 2 rounds does, but for what Dask itself sends now and then."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.run_on_scheduler(_count)

        def messages(max_rounds: int) -> dict[str, int]:
            PROBLEMS[0].trainer().fit(PROBLEMS[0].data, batch_size=50, max_rounds=max_rounds, client=client)
            return client.run_on_scheduler(_counted)

        messages(2)
        few, many = messages(2), messages(400)
        assert few["task-finished"] == many["task-finished"] > 0
        assert sum(many.values()) - sum(few.values()) < 40, (few, many)


class Ledger(nn.Module):
    """Writes down which rows it was trained with, and where."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.linear, self.folder = nn.Linear(1, CLASSES), folder

    def forward(self, ids: Tensor) -> Tensor:
        if self.training and len(ids) != CANARY_ROWS:
            name = f"{os.getpid()}-{uuid.uuid4().hex}"
            (self.folder / name).write_text("\n".join(str(int(row)) for row in ids[:, 0]))
        return self.linear(ids.float() / 100)


@pytest.mark.parametrize("shuffle", ["shard", "epoch", "global", False])
def test_every_row_is_consumed_once_an_epoch(clean: Client, tmp_path: Path, shuffle: str) -> None:
    rows = sum(PARTITIONS)
    _, y = PROBLEMS[0].arrays
    ids = da.from_array(np.arange(rows)[:, None], chunks=(tuple(PARTITIONS), 1))
    trainer = dt.Trainer(Ledger(tmp_path), nn.CrossEntropyLoss(), torch.optim.SGD, observers=[])
    data = dt.Arrays(ids, da.from_array(y, chunks=(tuple(PARTITIONS),)))
    trainer.fit(data, epochs=2, batch_size=60, shards=7, client=clean, shuffle=shuffle)  # type: ignore[arg-type]
    written = [(file.name, file.read_text().split()) for file in tmp_path.iterdir()]
    workers = {name.split("-")[0] for name, _ in written}
    consumed = sorted(int(row) for name, each in written for row in each if not name.startswith(f"{os.getpid()}-"))
    assert consumed == sorted([*range(rows), *range(rows)])
    assert len(workers) >= 2
