"""When a fit ends that was not told when."""

from dasktrain.observe import Observer, Record


class AtLeast(Observer):
    """Ends a run after an epoch, once there were so many epochs and so many rounds.

    A small table then gets many epochs, and a large one few.
    """

    def __init__(self, epochs: int, rounds: int) -> None:
        self.epochs, self.rounds = epochs, rounds

    def epoch(self, record: Record) -> bool:
        """Count."""
        done = record["epoch"] + 1
        return bool(done >= self.epochs and done * record["rounds"] >= self.rounds)
