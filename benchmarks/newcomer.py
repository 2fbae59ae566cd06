"""A newcomer's path: a fresh environment, README's commands, its first block, its line that draws the learning curve.

Nothing is done that README does not say. Versions are those of .ci/constraints.txt, from whatever index pip uses here.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from benchmarks.measure import write

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PICTURE = "curve.png"
TIMED = """
from time import perf_counter
began = perf_counter()
{block}
trained = perf_counter()
{picture}
print(trained - began, perf_counter() - trained)
"""
#: bytes that a picture with something in it has at least
DRAWN = 10_000


def installs() -> list[str]:
    """Return README's commands that install it."""
    return re.findall(r"^\$ (pip install .+?)(?:\s+#.*)?$", README, re.MULTILINE)


def block() -> str:
    """Return README's first block of Python."""
    found = re.search(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def picture() -> str:
    """Return README's line that draws the curve of what the first block has trained."""
    found = re.search(rf'`(model\.result_\.plot\(\)\.savefig\("{PICTURE}"\))`', README)
    assert found is not None
    return found[1]


def timed(command: list[str], **settings: str | Path | dict[str, str]) -> tuple[float, str]:
    """Run a command; return its seconds, and what it printed."""
    began = perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **settings)  # type: ignore[call-overload]
    return perf_counter() - began, done.stdout


def steps(folder: Path) -> dict[str, float]:
    """Go the path in an empty folder; return the seconds of each step."""
    venv, found = folder / "venv", dict[str, float]()
    found["python -m venv"], _ = timed([sys.executable, "-m", "venv", str(venv)])
    constrained = os.environ | {"PIP_CONSTRAINT": str(ROOT / ".ci" / "constraints.txt")}
    constrained.pop("PYTHONPATH", None)
    for command in installs():
        words = shlex.split(command)
        found[command], _ = timed([str(venv / "bin" / words[0]), *words[1:], "--quiet"], cwd=ROOT, env=constrained)
    script = folder / "first.py"
    script.write_text(TIMED.format(block=block(), picture=picture()))
    whole, printed = timed([str(venv / "bin" / "python"), str(script)], cwd=folder, env=constrained)
    trained, drawn = map(float, printed.splitlines()[-1].split())
    assert (folder / PICTURE).stat().st_size > DRAWN
    return found | {"start Python": whole - trained - drawn, "first block": trained, picture(): drawn}


def run() -> None:
    """Measure and write."""
    with tempfile.TemporaryDirectory() as folder:
        found = steps(Path(folder))
    seconds = {step: round(value, 2) for step, value in found.items()}
    for step, value in seconds.items():
        print(f"{value:8.2f} s  {step}", flush=True)
    write("newcomer", {"seconds": seconds, "total, s": round(sum(found.values()), 1)})


if __name__ == "__main__":
    run()
