"""Run a peer of the table: ``python -m benchmarks.peers NAME FOLDER WARM``.

Prints the seconds of an epoch as JSON; null if the peer is not installed.
"""

import json
import sys
from importlib import import_module
from pathlib import Path


def seconds(name: str, folder: Path, warm: int) -> float | None:
    """Return the seconds of a peer's epoch, after some rounds that do not count."""
    try:
        peer = import_module(f"benchmarks.peers.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("benchmarks"):
            raise
        return None
    found: float = peer.seconds(folder, warm)
    return found


if __name__ == "__main__":
    print(json.dumps(seconds(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
