"""How long a round is on the wire by each way that parameters and gradients can travel: formulas, and no measuring.

Workers are those on other hosts than the driver; P are the bytes of the parameters and as many of a gradient, B the
bytes a second that a host's link carries in each direction, b those of a bucket, a what a message costs its sender.

==========  ===================================================  ====================================================
flat        ``2 H P / B + (W + H) a``                            parameters to each of H hosts, a gradient from each,
                                                                 all through the driver's link
sharded     ``(out + back) / B + (2 H k + W - H) a``             a link carries P in each direction and phase, and waits
                                                                 for the first bucket and the last
tree        ``2 c (P + D b) / B + (2 c n + W - H) a``            a host has c neighbours below it, and D = ceil(log2 H)
                                                                 levels pass a bucket on, of ``n = ceil(P / b)``
==========  ===================================================  ====================================================

Owners, one worker of each host, take turns, ``k = ceil(P / H b)`` of them; in the last turn r bytes are left, so that
the busiest owner passes ``q = (H - 1) ((k - 1) b + min(b, r))`` bytes on, and takes as many in. Of the parameters,
either the driver's link is busy to the end and the last bucket is then passed on, or the first have come and the
busiest owner passes on: ``out = max(P + (H - 1) b, H b + q)``. Owners that step what they own need only be told what
must come of it, of C bytes a second, and step S a second: ``out = q + P B / C + P B / H S``, where that is less. Of the
gradient, either the first sums have risen and the driver's link is busy from then on, or the busiest owner's have, and
the last turn's follow: ``back = max(P + (H - 1) b, q + r)``.

Along the tree a host takes in two sums, its own aside, and sends two, its own and theirs; it gives two others the
parameters: ``c = min(2, H - 1)``, or one where there are three shards. In both phases buckets follow each other at ``c
b / B`` from level to level.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from dasktrain import cut

#: how parameters and gradients travel, as far as somebody can choose
Reduction = Literal["auto", "flat", "sharded", "tree"]
#: those of them in which workers reduce among themselves
AMONG: tuple[Reduction, ...] = ("sharded", "tree")
#: seconds that a message costs its sender, on the safe side: handing a small one to the system takes 30 us of them
MESSAGE = 2e-4
#: bytes of the parameters a second of which the driver tells owners what must come of them
CHECKED = 2e9
#: bytes of its own a second of which an owner takes a step
STEPPED = 6e8
#: hosts that can reduce among themselves
FEWEST = 2
#: of what flat takes, what others must save: what nobody notices is not worth more connections
GAIN = 0.1
#: bytes a second of links on which messages are nothing beside bytes: where sharding pays on any, it does on those
SLOW = 1.0
#: and of links that nobody has measured
USUAL = 1.25e9


@dataclass(frozen=True, slots=True)
class Links:
    """Workers on other hosts than the driver, and what of a round crosses their links.

    Attributes
    ----------
    workers, hosts : int
        How many.
    shards : int
        Leaves of the tree of sums.
    size, bucket : int
        Bytes of the parameters and of a bucket of them.
    rate : float
        Bytes a second in each direction.
    can_step : bool
        Whether owners can step what they own, as fused optimizers can that go number by number.
    """

    workers: int
    hosts: int
    shards: int
    size: int
    bucket: int
    rate: float
    can_step: bool = True

    @property
    def flat(self) -> float:
        """Seconds of a round if everything goes through the driver's link, once for all workers of a host."""
        return 2 * self.hosts * self.size / self.rate + (self.workers + self.hosts) * MESSAGE

    @property
    def sharded(self) -> float:
        """Seconds of a round if each host adds up some buckets, and passes some of the parameters on."""
        out = self._stepped if self.owners_step else self._given
        back = max(self._through_driver, self._busiest + self._last) / self.rate
        messages = 2 * self.hosts * self._turns + self.workers - self.hosts
        return out + back + messages * MESSAGE

    @property
    def owners_step(self) -> bool:
        """Whether it takes less if owners step what they pass on, and do not get it from the driver."""
        return self.can_step and self._stepped < self._given

    @property
    def _turns(self) -> int:
        return ceil(self.size / (self.hosts * self.bucket))

    @property
    def _last(self) -> int:
        """Bytes of the last turn."""
        return self.size - (self._turns - 1) * self.hosts * self.bucket

    @property
    def _busiest(self) -> int:
        """Bytes that the busiest owner passes on."""
        return (self.hosts - 1) * ((self._turns - 1) * self.bucket + min(self.bucket, self._last))

    @property
    def _through_driver(self) -> int:
        return self.size + (self.hosts - 1) * self.bucket

    @property
    def _given(self) -> float:
        """Seconds until all have the parameters, if owners get theirs from the driver."""
        return max(self._through_driver, self.hosts * self.bucket + self._busiest) / self.rate

    @property
    def _stepped(self) -> float:
        """Seconds until all have them, if owners step theirs."""
        return self._busiest / self.rate + self.size / CHECKED + self.size / self.hosts / STEPPED

    @property
    def tree(self) -> float:
        """Seconds of a round if each host adds up what two others sum, and gives two the parameters."""
        below, levels = min(2, self.hosts - 1, max(1, self.shards // 2)), (self.hosts - 1).bit_length()
        messages = 2 * below * ceil(self.size / self.bucket) + self.workers - self.hosts
        return 2 * below * (self.size + levels * self.bucket) / self.rate + messages * MESSAGE

    @property
    def can_share(self) -> bool:
        """Whether there is something to do for several hosts."""
        return self.hosts >= FEWEST and self.size > (FEWEST - 1) * self.bucket

    def seconds(self, reduction: Reduction) -> float:
        """Return how long a round takes by one of the ways there are."""
        return self.sharded if reduction == "sharded" else self.tree if reduction == "tree" else self.flat

    def best(self, reduction: Reduction) -> Reduction:
        """Return "flat", "sharded" or "tree": what was asked for if that can be, or what takes least time."""
        if reduction == "flat" or not self.can_share:
            return "flat"
        if reduction in AMONG:
            return reduction
        quickest = min(AMONG, key=self.seconds)
        return quickest if self.seconds(quickest) < (1 - GAIN) * self.flat else "flat"

    def cut(self, reduction: Reduction, width: int) -> "Links":
        """Return the same with that bucket, of numbers of so many bytes each, with which a round takes least.

        Fewer cost fewer messages; among more, hosts own parts more alike, and the first one arrives earlier. What was
        asked for is not made impossible.
        """

        def cost(links: Links) -> tuple[bool, float]:
            best = links.best(reduction)
            return reduction in AMONG and best != reduction, links.seconds(best)

        return min((replace(self, bucket=width * numbers) for numbers in cut.sizes()), key=cost)
