"""A vector of numbers cut into buckets, each of which travels, and is added up, by itself."""

from dataclasses import dataclass

#: numbers in a bucket, at most: 4 MB of float32, 30 ms of 1 Gbit/s
SIZE = 1 << 20
#: and at least: as many as are worth a message
LEAST = 1 << 14


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a vector is cut: after every `bucket` numbers.

    Attributes
    ----------
    numbers : int
        Of the whole vector.
    bucket : int
        Of each bucket but the last, which may have fewer.
    """

    numbers: int
    bucket: int

    @property
    def offsets(self) -> range:
        """The first number of each bucket."""
        return range(0, self.numbers, self.bucket)

    def place(self, offset: int) -> slice:
        """Return where in the vector the bucket lies that begins at a number."""
        return slice(offset, min(offset + self.bucket, self.numbers))

    def owned(self, place: int, peers: int) -> range:
        """Return where the buckets begin that the peer at a place owns."""
        return range(place * self.bucket, self.numbers, peers * self.bucket)

    def owner(self, offset: int, peers: int) -> int:
        """Return which of some peers owns the bucket that begins at a number: they take turns."""
        return offset // self.bucket % peers


def sizes() -> list[int]:
    """Return how many numbers a bucket may have, the most first: half as many each."""
    found = [SIZE]
    while found[-1] // 2 >= LEAST:
        found.append(found[-1] // 2)
    return found
