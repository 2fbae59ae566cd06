"""The gradient's norm, on record."""

from dasktrain.errors import BadInput
from dasktrain.norms import canonical_norm
from dasktrain.observe import Observer, Record, Run


class Monitor(Observer):
    """Record the norm of each round's gradient, and stop a run whose norm grows too large.

    Records of rounds have it as ``gradient_norm``, the same number on any number of workers: of the gradient that the
    optimizer stepped with, or if that was clipped (:class:`dasktrain.GradientAveraging`), of what it was before. A run
    whose loss, metrics or gradient are not finite ends with an error that names shard and partitions, with a Monitor
    and without.

    Parameters
    ----------
    every
        Rounds from one that is measured to the next. A norm costs 7 ms for a million parameters: its blocks are fixed,
        so that it is the same for any number of threads.
    largest
        The run ends after a round with a larger norm; None: none is too large.

    Raises
    ------
    BadInput
        One of them is not above 0.
    """

    order = -2

    def __init__(self, every: int = 1, largest: float | None = None) -> None:
        if every < 1 or (largest is not None and not largest > 0):
            raise BadInput(f"every must be at least 1 and largest above 0, however they are {every} and {largest}")
        self.every, self.largest = every, largest

    def start(self, run: Run) -> None:
        """See whose gradients these are."""
        self._run = run

    def round(self, record: Record) -> bool:
        """Measure."""
        done = self._run.cursor.done
        if done // self.every == (done - record.get("rounds", 1)) // self.every:
            return False
        if "gradient_norm" not in record:
            record["gradient_norm"] = self._norm()
        return self.largest is not None and bool(record["gradient_norm"] > self.largest)

    def _norm(self) -> float:
        assert self._run.state is not None
        gradients = [parameter.grad for parameter in self._run.state.parameters.parameters.values()]
        parts = [grad.coalesce().values() if grad.is_sparse else grad for grad in gradients if grad is not None]
        return canonical_norm(*parts)
