"""What a process has of memory that it shares, and whether it goes on, as the kernel tells it."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from threading import Event
from time import monotonic

OURS = "dasktrain"


def mapped(pid: int) -> list[str]:
    """Return the access rights of each block of ours that a process has mapped."""
    with suppress(FileNotFoundError, ProcessLookupError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return [line.split()[1] for line in lines if f"memfd:{OURS}" in line]
    return []


def opened(pid: int, name: str = f"memfd:{OURS}") -> int:
    """Return how many open files a process has whose names have this in them."""
    return sum(name in link for link in _links(pid))


def named_sockets(pid: int) -> set[str]:
    """Return the abstract names of ours among a process's sockets."""
    inodes = {link.removeprefix("socket:[").removesuffix("]") for link in _links(pid)}
    return {fields[7] for fields in _sockets() if fields[6] in inodes}


def all_named_sockets() -> set[str]:
    """Return the abstract names of ours that anybody in this network namespace has."""
    return {fields[7] for fields in _sockets()}


def stop(pid: int, patience: float = 10.0) -> None:
    """Stop a process: other threads go on until the one that gets the signal has run, and it is waited for them."""
    os.kill(pid, signal.SIGSTOP)
    deadline, tick = monotonic() + patience, Event()
    while any(state != "T" for state in _states(pid)):
        assert monotonic() < deadline, f"process {pid} goes on"
        tick.wait(0.001)


def _states(pid: int) -> list[str]:
    """Return the kernel's letter for the state of each thread."""
    lines = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return [line.rpartition(")")[2].split()[0] for line in lines]


def _sockets() -> list[list[str]]:
    lines = Path("/proc/net/unix").read_text().splitlines()
    return [fields for fields in map(str.split, lines) if len(fields) == 8 and fields[7].startswith(f"@{OURS}")]


def _links(pid: int) -> list[str]:
    links = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # it is closed by now
                links.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    return links
