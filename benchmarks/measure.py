"""What every benchmark needs: spreads, the machine, and a place for the figures."""

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Return median, quartiles and the 99th percentile."""
    points = np.percentile(np.asarray(values) * scale, [25, 50, 75, 99])
    return dict(zip(("p25", "p50", "p75", "p99"), (round(float(point), 4) for point in points), strict=True))


def machine() -> dict[str, Any]:
    """Describe where the figures come from."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "dask", "distributed", "numpy", "pandas", "pyarrow")},
    }


def write(name: str, figures: dict[str, Any]) -> None:
    """Print figures and write them to results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"case": name, **figures, "machine": machine()}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text, flush=True)
