"""Have everything that reads bytes read damaged ones: what it makes of them, how long it takes, whether any of it runs.

``ATTEMPTS`` (100,000) are shared out among readers; ``SEED=n`` gives other damage.
"""

import os
import resource
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import write
from tests.malformed.attempts import READERS, outcome

ATTEMPTS, SEED = int(os.environ.get("ATTEMPTS", "100000")), int(os.environ.get("SEED", "0"))
#: share of each reader, in hundredths: YAML takes its time
SHARES = {"connection": 25, "message": 15, "topic": 5, "settings": 4, "checkpoint": 25, "result": 15, "encoding": 10}
#: what must not come of reading
BAD = ("HANG", "EXECUTION", "CRASH")
#: seconds after which reading counts as hanging
PATIENCE = 10


class Hangs(BaseException):
    """Reading did not end."""


@contextmanager
def deadline() -> Iterator[None]:
    """Raise Hangs where the block is after PATIENCE seconds."""

    def hang(*_: object) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(reader: str, seed: str) -> str:
    """Return what came of reading something damaged; what must not happen is in capitals."""
    try:
        with deadline():
            return outcome(reader, Random(seed))
    except Hangs:
        return "HANG"
    except AssertionError as error:
        print(reader, seed, error)
        return "EXECUTION"
    except BaseException as error:  # a panic of Rust is no Exception
        print(reader, seed, repr(error)[:200])
        return f"CRASH {type(error).__name__}"


def run(reader: str, attempts: int) -> dict[str, Any]:
    """Return the outcomes of one reader, and the longest it took."""
    outcomes, slowest = Counter[str](), 0.0
    for number in range(attempts):
        started = perf_counter()
        outcomes[attempt(reader, f"{SEED} {number}")] += 1
        if number:  # the first makes what is valid
            slowest = max(slowest, perf_counter() - started)
    return {"attempts": attempts, "outcomes": dict(outcomes.most_common()), "slowest, s": round(slowest, 3)}


def main() -> None:
    """Fuzz all readers, and say what was seen."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shares = SHARES | {reader: 1 for reader in READERS if reader not in SHARES}
    figures = {reader: run(reader, ATTEMPTS * share // sum(shares.values())) for reader, share in shares.items()}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    bad = sum(n for each in figures.values() for name, n in each["outcomes"].items() if name.startswith(BAD))
    table = Table("reader", "attempts", "outcomes", "slowest, s", title=f"damaged bytes, seed {SEED}")
    for reader, each in figures.items():
        outcomes = ", ".join(f"{name} {count}" for name, count in each["outcomes"].items())
        table.add_row(reader, str(each["attempts"]), outcomes, str(each["slowest, s"]))
    write("fuzz", {"seed": SEED, "holds": not bad, "memory grown at its peak, MiB": round(grown), "readers": figures})
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
