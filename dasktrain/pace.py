"""From when on an answer is late: a running median, and no clock of its own."""

from collections import deque
from statistics import median

#: an answer is late after so many times what a round usually takes, and never before so many seconds
TIMES, LEAST = 3.0, 0.875  # a backup is to have started within a second
#: rounds looked back on
WINDOW = 64


class Pace:
    """How long rounds of one kind take."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        self._median = 0.0

    @property
    def usual(self) -> float:
        """Seconds that a round usually takes; 0 before the first."""
        return self._median

    def add(self, seconds: float) -> None:
        """Take note of a round."""
        self._seconds.append(seconds)
        self._median = median(self._seconds)

    def patience(self, first_answer: float | None) -> float | None:
        """Return the seconds after which a worker is late; None: it cannot be told yet.

        In the very first round it is judged by the first answer: the workers have about as much to do.

        Parameters
        ----------
        first_answer
            Seconds the round's first answer took, if there is one.
        """
        usual = self._median if self._seconds else first_answer
        return None if usual is None else max(LEAST, TIMES * usual)
