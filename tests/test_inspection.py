"""What a check makes of what it finds: of workers in this process, and of clusters that are made up."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import dasktrain as dt
from dasktrain.errors import BadInput
from dasktrain.fitting import Needs
from dasktrain.inspection import Report, _Cluster, _fitting, _report
from dasktrain.probe import Sample, probe
from dasktrain.wire.exposure import exposed
from tests.small import closed, linear, table

DOMAIN: dict[str, str | int] = {"torch": "2.13.0", "kernel path": "AVX2", "threads": 1, "canary": "abc"}
SAMPLE = Sample(None, DOMAIN, "here", cores=4, shared_memory=1 << 26, latency=1e-3, bandwidth=1e9)
WORKERS = ("tcp://10.0.0.1:1", "tcp://10.0.0.2:1", "tcp://10.0.0.3:1")
GIGABYTE = 1 << 30
NEEDS = Needs(shards=8, parameters=1 << 20, buffers=0, optimizer=2 << 20, blocks=1 << 20)


def report(
    changed: dict[str, Any] | None = None, cluster: _Cluster | None = None, needs: Needs | None = None, **told: Any
) -> Report:
    """Report on three like workers, the second of which differs in what is `changed` and in what Dask `told` of it."""
    samples = dict.fromkeys(WORKERS, SAMPLE)
    samples[WORKERS[1]] = replace(SAMPLE, **(changed or {}))
    known = {worker: {"nthreads": 1, "memory_limit": GIGABYTE, "metrics": {"memory": 1 << 27}} for worker in WORKERS}
    known[WORKERS[1]] |= told
    versions = {process: {"dask": "2026.8.0"} for process in ("client", "scheduler", *WORKERS)}
    return _report(samples, cluster or _Cluster("tls://10.0.0.1:8786", known, versions), needs)


def test_like_workers_are_fit() -> None:
    found = report(needs=NEEDS)
    assert found.ok
    assert found.findings == []
    assert [row["domain"] for row in found.workers] == ["A", "A", "A"]
    assert str(found).endswith("fit to train on")
    assert json.loads(json.dumps(found.to_json()))["ok"]


@pytest.mark.parametrize(
    ("level", "words", "changed", "told"),
    [
        ("error", ["10.0.0.2", "must be reachable"], {"fault": "It must be reachable", "domain": None}, {}),
        ("warning", ["kernel path is AVX512 and the run's AVX2"], {"domain": {**DOMAIN, "kernel path": "AVX512"}}, {}),
        ("warning", ["as many threads", "1 to 2"], {}, {"nthreads": 2}),
        ("warning", ["here", "no more threads than its 4 cores", "7"], {}, {"nthreads": 5}),
        ("warning", ["10.0.0.2", "about 1.0 ms", "takes 80.0"], {"latency": 0.08}, {}),
        ("warning", ["10.0.0.2", "about 1,000 MB/s", "carries 10;"], {"bandwidth": 1e7}, {}),
        ("error", ["10.0.0.2", "nanny would kill it"], {}, {"memory_limit": 1 << 27}),
        ("warning", ["10.0.0.2", "spill"], {}, {"memory_limit": 200 << 20}),
    ],
)
def test_whatever_is_amiss_is_found(
    level: str, words: list[str], changed: dict[str, Any], told: dict[str, Any]
) -> None:
    found = report(changed, needs=NEEDS, **told)
    (finding,) = [finding for finding in found.findings if all(word in finding.text for word in words)]
    assert finding.level == level
    assert found.ok == (level == "warning")
    assert finding.text in str(found)


def test_other_versions_are_found() -> None:
    versions = {"client": {"numpy": "2.4.6"}, "scheduler": {"numpy": "2.4.6"}, WORKERS[0]: {"numpy": "2.1.0"}}
    (finding,) = report(cluster=_Cluster("tls://10.0.0.1:8786", {}, versions)).findings
    assert finding.text.startswith("numpy should be the client's 2.4.6 everywhere, however tcp://10.0.0.1:1 has 2.1.0")


def test_driver_that_is_too_small_is_an_error() -> None:
    found = report(needs=replace(NEEDS, optimizer=1 << 50))
    assert not found.ok
    assert "The driver must have 1.00 PiB" in found.findings[0].text


@pytest.mark.parametrize("address", ["tcp://10.0.0.1:8786", "tcp://scheduler:8786", "tcp://[2001:db8::1]:8786"])
def test_cluster_that_others_can_reach_is_told_of(address: str) -> None:
    (finding,) = report(cluster=_Cluster(address, {}, {})).findings
    assert "should use TLS" in finding.text


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:1", "tcp://localhost:1", "tcp://[::1]:1", "tls://a:1", "inproc://x"]
)
def test_cluster_that_others_cannot_reach_or_read_is_not(address: str) -> None:
    assert exposed(address) is None


def test_workers_in_this_process_are_fit() -> None:
    wire = dt.LocalWire(3)
    found = dt.check(wire)
    assert closed(wire)
    assert found.ok
    assert [row["domain"] for row in found.workers] == ["A"] * 3
    assert all(row["latency"] > 0 and row["bandwidth"] > 0 and row["host"] for row in found.workers)


def test_needs_are_those_of_trainer_and_data() -> None:
    trainer = dt.Trainer(linear, nn.CrossEntropyLoss(), torch.optim.Adam, observers=[])
    with pytest.raises(BadInput, match="given together"):
        dt.check(dt.LocalWire(), trainer)
    wire = dt.LocalWire()
    needs = _fitting(trainer, table(60)).needs(wire)
    parameters = 4 * (2 * 3 + 3)
    assert (needs.shards, needs.parameters, needs.buffers) == (8, parameters, 0)
    assert needs.optimizer == 2 * parameters + 2 * 4  # two moments, and a step for each of two tensors
    assert needs.blocks == 60 * (2 * 4 + 8)  # two numbers and a label a row
    assert dt.check(dt.LocalWire(2), trainer, table(60)).ok


def test_worker_that_does_not_answer_is_a_fault() -> None:
    class Deaf(dt.LocalWire):
        def send(self, worker: str, task: Any) -> None:
            """Lose what is asked of the second worker."""
            if worker != self.workers[1]:
                super().send(worker, task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dasktrain.probe.PATIENCE", 0.5)
        found = probe(Deaf(2), 1.0)
    first, second = found.values()
    assert first.fault is None
    assert "must answer an empty round" in str(second.fault)
