"""Random schedules of faults on the in-process wire, each compared bit for bit with a run on which all goes well."""

import os
from typing import Any

from tests.chaos import schedules

COUNT = int(os.environ.get("SCHEDULES", "10000"))


def run(seed: int) -> dict[str, Any]:
    """Run them; the first mismatch is raised with its number."""
    happened = schedules(COUNT, first_seed=seed)
    return {
        "goal": f"{COUNT} schedules, 0 digest mismatches",
        "seen": f"{happened['schedules']} schedules, 0 mismatches",
        "holds": happened["schedules"] == COUNT,
        "happened": dict(happened),
    }
