"""What two workers compute is the same to the bit, or one of them is at fault."""

import hashlib
from collections.abc import Iterator

import numpy as np

from dasktrain.cut import Cut
from dasktrain.errors import Diverged
from dasktrain.events import Answered, Received
from dasktrain.fleet import Fleet
from dasktrain.messages import Answer, Bucket, Task, Vector

#: what of a round something is: node [start, stop), and the first number of a bucket, None for all but the gradient
Place = tuple[int, int, int | None]


class Doubles:
    """Answers to what is asked of several workers.

    Parameters
    ----------
    fleet
        Knows who computes what.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        #: of what another worker may still give: sums of a node
        self.digests: dict[Task, dict[Place, str]] = {}

    def forget(self) -> None:
        """Keep only what another worker may still give."""
        if self.digests:
            computed = set(self._fleet.busy.values())
            self.digests = {task: digest for task, digest in self.digests.items() if task in computed}

    def compare(self, news: Answered | Received, bucket: int) -> None:
        """See that two workers give the same bits, as far as it was known of both of them when they gave them.

        Parameters
        ----------
        bucket
            Numbers of a gradient's buckets.

        Raises
        ------
        Diverged
            They do not.
        """
        part = news.bucket if isinstance(news, Received) else news.answer
        task, known = part.task, self.digests.get(part.task, {})
        if not self._fleet.strict or not (known or self._fleet.is_doubled(news.worker, task)):
            return
        if isinstance(part, Answer) and not part.partials:
            return  # its round was over too soon, or what its shards had kept was not there
        digests = self.digests.setdefault(task, {})
        for place, found in digests_of(part, bucket):
            wanted = digests.setdefault(place, found)
            if found != wanted:
                raise Diverged(
                    f"Two workers must give the same bits for the same shards, however for shards {task.start} to "
                    f"{task.stop - 1} in epoch {task.epoch}, round {task.round} worker {news.worker} gave {found[:16]} "
                    f"and another {wanted[:16]}; look for a faulty machine, or for a model that depends on more than "
                    "its inputs"
                )


def digests_of(part: Answer | Bucket, bucket: int) -> Iterator[tuple[Place, str]]:
    """Yield the hex sha256 of what it adds to the round, and to what of it: the same in buckets or in one piece."""
    if isinstance(part, Bucket):
        yield (part.start, part.stop, part.offset), _sha256(part.values)
        return
    for partial in part.partials:
        if partial.vector is not None:
            cut = Cut(len(partial.vector), bucket)
            for offset in cut.offsets:
                yield (partial.start, partial.stop, offset), _sha256(partial.vector[cut.place(offset)])
        rows = [array for each in partial.touched for array in (each.rows, each.values)]
        yield (partial.start, partial.stop, None), _sha256(partial.sums, *rows)


def _sha256(*arrays: Vector | None) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(b"none" if array is None else np.ascontiguousarray(array).view(np.uint8).data)
    return total.hexdigest()
