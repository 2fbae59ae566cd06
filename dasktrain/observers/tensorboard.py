"""Figures in TensorBoard."""

from pathlib import Path
from typing import Any

from dasktrain.observe import Run
from dasktrain.observers.tracker import Tracker, Written, facts_of, needs, so_far


class TensorBoard(Tracker):
    """Write figures, settings and the digest for TensorBoard; ``pip install 'dasktrain[tensorboard]'``.

    Figures are named ``round/loss``, ``epoch/valid_loss`` and so on; their step is the number of rounds done.

    Parameters
    ----------
    directory
        One for each run: what an earlier run left there is no longer shown, unless it is the one that is resumed.
    every
        Rounds from one that is written to the next.

    Raises
    ------
    BadInput
        TensorBoard is not installed.
    OSError
        Before the first round: the directory cannot be written.
    """

    def __init__(self, directory: str | Path, every: int = 10) -> None:
        super().__init__(every)
        needs("tensorboard", "tensorboard")
        self.directory = str(directory)

    def open(self, run: Run, place: str | None) -> tuple[str, Written]:
        """Open another file of events, which hides those of steps that are to come again."""
        from torch.utils.tensorboard import SummaryWriter

        known = place == self.directory
        self._writer: Any = SummaryWriter(self.directory, purge_step=run.cursor.done + 1 if known else 0)
        lines = (f"| {name} | {value} |" for name, value in facts_of(run).items())
        self._writer.add_text("settings", "\n".join(["| | |", "|---|---|", *lines]), run.cursor.done)
        return self.directory, so_far(run) if known else {"round": 0, "epoch": 0}

    def put(self, figures: dict[str, float], step: int) -> None:
        """Queue one event of all figures, which costs a fifth of one event each."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._writer.file_writer.add_summary(Summary(value=values), step)

    def close(self, ended: str, digest: str | None) -> None:
        """Write the last of it."""
        step = max(self._written.values())
        self._writer.add_text("ended", ended, step)
        if digest is not None:
            self._writer.add_text("digest", digest, step)
        self._writer.close()
