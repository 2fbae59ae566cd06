"""Who may import whom, and what importing does: nothing."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dasktrain

ROOT = Path(dasktrain.__file__).parent
MAP = (ROOT.parent / "docs" / "contributing.md").read_text()
LEVELS = (
    (
        "errors",
        "codes",
        "cut",
        "plan",
        "draws",
        "folds",
        "permutation",
        "fleet",
        "messages",
        "steps",
        "touched",
        "events",
        "pace",
        "topology",
    ),
    (
        "replica",
        "job",
        "compression",
        "packer",
        "unpacker",
        "following",
        "strategies",
        "inner",
        "keras_module",
        "norms",
        "reduce",
        "vector",
        "sparse",
        "optimizers",
        "accumulate",
        "blame",
        "buckets",
        "buffers",
        "state",
        "stepped",
        "owned",
        "objective",
        "metrics",
        "players",
        "domain",
        "compute",
        "candidates",
        "shipping",
        "config",
        "trees",
        "balancing",
        "splitting",
        "data",
        "models",
    ),
    ("wire", "checkpoint", "observe", "observers", "relay"),
    ("driver", "coordinator", "doubles", "instep", "resume", "checkpointer"),
    (
        "",
        "trainer",
        "fitting",
        "prepared",
        "remote",
        "result",
        "predict",
        "predictor",
        "stored",
        "local",
        "export",
        "preflight",
        "searching",
        "gan",
        "balance",
        "ensemble",
        "evaluate",
        "assessment",
        "generate",
        "text",
        "estimators",
        "learning_rates",
        "profiling",
        "capacity",
        "pictures",
        "dashboard",
        "report",
        "running",
        "probe",
        "inspection",
        "recipe",
        "jobs",
        "cli",
        "commands",
    ),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
PURE = (
    "cut",
    "draws",
    "fleet",
    "folds",
    "events",
    "pace",
    "permutation",
    "plan",
    "reduce",
    "steps",
    "topology",
    "touched",
)


def name_of(path: Path) -> str:
    """Return a file's module name below dasktrain: "" for the package itself."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


MODULES = {name_of(path): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def imports(module: str) -> Iterator[str]:
    """Yield the full name of every module and name that is imported, also inside functions."""
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} must name {node.module} in full, for this test to follow it"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_of(module: str) -> set[str]:
    """Return the rooms of dasktrain that a module imports from."""
    inside = (
        name.removeprefix("dasktrain").removeprefix(".") for name in imports(module) if is_from(name, "dasktrain")
    )
    return {room(name) for name in inside}


def room(module: str) -> str:
    """Return the part of a module's name that has a level; what is not a module is a name of the package."""
    first = module.partition(".")[0]
    return first if first in {name.partition(".")[0] for name in MODULES} else ""


def is_from(name: str, *packages: str) -> bool:
    return name.partition(".")[0] in packages


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_from_its_own_level_or_below(module: str) -> None:
    own = LEVEL[room(module)]
    assert {other: LEVEL[other] for other in rooms_of(module) if LEVEL[other] > own} == {}


def test_distributed_is_met_by_the_dask_wire_and_the_trainer_only() -> None:
    meeting = {module for module in MODULES if any(is_from(name, "distributed") for name in imports(module))}
    assert meeting <= {
        "trainer",
        "remote",
        "running",
        "probe",
        "inspection",
        "cli",
        "commands",
        *(module for module in MODULES if module.startswith(("wire.", "dashboard."))),
    }


@pytest.mark.parametrize("module", PURE)
def test_pure_module_meets_neither_dask_nor_torch(module: str) -> None:
    assert [name for name in imports(module) if is_from(name, "dask", "distributed", "torch")] == []


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"shipping"}))
def test_only_shipping_unpickles(module: str) -> None:
    assert [name for name in imports(module) if is_from(name, "pickle", "cloudpickle", "marshal", "shelve")] == []


# -- importing --------------------------------------------------------------------------------------------------

REPORT = """
import json, logging, os, random, sys, threading, warnings
import cloudpickle, dask.array, dask.dataframe, distributed, fsspec, numpy, pandas, pyarrow, rich.live
import safetensors.torch, torch

def seen():
    return {
        "environ": dict(os.environ),
        "handlers": list(map(repr, logging.getLogger().handlers)),
        "level": logging.getLogger().level,
        "config": repr(dask.config.config),
        "filters": list(map(repr, warnings.filters)),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "torch": [torch.get_num_threads(), str(torch.get_default_dtype()), torch.initial_seed()],
        "random": [repr(random.getstate()), repr(numpy.random.get_state())],
        "path": sys.path[:],
    }

before, loaded = seen(), set(sys.modules)
import dasktrain
alone = sorted(set(sys.modules) - loaded)
for name, home in dasktrain._HOMES.items():
    if home != "dasktrain.estimators":  # which are scikit-learn's kin
        getattr(dasktrain, name)  # loads what it is in
after = seen()
changed = {name: [before[name], after[name]] for name in before if before[name] != after[name]}
print(json.dumps({"changed": changed, "alone": alone, "imported": sorted(set(sys.modules) - loaded)}))
"""


@pytest.fixture(scope="module")
def importing() -> dict[str, Any]:
    """Import dasktrain in a fresh interpreter and tell what that changed."""
    done = subprocess.run([sys.executable, "-c", REPORT], capture_output=True, text=True, check=True, timeout=100)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_importing_changes_nothing_outside(importing: dict[str, Any]) -> None:
    assert importing["changed"] == {}


def test_importing_takes_no_time_as_names_are_found_when_they_are_used(importing: dict[str, Any]) -> None:
    assert importing["alone"] == ["dasktrain"]


def test_importing_prints_nothing_and_loads_no_extra(importing: dict[str, Any]) -> None:
    extras = {
        name
        for name in importing["imported"]
        if is_from(
            name, "matplotlib", "sklearn", "imblearn", "IPython", "torchvision", "tensorboard", "mlflow", "wandb"
        )
    }
    assert "dasktrain" in importing["imported"]
    assert extras == set()


# -- the map ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({room(module) for module in MODULES} - {""}))
def test_contributors_have_a_map_of_every_room(name: str) -> None:
    written = ast.get_docstring(MODULES[name])
    assert written is not None
    assert f"| `{name}` | {written.splitlines()[0]} |" in MAP
