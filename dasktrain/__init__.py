"""Train a torch model on a Dask DataFrame: exact gradients, the same bits on any number of workers."""

from dasktrain import errors as errors
from dasktrain import models as models
from dasktrain import text as text
from dasktrain.checkpointer import Checkpoint as Checkpoint
from dasktrain.compute import Compute as Compute
from dasktrain.data.arrays import Arrays as Arrays
from dasktrain.data.records import Records as Records
from dasktrain.data.source import Schema as Schema
from dasktrain.data.table import Table as Table
from dasktrain.data.text import Text as Text
from dasktrain.estimators import LanguageModel as LanguageModel
from dasktrain.estimators import Seq2Seq as Seq2Seq
from dasktrain.estimators import TextClassifier as TextClassifier
from dasktrain.inspection import Report as Report
from dasktrain.inspection import check as check
from dasktrain.objective import accuracy as accuracy
from dasktrain.observe import EarlyStopping as EarlyStopping
from dasktrain.observe import History as History
from dasktrain.observe import Log as Log
from dasktrain.observe import Observer as Observer
from dasktrain.observe import Progress as Progress
from dasktrain.optimizers import Optimizers as Optimizers
from dasktrain.remote import RemoteRun as RemoteRun
from dasktrain.remote import attach as attach
from dasktrain.result import Result as Result
from dasktrain.result import load as load
from dasktrain.running import RunStatus as RunStatus
from dasktrain.running import runs as runs
from dasktrain.running import stop as stop
from dasktrain.strategies import GradientAveraging as GradientAveraging
from dasktrain.trainer import Trainer as Trainer
from dasktrain.wire.local import LocalWire as LocalWire

__version__ = "0.1.0"
__all__ = [
    "Arrays",
    "Checkpoint",
    "Compute",
    "EarlyStopping",
    "GradientAveraging",
    "History",
    "LanguageModel",
    "LocalWire",
    "Log",
    "Observer",
    "Optimizers",
    "Progress",
    "Records",
    "RemoteRun",
    "Report",
    "Result",
    "RunStatus",
    "Schema",
    "Seq2Seq",
    "Table",
    "Text",
    "TextClassifier",
    "Trainer",
    "accuracy",
    "attach",
    "check",
    "errors",
    "load",
    "models",
    "runs",
    "stop",
    "text",
]
