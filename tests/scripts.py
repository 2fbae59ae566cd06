"""Runs a script as ``python script.py ARGUMENTS`` does, in a process that is forked off one that has imported torch."""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

from tests.forking import fork_with


def run(script: Path, folder: Path, *arguments: str, seconds: float) -> str:
    """Run a script in a folder; return what it printed, or raise AssertionError if it failed or took too long."""
    out, err = (folder.with_name(f"{folder.name}.{ending}") for ending in ("out", "err"))
    process = multiprocessing.get_context("forkserver").Process(
        target=_be, args=(script, folder, (out, err), arguments)
    )
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    printed = out.read_text()
    assert process.exitcode == 0, printed + err.read_text()
    return printed


def _be(script: Path, folder: Path, logs: tuple[Path, Path], arguments: tuple[str, ...]) -> None:
    """Be the script: its classes are those of __main__, and its cluster's processes import it anew."""
    for descriptor, log in enumerate(logs, 1):
        with log.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    sys.argv = [str(script), *arguments]
    os.chdir(folder)
    fork_with("dasktrain.trainer")
    runpy.run_path(str(script), run_name="__main__")
