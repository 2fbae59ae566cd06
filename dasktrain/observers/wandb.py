"""Figures in Weights & Biases."""

from pathlib import Path
from typing import Literal

from dasktrain.errors import BadInput
from dasktrain.observe import Run
from dasktrain.observers.tracker import Tracker, Written, facts_of, needs, so_far


class WandB(Tracker):
    """Write figures, settings and the digest to a run of Weights & Biases; ``pip install 'dasktrain[wandb]'``.

    Figures are named ``round/loss``, ``epoch/valid_loss`` and so on; their step is the number of rounds done.

    Parameters
    ----------
    project
        Its name.
    name
        Of the run; None: dasktrain's id of it.
    mode
        ``"offline"`` writes files that ``wandb sync`` sends later. A run that is resumed is then another to W&B, with
        all that was before it: nobody knows offline what the first has.
    directory
        Where files lie, below ``wandb``; None: here.
    every
        Rounds from one that is written to the next.

    Raises
    ------
    BadInput
        wandb is not installed, or `mode` is another.
    wandb.errors.Error
        Before the first round: nobody is logged in, or the server cannot be reached.
    """

    def __init__(
        self,
        project: str = "dasktrain",
        name: str | None = None,
        mode: Literal["online", "offline", "disabled"] = "online",
        directory: str | Path | None = None,
        every: int = 10,
    ) -> None:
        super().__init__(every)
        if mode not in (choices := ("online", "offline", "disabled")):
            raise BadInput(f"mode must be one of {choices}, however it is {mode!r}")
        needs("wandb", "wandb")
        self.project, self.name, self.mode, self.directory = project, name, mode, directory

    def open(self, run: Run, place: str | None) -> tuple[str, Written]:
        """Begin a run of W&B, or go on with the one there was; its output is left where it goes."""
        import wandb

        place = place if self.mode == "online" else None
        self._wandb = wandb.init(
            project=self.project,
            name=self.name or run.id,
            id=place,
            resume="allow" if place is not None else None,
            mode=self.mode,
            dir=self.directory,
            config=facts_of(run),
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),
        )
        if place is None:
            return str(self._wandb.id), {"round": 0, "epoch": 0}
        # A server may have more than the checkpoint knows of: it takes no step twice.
        return place, {of: max(step, self._wandb.step - 1) for of, step in so_far(run).items()}

    def put(self, figures: dict[str, float], step: int) -> None:
        """Hand figures to W&B's own process."""
        self._wandb.log(figures, step=step)

    def close(self, ended: str, digest: str | None) -> None:
        """End the run of W&B."""
        self._wandb.summary.update({"ended": ended} | ({} if digest is None else {"digest": digest}))
        self._wandb.finish(exit_code=int(ended == "failed"))
