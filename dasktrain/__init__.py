"""Train a torch model on a Dask DataFrame: exact gradients, the same bits on any number of workers."""

from dasktrain import errors as errors
from dasktrain.checkpointer import Checkpoint as Checkpoint
from dasktrain.data.arrays import Arrays as Arrays
from dasktrain.data.source import Schema as Schema
from dasktrain.data.table import Table as Table
from dasktrain.objective import accuracy as accuracy
from dasktrain.observe import EarlyStopping as EarlyStopping
from dasktrain.observe import History as History
from dasktrain.observe import Log as Log
from dasktrain.observe import Observer as Observer
from dasktrain.observe import Progress as Progress
from dasktrain.remote import RemoteRun as RemoteRun
from dasktrain.remote import attach as attach
from dasktrain.result import Result as Result
from dasktrain.result import load as load
from dasktrain.strategies import GradientAveraging as GradientAveraging
from dasktrain.trainer import Trainer as Trainer
from dasktrain.wire.local import LocalWire as LocalWire

__version__ = "0.1.0"
__all__ = [
    "Arrays",
    "Checkpoint",
    "EarlyStopping",
    "GradientAveraging",
    "History",
    "LocalWire",
    "Log",
    "Observer",
    "Progress",
    "RemoteRun",
    "Result",
    "Schema",
    "Table",
    "Trainer",
    "accuracy",
    "attach",
    "errors",
    "load",
]
