"""How long rounds take on so many workers, and from how many on more do not help: formulas, and no measuring.

With W workers on H hosts, P bytes of parameters and S shards, a round takes

===========  ========================================================================================================
compute      the rows of the busiest worker, ``ceil(S / W)`` shards of S, over the rows a second of one worker
wire         what :class:`dasktrain.topology.Links` predicts of the same way that ``fit(reduction="auto")`` takes; once
             in `steps` rounds
step         the driver's reducing and stepping, after the last answer; once in `steps` rounds
===========  ========================================================================================================

one after another: what of a gradient is sent while the last of it is computed is not counted, nor are rounds in which a
worker dies. Flat, a round of a given batch is quickest near ``W = sqrt(T B / 2 P)`` workers, T the compute of one, and
takes longer with each further one. Where workers reduce among themselves it hardly does.
"""

from dataclasses import dataclass, replace
from math import ceil, inf
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd

from dasktrain.errors import BadInput
from dasktrain.fleet import default_shards
from dasktrain.topology import Links, Reduction

if TYPE_CHECKING:
    from torch import nn

Topology = Literal["flat", "host pre-reduce", "sharded", "tree"]
#: bytes of a parameter, which is float32
WIDTH = 4
#: the part of a link's bits that is no header: of TCP's 1,538 bytes on the wire for each full frame of Ethernet
PAYLOAD = 1448 / 1538
#: seconds a parameter of reducing and stepping: 14 ms for 25M by torch's fused AdamW, on one core
STEP = 0.6e-9
#: the most workers that are looked at
MOST = 1024


@dataclass(frozen=True)
class ClusterPlan:
    """What a round is predicted to take on a cluster; made by :func:`dasktrain.plan_cluster`, which says what is what.

    Attributes
    ----------
    parameters, batch_size, workers, workers_per_host, steps : int
        As given.
    worker_rows_per_second, bandwidth, step_seconds : float
        As given, or as assumed.
    shards : int or None
        As given; None: what a run takes on so many workers.
    reduction : str
        As given.
    """

    parameters: int
    worker_rows_per_second: float
    batch_size: int
    bandwidth: float
    workers: int
    workers_per_host: int
    shards: int | None
    steps: int
    reduction: Reduction
    step_seconds: float

    # -- who ------------------------------------------------------------------------------------------------------

    @property
    def hosts(self) -> int:
        """Hosts that the workers are on."""
        return ceil(self.workers / self.workers_per_host)

    @property
    def topology(self) -> Topology:
        """The way that parameters and gradients travel.

        ``"flat"``: each worker has its own from the driver, and sends it a gradient. ``"host pre-reduce"``: likewise,
        and workers of one host send one gradient. ``"sharded"``: hosts reduce among themselves, each a part of the
        gradient. ``"tree"``: likewise, each what some others sum.
        """
        if (way := self._way) == "sharded" or way == "tree":
            return way
        return "host pre-reduce" if self._links.hosts < self._links.workers else "flat"

    @property
    def _links(self) -> Links:
        busy = min(self.workers, self._shards)  # the others are spares
        hosts = ceil(busy / self.workers_per_host)
        rate = self.bandwidth / 8 * PAYLOAD
        links = Links(busy, hosts, self._shards, WIDTH * self.parameters, WIDTH, rate)
        return links.cut(self.reduction, WIDTH)

    @property
    def _way(self) -> Reduction:
        return self._links.best(self.reduction)

    @property
    def _shards(self) -> int:
        return self.shards or default_shards(self.workers)

    # -- how long -------------------------------------------------------------------------------------------------

    @property
    def compute(self) -> float:
        """Seconds of a round that the busiest worker computes."""
        shards = self._shards
        return ceil(self.batch_size * ceil(shards / self.workers) / shards) / self.worker_rows_per_second

    @property
    def wire(self) -> float:
        """Seconds of a round that parameters and gradients travel; with several `steps`, the mean of as many rounds."""
        return self._links.seconds(self._way) / self.steps

    @property
    def step(self) -> float:
        """Seconds of a round that the driver reduces and steps; with several `steps`, the mean of as many rounds."""
        return self.step_seconds / self.steps

    @property
    def seconds(self) -> float:
        """Seconds of a round."""
        return self.compute + self.wire + self.step

    @property
    def rows_per_second(self) -> float:
        """Rows a second of all workers together."""
        return self.batch_size / self.seconds

    @property
    def efficiency(self) -> float:
        """Part of its seconds that a worker computes: rows a second of all over those of as many that never wait."""
        return self.rows_per_second / (self.workers * self.worker_rows_per_second)

    @property
    def most_workers(self) -> int:
        """How many workers, up to 1,024, make a round quickest: more do not help."""
        return min(range(1, MOST + 1), key=lambda workers: replace(self, workers=workers).seconds)

    # -- for people -----------------------------------------------------------------------------------------------

    def to_frame(self) -> pd.DataFrame:
        """Return the same for 1, 2, 4, ... 1,024 workers, one row each: seconds of a round by part, and others."""
        return pd.DataFrame([replace(self, workers=1 << power).to_row() for power in range(MOST.bit_length())])

    def to_row(self) -> dict[str, Any]:
        """Return all that is predicted, as plain values."""
        return {name: getattr(self, name) for name in COLUMNS}

    def __str__(self) -> str:
        """Say it in a sentence."""
        return (
            f"{self.workers} workers on {self.hosts} hosts, {self.topology}: {self.seconds:.3g} s a round (compute "
            f"{self.compute:.3g}, wire {self.wire:.3g}, step {self.step:.3g}), {self.rows_per_second:,.0f} rows a "
            f"second, efficiency {self.efficiency:.0%}; more than {self.most_workers} workers do not help"
        )


