"""An end to a run once it has taken its time, or its money."""

from time import monotonic
from typing import Any

from dasktrain.errors import BadInput
from dasktrain.observe import Observer, Record, Run


class Budget(Observer):
    """Stop after the round by which a run's time or money is spent.

    Both count from the run's beginning, over all resumes, with the reading of the data and without the time between
    two fits. ``result.ended`` is then "observer". A resume with a larger budget goes on.

    Parameters
    ----------
    seconds
        Of the run; None: any.
    cost
        Of all workers for as long as they are there, in any currency; None: any.
    cost_per_worker_hour
        Of one worker, in the same currency. It must be given with `cost`.

    Attributes
    ----------
    seconds_spent, spent : float
        So far.

    Raises
    ------
    BadInput
        There is nothing to keep to, or it is not above 0.
    """

    def __init__(
        self, seconds: float | None = None, cost: float | None = None, cost_per_worker_hour: float | None = None
    ) -> None:
        if (cost is None) != (cost_per_worker_hour is None) or (seconds is None and cost is None):
            raise BadInput(
                f"A Budget must have seconds, or cost and cost_per_worker_hour, however they are {seconds}, {cost} and "
                f"{cost_per_worker_hour}"
            )
        for name, value in {"seconds": seconds, "cost": cost, "cost_per_worker_hour": cost_per_worker_hour}.items():
            if value is not None and not value > 0:
                raise BadInput(f"{name} must be above 0, however it is {value}")
        self.seconds, self.cost, self.cost_per_worker_hour = seconds, cost, cost_per_worker_hour
        self.seconds_spent = self.spent = 0.0
        self._since: float | None = None
        self._alone = False  # whether it asked for the end, and nobody before it had

    def stage(self, text: str) -> None:
        """Begin to count when the run looks for workers."""
        if self._since is None:
            self._begin()

    def _begin(self) -> None:
        self._since, self._alone, self.seconds_spent, self.spent = monotonic(), False, 0.0, 0.0

    def start(self, run: Run) -> None:
        """Count what was before the first round, with the workers that are there by now."""
        self._run = run
        if self._since is None:
            self._begin()
        self._count()

    def round(self, record: Record) -> bool:
        """Count, and ask for the end if there is nothing left."""
        self._count()
        self._alone = self._is_spent() and not self._run.cursor.wished
        return self._is_spent()

    def epoch(self, record: Record) -> None:
        """Count the evaluation."""
        self._count()

    def _count(self) -> None:
        assert self._since is not None
        now = monotonic()
        passed, self._since = now - self._since, now
        self.seconds_spent += passed
        self.spent += passed / 3600 * len(self._run.members()) * (self.cost_per_worker_hour or 0.0)

    def _is_spent(self) -> bool:
        time = self.seconds is not None and self.seconds_spent >= self.seconds
        return time or (self.cost is not None and self.spent >= self.cost)

    def end(self) -> None:
        """Count the rest."""
        self._since = None

    def state_dict(self) -> dict[str, Any]:
        """Return what is spent."""
        return {"seconds": self.seconds_spent, "spent": self.spent, "alone": self._alone}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what was spent; take back a wish of its own if there is more to spend now."""
        self.seconds_spent += state["seconds"]
        self.spent += state["spent"]
        if state["alone"] and not self._is_spent():
            self._run.cursor.wished = False
