"""Break things on purpose, with an exact oracle: ``python -m benchmarks.chaos [schedules kills ...]``."""
