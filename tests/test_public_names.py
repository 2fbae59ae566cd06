"""What can be seen from outside has a name in __all__ and a docstring; what is inside is short."""

import ast
import doctest
import importlib
from importlib.metadata import version
from inspect import ismodule
from pathlib import Path

import pytest

import dasktrain

ROOT = Path(dasktrain.__file__).parent
FILES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(ROOT.rglob("*.py"))}
LONGEST_MODULE, LONGEST_FUNCTION = 400, 60

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(body: list[ast.stmt], prefix: str = "") -> dict[str, Definition]:
    """Return the public classes and functions of a body, and the public methods of those classes."""
    found: dict[str, Definition] = {}
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            found[prefix + node.name] = node
            if isinstance(node, ast.ClassDef):
                found |= public(node.body, f"{node.name}.")
    return found


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function from its def, without its docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


def test_all_is_sorted_and_is_what_can_be_seen() -> None:
    for name in dasktrain.__all__:
        assert getattr(dasktrain, name) is not None
    visible = {
        name
        for name, value in vars(dasktrain).items()
        if not name.startswith("_") and not ismodule(value) and getattr(value, "__module__", None) != "importlib"
    }
    visible -= {"Any", "TYPE_CHECKING"}  # what the file itself needs
    assert dasktrain.__all__ == sorted(visible | {"balance", "errors", "models", "text"})
    assert set(dasktrain.__all__) <= set(dir(dasktrain))


def test_type_checkers_see_the_names_where_they_are_found() -> None:
    (checking,) = (node for node in ast.parse(FILES["__init__.py"]).body if isinstance(node, ast.If))
    seen = {
        alias.asname: f"{node.module}.{alias.name}" if node.module == "dasktrain" else node.module
        for node in checking.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == dasktrain._HOMES


def test_what_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(AttributeError, match="it has no 'Trainor'"):
        _ = dasktrain.Trainor


@pytest.mark.parametrize("file", FILES)
def test_file_and_everything_public_in_it_has_a_docstring(file: str) -> None:
    tree = ast.parse(FILES[file])
    assert ast.get_docstring(tree)
    assert [name for name, node in public(tree.body).items() if ast.get_docstring(node) is None] == []


@pytest.mark.parametrize("file", FILES)
def test_file_and_its_functions_are_short(file: str) -> None:
    assert len(FILES[file].splitlines()) < LONGEST_MODULE
    functions = [
        node for node in ast.walk(ast.parse(FILES[file])) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert {function.name: length(function) for function in functions if length(function) > LONGEST_FUNCTION} == {}


def test_version_is_the_installed_one() -> None:
    assert dasktrain.__version__ == version("dasktrain")


@pytest.mark.parametrize("file", [file for file, text in FILES.items() if ">>>" in text])
def test_examples_in_docstrings_say_what_happens(file: str) -> None:
    module = importlib.import_module("dasktrain." + file.removesuffix(".py").replace("/", "."))
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
