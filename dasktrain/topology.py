"""How long a round is on the wire by each way that parameters and gradients can travel: formulas, and no measuring.

Workers are those on other hosts than the driver; P are the bytes of the parameters and as many of a gradient, B the
bytes a second that a host's link carries in each direction, b those of a bucket, a what a message costs its sender.

==========  ===================================================  ====================================================
flat        ``2 H P / B + (W + H) a``                            parameters to each of H hosts, a gradient from each,
                                                                 all through the driver's link
sharded     ``(out + back) / B + (2 H k + W - H) a``             a link carries P in each direction and phase, and waits
                                                                 for the first bucket and the last
==========  ===================================================  ====================================================

Owners, one worker of each host, take turns, ``k = ceil(P / H b)`` of them; in the last turn r bytes are left, so that
the busiest owner passes ``q = (H - 1) ((k - 1) b + min(b, r))`` bytes on, and takes as many in. Of the parameters,
either the driver's link is busy to the end and the last bucket is then passed on, or the first have come and the
busiest owner passes on: ``out = max(P + (H - 1) b, H b + q)``. Of the gradient, either the first sums have risen and
the driver's link is busy from then on, or the busiest owner's have, and the last turn's follow: ``back = max(P +
(H - 1) b, q + r)``.
"""

from dataclasses import dataclass
from math import ceil
from typing import Literal

from dasktrain import cut

#: how parameters and gradients travel, as far as somebody can choose
Reduction = Literal["auto", "flat", "sharded"]
#: seconds that a message costs its sender, on the safe side: handing a small one to the system takes 30 us of them
MESSAGE = 2e-4
#: hosts that can reduce among themselves
FEWEST = 2
#: of what flat takes, what sharded must save: what nobody notices is not worth more connections
GAIN = 0.1
#: bytes a second of links on which messages are nothing beside bytes: where sharding pays on any, it does on those
SLOW = 1.0


@dataclass(frozen=True, slots=True)
class Links:
    """Workers on other hosts than the driver, and what of a round crosses their links.

    Attributes
    ----------
    workers, hosts : int
        How many.
    size, bucket : int
        Bytes of the parameters and of a bucket of them.
    rate : float
        Bytes a second in each direction.
    """

    workers: int
    hosts: int
    size: int
    bucket: int
    rate: float

    @property
    def flat(self) -> float:
        """Seconds of a round if everything goes through the driver's link, once for all workers of a host."""
        return 2 * self.hosts * self.size / self.rate + (self.workers + self.hosts) * MESSAGE

    @property
    def sharded(self) -> float:
        """Seconds of a round if each host adds up some buckets, and passes some of the parameters on."""
        others, turns = self.hosts - 1, ceil(self.size / (self.hosts * self.bucket))
        last = self.size - (turns - 1) * self.hosts * self.bucket
        busiest = others * ((turns - 1) * self.bucket + min(self.bucket, last))
        through_driver = self.size + others * self.bucket
        out = max(through_driver, self.hosts * self.bucket + busiest)
        back = max(through_driver, busiest + last)
        messages = 2 * self.hosts * turns + self.workers - self.hosts
        return (out + back) / self.rate + messages * MESSAGE

    @property
    def can_shard(self) -> bool:
        """Whether there is something to own for several hosts."""
        return self.hosts >= FEWEST and self.size > (FEWEST - 1) * self.bucket

    def best(self, reduction: Reduction) -> Reduction:
        """Return "flat" or "sharded": what was asked for if that can be, or what takes less time."""
        if reduction == "flat" or not self.can_shard:
            return "flat"
        return "sharded" if reduction == "sharded" or self.sharded < (1 - GAIN) * self.flat else "flat"


def bucket_of(reduction: Reduction, workers: int, hosts: int, numbers: int, width: int) -> int:
    """Return how many numbers a bucket of a run has, each of so many bytes.

    Where rounds will be sharded, if only on slow links, they are as few as let each host own some; elsewhere as many as
    can be, since each costs a message.
    """
    small = cut.small_for(numbers, hosts)
    links = Links(workers, hosts, width * numbers, width * small, SLOW)
    return small if links.best(reduction) == "sharded" else cut.SIZE
