"""Stop when a figure no longer improves."""

import math
from typing import Any, Literal

from dasktrain.errors import BadInput, nearest
from dasktrain.observe import Observer, Record, Run, sign_of
from dasktrain.state import Snapshot


class EarlyStopping(Observer):
    """Stop when a figure no longer improves.

    Parameters
    ----------
    monitor
        A key of the epoch records, such as ``"valid_loss"`` or ``"valid_accuracy"``.
    patience
        Epochs without improvement to wait.
    min_delta
        Least change that counts as one.
    mode
        Whether less or more is better; None: less for names that end in "loss", else more.
    restore_best
        Whether the run ends with the parameters and optimizer state of its best epoch.
    """

    def __init__(
        self,
        monitor: str = "valid_loss",
        patience: int = 5,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] | None = None,
        restore_best: bool = True,
    ) -> None:
        if patience < 1 or min_delta < 0:
            raise BadInput(f"patience must be >= 1 and min_delta >= 0, however they are {patience} and {min_delta}")
        if mode not in (None, "min", "max"):
            raise BadInput(f'mode must be "min", "max" or None, however it is {mode!r}')
        self.monitor, self.patience, self.min_delta, self.restore_best = (
            monitor,
            patience,
            min_delta,
            restore_best,
        )
        self._sign = sign_of(monitor, mode)
        self.best: float | None = None
        self.best_epoch: int | None = None

    def start(self, run: Run) -> None:
        """Forget an earlier run."""
        self._run, self._least, self.best, self.best_epoch = run, math.inf, None, None
        self._snapshot: Snapshot | None = None

    def epoch(self, record: Record) -> bool | None:
        """Compare with the best whole epoch so far."""
        if record["rounds"] < self._run.rounds_per_epoch:
            return None
        if self.monitor not in record:
            raise BadInput(
                f"EarlyStopping must monitor a figure of the history, however {self.monitor!r} is none; "
                f"{nearest(self.monitor, list(record))}"
            )
        value = self._sign * record[self.monitor]
        value = math.inf if math.isnan(value) else value
        if value < self._least - self.min_delta or self.best_epoch is None:
            self._least, self.best, self.best_epoch = value, record[self.monitor], record["epoch"]
            assert self._run.state is not None
            self._snapshot = self._run.state.snapshot() if self.restore_best else None
        return bool(record["epoch"] - self.best_epoch >= self.patience)

    def end(self) -> Snapshot | None:
        """Go back to the best epoch."""
        snapshot, self._snapshot = self._snapshot, None
        return snapshot

    def state_dict(self) -> dict[str, Any]:
        """Return the best epoch and its snapshot."""
        best = {"least": self._least, "best": self.best, "best_epoch": self.best_epoch}
        return best | {"snapshot": None if self._snapshot is None else vars(self._snapshot).copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the best epoch."""
        self._least, self.best, self.best_epoch = state["least"], state["best"], state["best_epoch"]
        self._snapshot = None if state["snapshot"] is None else Snapshot(**state["snapshot"])
