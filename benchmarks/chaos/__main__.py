"""Run every case, or those named, and print a table: ``make chaos``. SEED=n gives other random faults."""

import os
import sys
import time

from rich.console import Console
from rich.table import Table

from benchmarks.chaos import cost, drivers, kills, network, schedules, stops
from benchmarks.measure import write

CASES = {
    "schedules": schedules.run,
    "kills": kills.run,
    "drivers": drivers.run,
    "losses": kills.losses,
    "stops": stops.run,
    "network": network.run,
    "goodput": cost.goodput,
    "checkpoints": cost.checkpoints,
}


def main(names: list[str]) -> None:
    """Run cases, write each one's figures, and print all of them."""
    seed = int(os.environ.get("SEED", "0"))
    table = Table("case", "goal", "seen", "holds", "seconds", title=f"chaos, seed {seed}")
    for name in names or CASES:
        started = time.monotonic()
        figures = CASES[name](seed)
        seconds = f"{time.monotonic() - started:.0f}"
        write(f"chaos_{name}", {"seed": seed, **figures})
        table.add_row(name, figures["goal"], figures["seen"], "yes" if figures["holds"] else "NO", seconds)
    Console(width=160).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