#: what a row of the table has
COLUMNS = (
    "workers",
    "hosts",
    "topology",
    "compute",
    "wire",
    "step",
    "seconds",
    "rows_per_second",
    "efficiency",
)


def plan_cluster(
    parameters: "int | float | nn.Module",
    worker_rows_per_second: float,
    batch_size: int,
    bandwidth: float,
    workers: int | None = None,
    *,
    workers_per_host: int = 1,
    shards: int | None = None,
    steps: int = 1,
    reduction: Reduction = "auto",
    step_seconds: float | None = None,
) -> ClusterPlan:
    """Predict how long a round takes on a cluster, which way is best there, and how many workers help.

    Nothing is measured and no cluster is needed: it is the model by which ``fit(reduction="auto")`` chooses, with what
    workers compute beside it. `worker_rows_per_second` and `step_seconds` are best taken from a short run on one
    worker, whose ``result.history.rounds`` have ``rows``, ``compute``, ``reduce`` and ``step``.

    Parameters
    ----------
    parameters
        How many the model has, or the model.
    worker_rows_per_second
        Rows whose gradients one worker computes in a second.
    batch_size
        Rows of a round, as given to :meth:`dasktrain.Trainer.fit`: all workers together.
    bandwidth
        Bits a second that each host's link carries in each direction: 1e9 for 1 Gbit/s. ``math.inf`` where all workers
        are on the driver's host.
    workers
        How many there are to be, on other hosts than the driver; None: as many as help, see
        :attr:`ClusterPlan.most_workers`.
    workers_per_host
        Of these, how many share a host and its link.
    shards
        As given to :meth:`dasktrain.Trainer.fit`; None: what it takes on so many workers.
    steps
        Rounds from one sum to the next, with :class:`dasktrain.LocalSGD` and :class:`dasktrain.DiLoCo`.
    reduction
        As given to :meth:`dasktrain.Trainer.fit`.
    step_seconds
        Seconds that the driver reduces and steps; None: 0.6 ns a parameter, as AdamW takes on one core.

    Raises
    ------
    BadInput
        A number is not one that can be.

    Examples
    --------
    >>> plan = plan_cluster(25e6, worker_rows_per_second=200, batch_size=4096, bandwidth=1e9)
    >>> plan.topology, plan.workers
    ('sharded', 128)
    """
    size = _count(parameters)
    step = STEP * size if step_seconds is None else step_seconds
    plan = ClusterPlan(
        size,
        worker_rows_per_second,
        batch_size,
        bandwidth,
        1 if workers is None else workers,
        workers_per_host,
        shards,
        steps,
        reduction,
        step,
    )
    _check(plan)
    return plan if workers is not None else replace(plan, workers=plan.most_workers)


def _count(parameters: Any) -> int:
    if hasattr(parameters, "parameters"):
        return sum(parameter.numel() for parameter in parameters.parameters())
    if isinstance(parameters, int | float) and 1 <= parameters < inf:
        return int(parameters)
    raise BadInput(f"parameters must be a number, 1 or more, or a module, however it is {parameters!r:.80}; count them")


def _check(plan: ClusterPlan) -> None:
    for name in ("parameters", "batch_size", "workers", "workers_per_host", "steps", "shards"):
        value = getattr(plan, name)
        if (not isinstance(value, int) or value < 1) and (name, value) != ("shards", None):
            raise BadInput(f"{name} must be a whole number, 1 or more, however it is {value!r}; give another")
    for name in ("worker_rows_per_second", "bandwidth"):
        if not getattr(plan, name) > 0:
            raise BadInput(f"{name} must be more than 0, however it is {getattr(plan, name)}; measure it")
    if not plan.step_seconds >= 0:
        raise BadInput(f"step_seconds must be 0 or more, however it is {plan.step_seconds}; leave it out for a guess")
    if plan.reduction not in get_args(Reduction):
        known = ", ".join(map(repr, get_args(Reduction)))
        raise BadInput(f"reduction must be one of {known}, however it is {plan.reduction!r}; leave it out for 'auto'")
