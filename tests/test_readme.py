"""README's blocks and every example run, as a user would run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)


def run(script: Path, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, timeout=110, env=os.environ
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme_block_runs(number: int, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(BLOCKS[number])
    assert "epoch" in run(script, tmp_path)


def test_readme_has_blocks() -> None:
    assert len(BLOCKS) == 3


def test_tabular_example_reaches_its_goal_and_leaves_what_it_says(tmp_path: Path) -> None:
    printed = run(ROOT / "examples" / "01_tabular.py", tmp_path)
    assert "equal, bit for bit" in printed
    made = {path.name for path in (tmp_path / "demo-output").iterdir()}
    assert made == {"data", "model", "history.csv", "learning-curve.png"}


def test_survival_example_kills_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    printed = run(ROOT / "examples" / "02_survive.py", tmp_path)
    assert printed.count("kill -9") == 4
    assert "equal, bit for bit" in printed


def test_every_example_has_a_test() -> None:
    names = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert all(name in Path(__file__).read_text() for name in names)
