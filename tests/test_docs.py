"""Pages of the documentation: they build, their blocks run, and what they name is there.

Those that need a cluster beside them are in cluster/test_docs.py.
"""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import click
import pytest
import sphinx
from distributed.cli import dask_scheduler, dask_worker

import dasktrain as dt
from dasktrain.cli import main as dasktrain_main
from dasktrain.jobs import read_job
from tests import pages, scripts

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {str(page.relative_to(DOCS)): page for page in sorted(DOCS.rglob("*.md"))}
#: run in cluster/test_docs.py and cluster/test_coming_from.py
ELSEWHERE = {"clusters.md", *(name for name in PAGES if name.startswith("coming-from/"))}
RUN_HERE = [name for name in PAGES if pages.blocks(PAGES[name], "python") and name not in ELSEWHERE]
SECONDS = 300
pytestmark = pytest.mark.timeout(SECONDS)


@pytest.mark.parametrize("name", RUN_HERE)
def test_python_of_the_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    scripts.run(Path(pages.__file__), folder, str(PAGES[name]), seconds=SECONDS - 20)
    for block in pages.blocks(PAGES[name], "yaml"):  # a job, on the data that the page has written
        (folder / "job.yaml").write_text(block.text)
        monkeypatch.chdir(folder)
        assert len(read_job("job.yaml")(max_rounds=2, client=dt.LocalWire(2)).history.rounds) == 2


def test_most_pages_have_something_to_run() -> None:
    assert len(RUN_HERE) + len(ELSEWHERE) >= 10


def test_jobs_are_on_pages_that_write_their_data() -> None:
    assert {name for name in PAGES if pages.blocks(PAGES[name], "yaml")} <= set(RUN_HERE)


def test_pages_build_without_a_warning_and_lead_nowhere_that_is_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    program = Path(sphinx.__file__).with_name("__main__.py")
    scripts.run(program, folder, "-W", "--keep-going", "-q", "-b", "dummy", str(DOCS), "built", seconds=SECONDS - 20)


# -- what is typed ------------------------------------------------------------------------------------------------

COMMANDS = [
    (name, line.removeprefix("$ "))
    for name, page in PAGES.items()
    for block in pages.blocks(page, "console")
    for line in block.text.splitlines()
    if line.startswith("$ ")
]


@pytest.mark.parametrize(("name", "line"), COMMANDS, ids=[f"{name}: {line[:40]}" for name, line in COMMANDS])
def test_command_is_one_that_its_program_takes(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(line, comments=True)
    monkeypatch.chdir(tmp_path)
    for word in words:
        if word.endswith(".pem"):
            Path(word).touch()
    match words:
        case ["dask", "scheduler", *rest]:
            found = dask_scheduler.main.make_context("scheduler", rest).params
            assert not found["preload_argv"], "Dask would take an option that it does not know for an argument"
        case ["dask", "worker", *rest]:
            found = dask_worker.main.make_context("worker", rest).params
            assert not found["preload_argv"], "Dask would take an option that it does not know for an argument"
        case ["dasktrain", command, *rest]:
            program = dasktrain_main.get_command(click.Context(dasktrain_main), command)
            assert program is not None
            program.make_context(command, rest)
        case ["pip", "install", *_]:
            pass
        case ["docker" | "kubectl" | "helm" | "python" | "make", *rest]:
            ours = [word for word in rest if word.startswith(("docker/", "examples/", "benchmarks/"))]
            assert ours or words[0] == "kubectl", "of these programs only what they are given can be looked at"
            assert [word for word in ours if not (ROOT / word).exists()] == []
        case _:
            pytest.fail("nothing is known of this program")


# -- what is named ------------------------------------------------------------------------------------------------


@cache
def functions(file: Path) -> set[str]:
    """Return the names of a file's functions."""
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def is_there(test: str) -> bool:
    """Tell whether a test exists, or a file."""
    file, _, name = test.partition("::")
    return (ROOT / file).exists() and (not name or name in functions(ROOT / file))


@pytest.mark.parametrize("name", PAGES)
def test_files_and_tests_that_the_page_names_are_there(name: str) -> None:
    named = re.findall(
        r"`((?:tests|benchmarks|docker|dasktrain|examples)/[\w./-]*(?:::\w+)?)`", PAGES[name].read_text()
    )
    assert [one for one in named if not is_there(one)] == []


def test_every_public_name_is_on_the_page_of_names() -> None:
    text = PAGES["api.md"].read_text()
    shown = re.findall(r"^\.\. auto(?:class|function|module):: dasktrain\.(\w+)$", text, re.MULTILINE)
    assert sorted(shown) == dt.__all__
