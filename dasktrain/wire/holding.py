"""On a worker: the buckets of the parameters that it owns, which come from the driver or which it steps itself."""

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

from dasktrain.messages import Bucket, Header, Vector, decode_part, encode_mark
from dasktrain.owned import Owned, fingerprint
from dasktrain.steps import Step
from dasktrain.wire.handout import decode_pieces, decode_step

#: numbers that are stepped at once, for some 10 ms
AT_ONCE = 1 << 21
#: what an owner tells the driver: that something else comes of a step than there
UNLIKE = "unlike"


class Holding:
    """What a worker owns, see :class:`dasktrain.wire.handout.Handout`.

    Parameters
    ----------
    tell
        Called with what the driver is to be told.
    """

    def __init__(self, tell: Callable[[Header], None]) -> None:
        self._tell = tell
        self._owned = Owned()
        self._sums: dict[int, Vector] = {}  # that the next step is taken with
        self._due: dict[int, Vector] = {}  # that this one is to be taken with
        self._step: Step | None = None

    def clear(self) -> None:
        """Own nothing more."""
        self._owned, self._sums, self._due = Owned(), {}, {}

    def summed(self, bucket: Bucket) -> None:
        """Keep the sum of gradients in a bucket, which is the driver's as well."""
        if bucket.offset in self._owned:
            self._sums[bucket.offset] = bucket.values

    def parts(self, header: Header, frames: list[Any]) -> Iterator[tuple[Header, list[Any]]]:
        """Yield the part of the parameters that the driver gives, if that is clear from what it sends."""
        if "stepped" in header:
            self._step = decode_step(header)
            self._due, self._sums = self._sums, {}
            return
        task, offset, values = decode_part(header, frames[:1])
        if "made" in header:
            if offset in self._due:
                self._take_step(offset)
            if offset in self._owned and fingerprint(self._owned.values(offset)) == header["made"]:
                yield header, [self._owned.values(offset)]
            else:
                self._owned.drop(offset)
                self._tell(encode_mark(UNLIKE, task, [offset]))
            return
        self._owned.drop(offset)
        if "pieces" in header:
            self._owned.put(offset, values, decode_pieces(header, frames[1:]))
        yield header, frames[:1]

    def _take_step(self, offset: int) -> None:
        """Step a bucket, and as many after it as take no time worth telling others to wait on."""
        assert self._step is not None
        following = [other for other in sorted(self._due) if other >= offset]
        numbers = accumulate(len(self._due[other]) for other in following)
        chosen = [other for other, size in zip(following, numbers, strict=True) if other == offset or size <= AT_ONCE]
        sums = {other: self._due.pop(other) for other in chosen}
        try:
            self._owned.step(self._step, sums)
        except Exception:  # it cannot step as the driver does, which then gives it values
            self._owned = Owned()
