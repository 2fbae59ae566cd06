"""Runs a script as ``python script.py ARGUMENTS`` does, in a process that is forked off one that has imported torch."""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

from tests.forking import fork_with


def run(script: Path, folder: Path, *arguments: str, seconds: float) -> str:
    """Run a script in a folder; return what it printed, or raise AssertionError if it failed or took too long."""
    log = folder.with_name(f"{folder.name}.log")
    process = multiprocessing.get_context("forkserver").Process(target=_be, args=(script, folder, log, arguments))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    printed = log.read_text()
    assert process.exitcode == 0, printed
    return printed


def _be(script: Path, folder: Path, log: Path, arguments: tuple[str, ...]) -> None:
    """Be the script: its classes are those of __main__, and its cluster's processes import it anew."""
    with log.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.argv = [str(script), *arguments]
    os.chdir(folder)
    fork_with("dasktrain.trainer")
    runpy.run_path(str(script), run_name="__main__")
