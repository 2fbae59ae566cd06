"""Figures in MLflow."""

from concurrent.futures import ThreadPoolExecutor
from time import monotonic, time
from typing import TYPE_CHECKING

from dasktrain.observe import Run
from dasktrain.observers.tracker import Of, Tracker, Written, facts_of, needs

if TYPE_CHECKING:
    from mlflow.entities import Metric

#: seconds of figures that are sent together, and how many the server takes at once
PAUSE, MOST = 5.0, 1000
#: how MLflow calls what a run may end with, if not with all that it was to do
STATUS = {"failed": "FAILED", "interrupt": "KILLED"}


class MLflow(Tracker):
    """Write figures, settings and the digest to an MLflow run; ``pip install 'dasktrain[mlflow]'``.

    Figures are named ``round/loss``, ``epoch/valid_loss`` and so on; their step is the number of rounds done. They are
    sent by a thread of their own, some seconds' at once. The runs of your own, ``mlflow.start_run()``, are left alone.

    Parameters
    ----------
    experiment
        Its name; made if there is none.
    uri
        Of the tracking server or store, such as ``"sqlite:///mlflow.db"``, which needs no server; None: MLflow's own
        setting.
    name
        Of the run; None: dasktrain's id of it.
    every
        Rounds from one that is written to the next.

    Raises
    ------
    BadInput
        MLflow is not installed.
    mlflow.exceptions.MlflowException
        Before the first round: the store cannot be used.
    """

    def __init__(
        self, experiment: str = "dasktrain", uri: str | None = None, name: str | None = None, every: int = 10
    ) -> None:
        super().__init__(every)
        needs("mlflow", "mlflow")
        self.experiment, self.uri, self.name = experiment, uri, name

    def open(self, run: Run, place: str | None) -> tuple[str, Written]:
        """Begin a run of MLflow, or open the one there was."""
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        self._client = MlflowClient(tracking_uri=self.uri)
        self._metrics: list[Metric] = []
        self._sent = monotonic()
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="dasktrain-mlflow")
        if place is not None:
            try:
                self._client.update_run(place, status="RUNNING")
                self._id = place
                return place, {"round": self._last(place, "round"), "epoch": self._last(place, "epoch")}
            except MlflowException:  # another store than the resumed run's, or it was deleted
                pass
        found = self._client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self.experiment)
        self._id = str(self._client.create_run(experiment, run_name=self.name or run.id).info.run_id)
        params = [Param(name, str(value)) for name, value in facts_of(run).items()]
        self._client.log_batch(self._id, params=params)
        return self._id, {"round": 0, "epoch": 0}

    def _last(self, place: str, of: Of) -> int:
        """Return the last step that a run of MLflow has: it may be beyond the checkpoint, or before it."""
        return max((metric.step for metric in self._client.get_metric_history(place, f"{of}/loss")), default=0)

    def put(self, figures: dict[str, float], step: int) -> None:
        """Keep figures until there are enough, or it is time."""
        from mlflow.entities import Metric

        now = int(time() * 1000)
        self._metrics += [Metric(name, value, now, step) for name, value in figures.items()]
        if len(self._metrics) > MOST // 2 or monotonic() - self._sent > PAUSE:
            self._send()

    def _send(self) -> None:
        self._sent, metrics, self._metrics = monotonic(), self._metrics, []
        self._sender.submit(self._batches, metrics)

    def _batches(self, metrics: "list[Metric]") -> None:
        try:
            for start in range(0, len(metrics), MOST):
                self._client.log_batch(self._id, metrics=metrics[start : start + MOST])
        except Exception as error:
            self._warn(error)

    def close(self, ended: str, digest: str | None) -> None:
        """Send the rest and end the run of MLflow."""
        self._send()
        self._sender.shutdown()
        self._client.set_tag(self._id, "ended", ended)
        if digest is not None:
            self._client.set_tag(self._id, "digest", digest)
        self._client.set_terminated(self._id, status=STATUS.get(ended, "FINISHED"))
