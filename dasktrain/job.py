"""What is to be computed: everything that a replica must know of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from dasktrain import cut
from dasktrain.compression import Compression, Stretches
from dasktrain.compute import Compute
from dasktrain.data.block import Batch, Collate
from dasktrain.data.synthesis import Synthesis
from dasktrain.inner import Inner
from dasktrain.messages import Kind
from dasktrain.metrics import Metric
from dasktrain.plan import Plan
from dasktrain.players import Players
from dasktrain.strategies import Strategy
from dasktrain.vector import Layout


@dataclass(frozen=True)
class Job:
    """Everything a replica must know; shipped once, as bytes.

    Attributes
    ----------
    plans : mapping
        ``"train"``, and ``"evaluate"`` if there is validation data.
    threads : int
        torch threads of a replica; another number may give other bits.
    sample : Batch
        Rows that are made up, for the canary: see `Replica.domain`.
    fingerprints : mapping
        Of each partition of each data set.
    inner
        How shards step by themselves; None: they do not.
    synthesis
        What makes up rows in place of those that the plan reads again; None: they are read again.
    compression
        How what is sent is made small; None: it is not.
    bucket
        Numbers of each bucket in which gradients are sent.
    """

    module: nn.Module
    players: Players
    metrics: Mapping[str, Metric]
    strategy: Strategy
    plans: Mapping[Kind, Plan]
    seed: int
    threads: int
    sample: Batch
    fingerprints: Mapping[Kind, Sequence[str]]
    collate: Collate
    compute: Compute = field(default_factory=Compute)
    inner: Inner | None = None
    synthesis: Synthesis | None = None
    compression: Compression | None = None
    bucket: int = field(default_factory=lambda: cut.SIZE)

    def stretches(self, layout: Layout) -> Stretches | None:
        """Return what is sent of gradients of a layout, if it is made small."""
        if self.compression is None:
            return None
        steps = 1 if self.inner is None else self.inner.steps
        return Stretches(self.compression, layout, steps, self.plans["train"].rounds)
