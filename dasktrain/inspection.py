"""Whether a cluster is fit to train on: what was found, what it means for a run, what to do."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import StringIO
from statistics import median
from typing import Any, Literal

import psutil
from dask.utils import format_bytes
from distributed import Client
from rich.console import Console
from rich.table import Table

from dasktrain.config import seconds
from dasktrain.data.source import Source
from dasktrain.errors import AttachError, BadInput
from dasktrain.fitting import Fitting, Needs, Settings
from dasktrain.fleet import difference
from dasktrain.probe import Sample, probe
from dasktrain.trainer import Trainer, wire_of
from dasktrain.wire import Wire
from dasktrain.wire.dask import DaskWire
from dasktrain.wire.exposure import exposed

#: packages whose versions had better be one on client, scheduler and workers; torch's, Python's and ours must be
SAME = ("dask", "distributed", "msgpack", "cloudpickle", "numpy", "pandas")
#: of a worker's memory limit, what Dask spills at and what its nanny kills it at
SPILL, KILL = 0.6, 0.95
#: how much worse than the median a worker's link may be
SLOWER = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing to know before a run.

    Attributes
    ----------
    level : {"error", "warning"}
        Whether a run will fail, or do without a worker; or only be slower, or less safe.
    text : str
        What must hold, what was found, what to do.
    """

    level: Literal["error", "warning"]
    text: str


