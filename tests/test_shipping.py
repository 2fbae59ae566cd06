"""Functions as bytes: what a process needs to run them, and what it does not."""

import contextlib
import importlib
import json
import pickle
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import pytest
import torch
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.errors import ModelError
from dasktrain.plan import Plan, rows_only
from dasktrain.shipping import check_ships, pack, run_packed
from dasktrain.vector import FlatParameters

STRANGER = """
import pickle, sys
for name in {absent}:
    sys.modules[name] = None  # an import of it fails
run, payload, arguments = pickle.load(sys.stdin.buffer)
print(run(payload, *arguments))
"""
WHOLE = """
import helping_hands
from helping_hands import double

class Thrice:
    def __call__(self, number):
        return 3 * number + double(number)

def times(function, number):
    return function(number)

def quadruple(number):
    return helping_hands.double(helping_hands.double(number))

def divided(number):
    return number / 0
"""
PART = """
FACTOR = 2

def double(number):
    return FACTOR * number
"""


def elsewhere(function: Any, *bound: Any, arguments: tuple[Any, ...] = (), absent: tuple[str, ...] = ()) -> str:
    """Run a packed function in a process of its own that lacks some modules; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER.format(absent=list(absent))],
        input=cloudpickle.dumps((run_packed, pack(function, *bound), arguments)),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A user's own two modules, which no other process can import."""
    (tmp_path / "my_work.py").write_text(WHOLE)
    (tmp_path / "helping_hands.py").write_text(PART)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("my_work")
    for name in ("my_work", "helping_hands"):
        sys.modules.pop(name, None)


def registry() -> set[str]:
    return set(cloudpickle.list_registry_pickle_by_value())


# -- run_packed -----------------------------------------------------------------------------------------------


def test_packed_function_is_called_with_bound_and_further_arguments() -> None:
    assert run_packed(pack(divmod, 17), 5) == (3, 2)
    assert run_packed(pack(dict, [("a", 1)])) == {"a": 1}


def test_parameters_of_one_vector_are_sent_once_and_not_all_with_each() -> None:
    module = nn.Sequential(*[nn.Linear(30, 30) for _ in range(50)])
    module[1].weight = module[0].weight
    wanted = {name: parameter.clone() for name, parameter in module.named_parameters()}
    vector = FlatParameters(module).vector
    payload = pack(type, module)
    assert len(payload) < 2 * vector.nbytes
    sent = pickle.loads(payload)[1][0]
    assert sent[1].weight is sent[0].weight
    assert all(torch.equal(parameter, wanted[name]) for name, parameter in sent.named_parameters())
    assert all(isinstance(parameter, nn.Parameter) and parameter.requires_grad for parameter in sent.parameters())


def test_process_without_dasktrain_and_torch_can_run_it() -> None:
    assert elsewhere(json.dumps, [1], absent=("dasktrain", "torch", "dask", "numpy")) == "[1]"


def test_process_with_dasktrain_gets_its_own_code() -> None:
    payload = pack(Plan, rows_only([3, 4]), 2, 5)
    assert b"dealt" not in payload  # a name that only the source of plan.py has
    assert elsewhere(_rounds, Plan(rows_only([3, 4]), 2, 5)) == "2"


def _rounds(plan: Plan) -> int:
    return plan.rounds


# -- users' modules -------------------------------------------------------------------------------------------


def test_users_functions_and_classes_travel_by_value(users: ModuleType) -> None:
    assert elsewhere(users.times, users.Thrice(), arguments=(5,)) == "25"


def test_users_modules_that_are_used_as_modules_travel_by_value(users: ModuleType) -> None:
    assert elsewhere(users.quadruple, arguments=(5,)) == "20"


def test_users_classes_come_back_as_the_same_class_here(users: ModuleType) -> None:
    assert run_packed(pack(type, users.Thrice())) is users.Thrice


def test_installed_modules_travel_by_reference() -> None:
    for function in (statistics.median, nn.functional.cross_entropy, cloudpickle.dumps):
        payload = pack(function)
        assert function.__name__.encode() in payload
        assert len(payload) < 200
    with pytest.raises(AssertionError, match="statistics"):
        elsewhere(statistics.median, [1, 2], absent=("statistics",))


@pytest.mark.parametrize("site", ["site-packages", "dist-packages"])
def test_modules_installed_elsewhere_travel_by_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: str
) -> None:
    """Of the user, of the Python that an environment is based on, of the system: also of a module that HPC loads."""
    folder = tmp_path / "lib" / site
    folder.mkdir(parents=True)
    (folder / "helping_hands.py").write_text(PART)
    monkeypatch.syspath_prepend(str(folder))
    payload = pack(importlib.import_module("helping_hands").double)
    del sys.modules["helping_hands"]
    assert len(payload) < 100


@pytest.mark.parametrize("bound", [1, threading.Lock()], ids=["packed", "failed"])
def test_registry_is_left_as_found(users: ModuleType, bound: Any) -> None:
    cloudpickle.register_pickle_by_value(dt)
    try:
        with contextlib.suppress(TypeError):
            pack(users.times, users.Thrice(), bound)
        assert registry() & {"my_work", "helping_hands", "tests.test_shipping", "dasktrain"} == {"dasktrain"}
    finally:
        cloudpickle.unregister_pickle_by_value(dt)


def test_registration_of_the_users_own_is_kept(users: ModuleType) -> None:
    before = registry()
    cloudpickle.register_pickle_by_value(users)
    try:
        pack(users.times)
        assert registry() == before | {"my_work"}
    finally:
        cloudpickle.unregister_pickle_by_value(users)


def test_error_of_a_packed_function_is_its_own(users: ModuleType) -> None:
    with pytest.raises(ZeroDivisionError):
        run_packed(pack(users.divided), 1)


# -- check_ships ----------------------------------------------------------------------------------------------


class Holds(nn.Module):
    """A layer that may hold something that cannot be sent."""

    def __init__(self, thing: Any = None, **parts: nn.Module) -> None:
        super().__init__()
        self.thing = thing
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("model", "blamed"),
    [
        (Holds(threading.Lock()), "the model"),
        (Holds(inner=Holds(threading.Lock())), "module 'inner'"),
        (Holds(inner=Holds(deep=Holds(threading.Lock()), other=nn.Linear(1, 1))), "module 'inner.deep'"),
        (Holds(threading.Lock(), inner=Holds()), "the model"),
        (nn.Sequential(nn.Linear(1, 1), Holds(n for n in ())), "module '1'"),
    ],
    ids=["itself", "child", "grandchild", "parent", "generator"],
)
def test_innermost_module_that_cannot_be_sent_is_named(model: nn.Module, blamed: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_ships(model)
    assert f"however {blamed} (Holds) is not" in str(caught.value)
    assert isinstance(caught.value.__cause__, TypeError)


def test_loss_or_metric_that_cannot_be_sent_is_named() -> None:
    lock = threading.Lock()
    with pytest.raises(ModelError, match=r"however metric 'odd' is not: .*lock"):
        check_ships(nn.Linear(1, 1), **{"the loss": nn.MSELoss(), "metric 'odd'": lambda output, target: lock})


def test_everything_that_can_be_sent_passes(users: ModuleType) -> None:
    check_ships(Holds(users.Thrice(), inner=nn.Linear(1, 1)), loss=lambda output, target: torch.zeros(()))
