"""What a process has of memory that it shares, as the kernel tells it."""

import os
from contextlib import suppress
from pathlib import Path

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
