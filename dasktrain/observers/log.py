"""Records as lines of a file."""

import csv
import json
from pathlib import Path
from typing import IO, Any, Literal

import fsspec

from dasktrain.errors import BadInput
from dasktrain.observe import Observer, Record, Run


class Log(Observer):
    """Write records to a file as they come.

    Parameters
    ----------
    path
        ``*.csv`` or ``*.jsonl``, a path or any fsspec URL; replaced if it exists. A resumed run writes what was before
        it as well. Most object stores show a file once it is complete, which is when the run has ended.
    every
        Whether to write epochs or rounds.

    Raises
    ------
    BadInput
        It is of another kind.
    OSError
        Before the first round: it cannot be written.
    """

    runs_on = "client"

    def __init__(self, path: str | Path, every: Literal["epoch", "round"] = "epoch") -> None:
        self.path, self.every = str(path), every
        if not self.path.endswith((".csv", ".jsonl")) or every not in ("epoch", "round"):
            raise BadInput(f"A Log must be .csv or .jsonl, every epoch or round, however it is {path}, every {every}")
        self._file: IO[str] | None = None
        self._writer: Any = None

    def start(self, run: Run) -> None:
        """Open the file and write what was before a resume."""
        self._table: list[Record] = []
        self._open()
        for record in run.history if self.every == "epoch" else run.history.rounds:
            self._write(record)

    def _open(self) -> None:
        self._file, self._writer = fsspec.open(self.path, "w", newline="").open(), None

    def round(self, record: Record) -> None:
        """Write a round."""
        if self.every == "round":
            self._write(record)

    def epoch(self, record: Record) -> None:
        """Write an epoch."""
        if self.every == "epoch":
            self._write(record)

    def _write(self, record: Record) -> None:
        assert self._file is not None
        if self.path.endswith(".jsonl"):
            self._file.write(json.dumps(record) + "\n")
        else:
            self._table.append(record)
            if self._writer is None or not record.keys() <= set(self._writer.fieldnames):
                self._widen()
            else:
                self._writer.writerow(record)
        self._file.flush()

    def _widen(self) -> None:
        """Write the table anew, with columns for what its last row has as well."""
        if self._file is not None and self._writer is not None:
            self._file.close()
            self._open()
        assert self._file is not None
        names = dict.fromkeys(name for record in self._table for name in record)
        self._writer = csv.DictWriter(self._file, list(names))
        self._writer.writeheader()
        self._writer.writerows(self._table)

    def end(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._file = self._writer = None
