"""Train a torch model on a Dask DataFrame: exact gradients, the same bits on any number of workers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dasktrain import balance as balance
    from dasktrain import errors as errors
    from dasktrain import models as models
    from dasktrain import text as text
    from dasktrain.capacity import ClusterPlan as ClusterPlan
    from dasktrain.capacity import plan_cluster as plan_cluster
    from dasktrain.checkpointer import Checkpoint as Checkpoint
    from dasktrain.compression.power_sgd import PowerSGD as PowerSGD
    from dasktrain.compression.rounding import Rounding as Rounding
    from dasktrain.compression.top_k import TopK as TopK
    from dasktrain.compute import Compute as Compute
    from dasktrain.dashboard.observer import Dashboard as Dashboard
    from dasktrain.data.arrays import Arrays as Arrays
    from dasktrain.data.records import Records as Records
    from dasktrain.data.source import Schema as Schema
    from dasktrain.data.table import Table as Table
    from dasktrain.data.text import Text as Text
    from dasktrain.ensemble import Ensemble as Ensemble
    from dasktrain.estimators import LanguageModel as LanguageModel
    from dasktrain.estimators import Seq2Seq as Seq2Seq
    from dasktrain.estimators import TabularClassifier as TabularClassifier
    from dasktrain.estimators import TabularRegressor as TabularRegressor
    from dasktrain.estimators import TextClassifier as TextClassifier
    from dasktrain.folds import Fold as Fold
    from dasktrain.inspection import Report as Report
    from dasktrain.inspection import check as check
    from dasktrain.learning_rates import LearningRates as LearningRates
    from dasktrain.learning_rates import find_learning_rate as find_learning_rate
    from dasktrain.local import LocalModel as LocalModel
    from dasktrain.local import load_local as load_local
    from dasktrain.objective import accuracy as accuracy
    from dasktrain.observe import History as History
    from dasktrain.observe import Observer as Observer
    from dasktrain.observers.budget import Budget as Budget
    from dasktrain.observers.early_stopping import EarlyStopping as EarlyStopping
    from dasktrain.observers.log import Log as Log
    from dasktrain.observers.mlflow import MLflow as MLflow
    from dasktrain.observers.monitor import Monitor as Monitor
    from dasktrain.observers.progress import Progress as Progress
    from dasktrain.observers.tensorboard import TensorBoard as TensorBoard
    from dasktrain.observers.wandb import WandB as WandB
    from dasktrain.optimizers import Optimizers as Optimizers
    from dasktrain.remote import RemoteRun as RemoteRun
    from dasktrain.remote import attach as attach
    from dasktrain.result import Result as Result
    from dasktrain.result import load as load
    from dasktrain.running import RunStatus as RunStatus
    from dasktrain.running import runs as runs
    from dasktrain.running import stop as stop
    from dasktrain.searching import Halving as Halving
    from dasktrain.searching import SearchResult as SearchResult
    from dasktrain.searching import search as search
    from dasktrain.splitting import split as split
    from dasktrain.strategies import DiLoCo as DiLoCo
    from dasktrain.strategies import GradientAveraging as GradientAveraging
    from dasktrain.strategies import LocalSGD as LocalSGD
    from dasktrain.trainer import Trainer as Trainer
    from dasktrain.wire.local import LocalWire as LocalWire

__version__ = "0.1.0"
#: where names are found when they are first used: importing the package loads nothing
_HOMES = {
    "Arrays": "dasktrain.data.arrays",
    "Budget": "dasktrain.observers.budget",
    "Checkpoint": "dasktrain.checkpointer",
    "ClusterPlan": "dasktrain.capacity",
    "Compute": "dasktrain.compute",
    "Dashboard": "dasktrain.dashboard.observer",
    "DiLoCo": "dasktrain.strategies",
    "EarlyStopping": "dasktrain.observers.early_stopping",
    "Ensemble": "dasktrain.ensemble",
    "Fold": "dasktrain.folds",
    "GradientAveraging": "dasktrain.strategies",
    "Halving": "dasktrain.searching",
    "History": "dasktrain.observe",
    "LanguageModel": "dasktrain.estimators",
    "LearningRates": "dasktrain.learning_rates",
    "LocalModel": "dasktrain.local",
    "LocalSGD": "dasktrain.strategies",
    "LocalWire": "dasktrain.wire.local",
    "Log": "dasktrain.observers.log",
    "MLflow": "dasktrain.observers.mlflow",
    "Monitor": "dasktrain.observers.monitor",
    "Observer": "dasktrain.observe",
    "Optimizers": "dasktrain.optimizers",
    "PowerSGD": "dasktrain.compression.power_sgd",
    "Progress": "dasktrain.observers.progress",
    "Records": "dasktrain.data.records",
    "RemoteRun": "dasktrain.remote",
    "Report": "dasktrain.inspection",
    "Result": "dasktrain.result",
    "Rounding": "dasktrain.compression.rounding",
    "RunStatus": "dasktrain.running",
    "Schema": "dasktrain.data.source",
    "SearchResult": "dasktrain.searching",
    "Seq2Seq": "dasktrain.estimators",
    "Table": "dasktrain.data.table",
    "TabularClassifier": "dasktrain.estimators",
    "TabularRegressor": "dasktrain.estimators",
    "TensorBoard": "dasktrain.observers.tensorboard",
    "Text": "dasktrain.data.text",
    "TextClassifier": "dasktrain.estimators",
    "TopK": "dasktrain.compression.top_k",
    "Trainer": "dasktrain.trainer",
    "WandB": "dasktrain.observers.wandb",
    "accuracy": "dasktrain.objective",
    "attach": "dasktrain.remote",
    "balance": "dasktrain.balance",
    "check": "dasktrain.inspection",
    "errors": "dasktrain.errors",
    "find_learning_rate": "dasktrain.learning_rates",
    "load": "dasktrain.result",
    "load_local": "dasktrain.local",
    "models": "dasktrain.models",
    "plan_cluster": "dasktrain.capacity",
    "runs": "dasktrain.running",
    "search": "dasktrain.searching",
    "split": "dasktrain.splitting",
    "stop": "dasktrain.running",
    "text": "dasktrain.text",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"dasktrain must have what is asked of it, however it has no {name!r}")
    home = import_module(_HOMES[name])
    found = home if home.__name__ == f"{__name__}.{name}" else getattr(home, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*globals(), *__all__]
