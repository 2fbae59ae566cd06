"""README's blocks and every example run, as a user would run them."""

import asyncio
import re
from functools import partial
from pathlib import Path

import pytest

from benchmarks import newcomer
from tests import scripts

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```", newcomer.README, flags=re.MULTILINE | re.DOTALL)
#: examples train for real: with others beside them they may take a while
SECONDS = 300
pytestmark = pytest.mark.timeout(SECONDS)
run = partial(scripts.run, seconds=SECONDS - 20)


def test_first_block_and_the_line_that_draws_its_curve_run(tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(newcomer.block() + newcomer.picture())
    assert "epoch" in run(script, tmp_path)
    assert (tmp_path / newcomer.PICTURE).stat().st_size > newcomer.DRAWN


def test_a_newcomer_installs_torch_and_what_draws() -> None:
    assert newcomer.block() == BLOCKS[0]
    assert newcomer.installs() == ["pip install 'torch>=2.10'", "pip install '.[plot]'"]


@pytest.mark.parametrize("number", range(1, len(BLOCKS)))
def test_readme_block_runs(number: int, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(BLOCKS[number])
    assert "epoch" in run(script, tmp_path)


def test_readme_has_blocks() -> None:
    assert len(BLOCKS) == 6


def test_first_model_takes_six_lines() -> None:
    assert sum(map(bool, BLOCKS[0].splitlines())) <= 6


def test_tabular_example_reaches_its_goal_and_leaves_what_it_says(tmp_path: Path) -> None:
    printed = run(ROOT / "examples" / "01_tabular.py", tmp_path)
    assert "equal, bit for bit" in printed
    made = {path.name for path in (tmp_path / "demo-output").iterdir()}
    assert made == {"data", "model", "history.csv", "learning-curve.png"}


def test_survival_example_kills_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    printed = run(ROOT / "examples" / "05_survive.py", tmp_path)
    assert printed.count("kill -9") == 4
    assert "equal, bit for bit" in printed


def test_language_model_example_writes_as_it_learns(tmp_path: Path) -> None:
    printed = run(ROOT / "examples" / "02_language_model.py", tmp_path, "--rounds", "50")
    assert printed.count("--- after") == 5
    found = re.search(r"perplexity on \d+ held-out files: ([\d.]+), of (\d+) tokens", printed)
    assert found
    assert float(found[1]) < float(found[2]) / 2


def test_classification_example_beats_the_most_frequent_class(tmp_path: Path) -> None:
    printed = run(ROOT / "examples" / "03_classification.py", tmp_path, "--rounds", "60")
    found = re.search(r"accuracy on held-out files ([\d.]+); always the most frequent package ([\d.]+)", printed)
    assert found
    assert float(found[1]) > float(found[2]) + 0.1


def test_sequence_to_sequence_example_reaches_its_goal_on_numbers(tmp_path: Path) -> None:
    few = ("--rounds", "500", "--name-rounds", "20", "--names-from", str(Path(asyncio.__file__).parent))
    printed = run(ROOT / "examples" / "04_sequence_to_sequence.py", tmp_path, *few)
    found = re.search(r"held-out numbers written without a fault: ([\d.]+)", printed)
    assert found
    assert float(found[1]) >= 0.98
    assert "tokens of held-out names" in printed


def test_every_example_has_a_test() -> None:
    names = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert all(name in Path(__file__).read_text() for name in names)