@dataclass(frozen=True)
class Report:
    """What :func:`dasktrain.check` found; prints as a table.

    Attributes
    ----------
    workers : list of dict
        One a worker: ``worker``, ``host``, ``threads``, ``cores``, ``memory`` and ``shared_memory`` (bytes),
        ``latency`` (seconds of an empty round), ``bandwidth`` (bytes a second), ``domain`` (workers with one letter
        give equal bits) and ``fault``.
    findings : list of Finding
        Errors first.
    """

    workers: list[dict[str, Any]]
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return all(finding.level != "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"ok": self.ok, "workers": self.workers, "findings": [asdict(finding) for finding in self.findings]}

    def __str__(self) -> str:
        page = StringIO()
        console = Console(file=page, width=140, highlight=False)
        console.print(_table(self.workers))
        for finding in self.findings:
            console.print(f"{finding.level}: {finding.text}", soft_wrap=True, markup=False)
        console.print("fit to train on" if self.ok else "not fit to train on")
        return page.getvalue().rstrip()


def check(client: Client | Wire | None = None, trainer: Trainer | None = None, data: Source | None = None) -> Report:
    """Find out whether a cluster is fit to train on, the way a run would, and in a few seconds.

    Every worker is leased, which shows versions, reachability and free threads; computes a little, which shows
    determinism domains; and answers rounds that do nothing, which shows latency and bandwidth.

    Parameters
    ----------
    client
        A Dask Client, or a wire. None: the current client, or a LocalCluster of our own.
    trainer, data
        What is to be trained on what: whether it fits in the memory of workers and driver. The data is read once.

    Returns
    -------
    Report
        Has `ok`, and prints as a table.

    Raises
    ------
    BadInput
        Only one of `trainer` and `data` is given, or they do not fit each other.
    """
    if (trainer is None) != (data is None):
        raise BadInput("trainer and data must be given together, however one is missing")
    with wire_of(client) as wire:
        try:
            wire.open()
            needs = None if trainer is None or data is None else _fitting(trainer, data).needs(wire)
            samples = probe(wire, seconds("timeouts.attach") + 10)
        except AttachError as error:
            return Report([], [Finding("error", str(error))])
        finally:
            wire.close()
        return _report(samples, _Cluster.of(wire), needs)


def _fitting(trainer: Trainer, data: Source) -> Fitting:
    settings = Settings(1, 1024, None, 0, None, "block", "shard", 65_536, None, "strict")
    return Fitting(trainer, data, None, settings)


@dataclass(frozen=True)
class _Cluster:
    """What Dask knows of a cluster: `workers` as in scheduler_info, `versions` of packages by process."""

    scheduler: str
    workers: dict[str, dict[str, Any]]
    versions: dict[str, dict[str, str]]

    @staticmethod
    def of(wire: Wire) -> "_Cluster":
        if not isinstance(wire, DaskWire):
            return _Cluster("", {}, {})
        client = wire.client
        found = client.get_versions()
        processes = {"client": found["client"], "scheduler": found["scheduler"], **found["workers"]}
        versions = {name: process["packages"] for name, process in processes.items() if process}
        return _Cluster(client.scheduler.address, client.scheduler_info(n_workers=-1)["workers"], versions)


def _report(samples: dict[str, Sample], cluster: _Cluster, needs: Needs | None) -> Report:
    findings = [
        *_faults(samples),
        *_domains(samples),
        *_versions(cluster),
        *_threads(samples, cluster),
        *_links(samples),
        *([] if needs is None else _memory(samples, cluster, needs)),
        *_security(cluster),
    ]
    letters = _letters(samples)
    rows = [_row(worker, sample, cluster, letters.get(worker, "")) for worker, sample in samples.items()]
    return Report(rows, sorted(findings, key=lambda finding: finding.level))


def _row(worker: str, sample: Sample, cluster: _Cluster, letter: str) -> dict[str, Any]:
    told = cluster.workers.get(worker, {})
    return {
        "worker": worker,
        "host": sample.host,
        "threads": told.get("nthreads", 1),
        "cores": sample.cores,
        "memory": told.get("memory_limit"),
        "shared_memory": sample.shared_memory,
        "latency": sample.latency,
        "bandwidth": sample.bandwidth,
        "domain": letter,
        "fault": sample.fault,
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("worker", "host", "threads", "cores", "memory", "/dev/shm", "ms a round", "MB/s", "domain")
    for row in rows:
        table.add_row(
            row["worker"],
            row["host"],
            str(row["threads"]),
            str(row["cores"] or ""),
            format_bytes(row["memory"]) if row["memory"] else "no limit",
            format_bytes(row["shared_memory"]) if row["shared_memory"] else "none",
            f"{row['latency'] * 1e3:.2f}" if row["latency"] else "",
            f"{row['bandwidth'] / 1e6:,.0f}" if row["bandwidth"] else "",
            row["domain"] or "not usable",
        )
    return table


# -- what it means ------------------------------------------------------------------------------------------------


def _faults(samples: dict[str, Sample]) -> Iterator[Finding]:
    for worker, sample in samples.items():
        if sample.fault is not None:
            text = sample.fault
            yield Finding("error", text if worker in text else f"{worker}: {text}")


def _letters(samples: dict[str, Sample]) -> dict[str, str]:
    """Return a letter for each worker's determinism domain, A for the most frequent."""
    kinds = {worker: str(sorted(sample.domain.items())) for worker, sample in samples.items() if sample.domain}
    order = [kind for kind, _ in Counter(kinds.values()).most_common()]
    return {worker: chr(ord("A") + min(order.index(kind), 25)) for worker, kind in kinds.items()}


def _domains(samples: dict[str, Sample]) -> Iterator[Finding]:
    letters = _letters(samples)
    wanted = next((samples[worker].domain for worker, letter in letters.items() if letter == "A"), None)
    for worker, letter in letters.items():
        domain = samples[worker].domain
        if letter != "A" and wanted is not None and domain is not None:
            yield Finding(
                "warning",
                f'{difference(worker, domain, wanted)}; it gets no work but with determinism="off". Use like machines',
            )


def _versions(cluster: _Cluster) -> Iterator[Finding]:
    for package in SAME:
        found = {process: versions.get(package) or "missing" for process, versions in cluster.versions.items()}
        here = found.get("client")
        others = [f"{process} has {version}" for process, version in found.items() if version != here]
        if others:
            yield Finding(
                "warning",
                f"{package} should be the client's {here} everywhere, however {', '.join(others)}; install the same",
            )


def _threads(samples: dict[str, Sample], cluster: _Cluster) -> Iterator[Finding]:
    threads = {worker: told["nthreads"] for worker, told in cluster.workers.items()}
    if len(set(threads.values())) > 1:
        yield Finding(
            "warning",
            f"Workers should have as many threads, however they have {min(threads.values())} to "
            f"{max(threads.values())}; a run uses the fewest on all, the others idle",
        )
    hosts: dict[str, int] = defaultdict(int)
    for worker, sample in samples.items():
        hosts[sample.host] += threads.get(worker, 0)
    for host, count in hosts.items():
        cores = max(sample.cores for sample in samples.values() if sample.host == host)
        if cores and count > cores:
            yield Finding(
                "warning",
                f"Workers on {host} should have no more threads than its {cores} cores, however they have {count}; "
                "start fewer, or with --nthreads 1",
            )


def _links(samples: dict[str, Sample]) -> Iterator[Finding]:
    latencies = {worker: sample.latency for worker, sample in samples.items() if sample.latency}
    bandwidths = {worker: sample.bandwidth for worker, sample in samples.items() if sample.bandwidth}
    for worker, latency in latencies.items():
        usual = median(latencies.values())
        if latency > SLOWER * max(usual, 1e-3):
            yield Finding(
                "warning",
                f"An empty round to {worker} should take about {usual * 1e3:.1f} ms, however it takes "
                f"{latency * 1e3:.1f}; every round waits for it: look at its network, or leave it out",
            )
    for worker, bandwidth in bandwidths.items():
        usual = median(bandwidths.values())
        if bandwidth * SLOWER < usual:
            yield Finding(
                "warning",
                f"The link to {worker} should carry about {usual / 1e6:,.0f} MB/s, however it carries "
                f"{bandwidth / 1e6:,.0f}; every round waits for it: look at its network, or leave it out",
            )


def _memory(samples: dict[str, Sample], cluster: _Cluster, needs: Needs) -> Iterator[Finding]:
    count = max(1, len(samples))
    replica, blocks = needs.replica(count), needs.blocks // count
    for worker, told in cluster.workers.items():
        limit, used = told["memory_limit"], told["metrics"].get("memory", 0)
        text = (
            f"{worker} should have room for {format_bytes(used)} in use, {format_bytes(replica)} of replica and "
            f"{format_bytes(blocks)} of data, however its limit is {format_bytes(limit or 0)}"
        )
        if limit and used + replica > KILL * limit:
            yield Finding("error", f"{text}; the nanny would kill it: give it more memory, or use a smaller model")
        elif limit and used + replica + blocks > SPILL * limit:
            yield Finding("warning", f"{text}; Dask will spill to disk: give it more memory, or use more workers")
    available = psutil.virtual_memory().available
    if needs.driver(count) > available:
        yield Finding(
            "error",
            f"The driver must have {format_bytes(needs.driver(count))} for parameters, optimizer and gradients, "
            f"however {format_bytes(available)} are free; use a larger machine, or a leaner optimizer",
        )


def _security(cluster: _Cluster) -> Iterator[Finding]:
    exposure = exposed(cluster.scheduler)
    if exposure is not None:
        yield Finding("warning", exposure)
