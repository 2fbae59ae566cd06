"""Run every benchmark, or those named: ``python -m benchmarks [empty_round memory text ...]``."""

import subprocess
import sys

CASES = (
    "empty_round",
    "one_worker_tax",
    "steps",
    "sparse",
    "table",
    "network",
    "sharded",
    "cost_model",
    "memory",
    "larger_than_memory",
    "text",
    "language_model",
    "folds",
    "search",
    "observers",
    "imbalance",
    "few_bytes",
    "many_leases",
    "fuzz",
    "newcomer",
)

if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        subprocess.run([sys.executable, "-m", f"benchmarks.{case}"], check=True)
