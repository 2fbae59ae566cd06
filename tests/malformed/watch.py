"""See whether bytes that were only to be read made something run."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

#: audit events of what a reader of data never does
FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")
_seen: list[str] = []
_watching = False


class Canary:
    """Its pickle changes the environment of whoever loads it."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return os.putenv, ("DASKTRAIN_TEST_CANARY", "ran")


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and event in FORBIDDEN:
        _seen.append(f"{event}{arguments}")


@cache
def _install() -> None:
    sys.addaudithook(_hook)


@contextmanager
def executions() -> Iterator[list[str]]:
    """Yield what ran in the block and should not have; the interpreter cannot take a hook out again."""
    global _watching
    _install()
    _seen.clear()
    _watching = True
    try:
        yield _seen
    finally:
        _watching = False
