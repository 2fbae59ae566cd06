"""The tree of errors, and the error that offers the nearest keyword."""

import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import nn

import dasktrain as dt
from dasktrain import errors
from dasktrain.errors import DasktrainError, ReplicaError, UnknownKeyword, known_keywords, named, nearest
from tests import small

ERRORS: dict[str, type[DasktrainError]] = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, DasktrainError)
}
every_error = pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)


def drawn() -> dict[str, list[str]]:
    """Read the tree at the top of the file: name -> the names of its bases."""
    assert errors.__doc__ is not None
    tree, parents = {}, ["Exception"]
    for line in errors.__doc__.splitlines():
        branch = re.match(r"(?P<indent>[│├└─ ]*)(?P<name>[A-Z]\w+)(?: \((?P<builtin>\w+)\))?(?:  |$)", line)
        if branch:
            depth = len(branch["indent"]) // 4 - 1
            parents[depth + 1 :] = [branch["name"]]
            tree[branch["name"]] = [parents[depth], *filter(None, [branch["builtin"]])]
    return tree


# -- the tree ---------------------------------------------------------------------------------------------------


def test_tree_at_the_top_of_the_file_is_the_real_one() -> None:
    assert drawn() == {name: [base.__name__ for base in error.__bases__] for name, error in ERRORS.items()}


@every_error
def test_error_survives_pickling_with_its_message_and_notes(error: type[DasktrainError]) -> None:
    raised = error("Rows must be finite, however one is not")
    raised.add_note("On the worker")
    found = pickle.loads(pickle.dumps(raised))
    assert (type(found), str(found), found.__notes__) == (error, str(raised), ["On the worker"])


@every_error
def test_error_is_found_by_its_name(error: type[DasktrainError]) -> None:
    assert named(error.__name__) is error


@pytest.mark.parametrize("name", ["ValueError", "named", "difflib", "Callable", "", "__doc__"])
def test_name_that_is_no_error_of_ours_is_a_replicas(name: str) -> None:
    assert named(name) is ReplicaError


# -- keywords ---------------------------------------------------------------------------------------------------


class Greeter:
    """Takes two keywords."""

    @known_keywords
    def __init__(self, name: str, loud: bool = False) -> None:
        """Keep both."""
        self.kept = name, loud


@pytest.mark.parametrize(
    ("name", "expected"), [("lod", "did you mean 'loud'?"), ("xyz", "it takes loud, name"), ("", "it takes loud, name")]
)
def test_nearest_name_is_offered_and_all_if_none_is_near(name: str, expected: str) -> None:
    assert nearest(name, ["name", "loud"]) == expected


def test_known_keywords_pass_and_the_signature_stays() -> None:
    assert Greeter("a", loud=True).kept == Greeter(name="a", loud=True).kept == ("a", True)
    assert Greeter.__init__.__doc__ == "Keep both."


def test_unknown_keyword_is_named_with_its_owner_and_the_nearest() -> None:
    message = "Every keyword of Greeter must name a parameter, however 'nam' does not; did you mean 'name'?"
    with pytest.raises(UnknownKeyword, match=re.escape(message)):
        Greeter(nam="a")  # type: ignore[call-arg]


def test_missing_keyword_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'name'"):
        Greeter(loud=True)  # type: ignore[call-arg]


MISSPELT: dict[str, tuple[Callable[..., Any], str, str]] = {
    "Trainer": (lambda **wrong: dt.Trainer(nn.Linear(1, 1), nn.MSELoss(), small.SGD, **wrong), "observer", "observers"),
    "Trainer.fit": (
        lambda **wrong: dt.Trainer(small.linear, nn.MSELoss(), small.SGD, observers=[]).fit(small.table(), **wrong),
        "batchsize",
        "batch_size",
    ),
    "Table": (lambda **wrong: dt.Table(small.frame(), target="label", **wrong), "numerics", "numeric"),
    "Arrays": (lambda **wrong: dt.Arrays(np.zeros((2, 1)), np.zeros(2), **wrong), "wieght", "weight"),
}


@pytest.mark.parametrize(("call", "wrong", "right"), MISSPELT.values(), ids=MISSPELT)
def test_misspelt_keyword_is_refused_with_the_nearest(call: Callable[..., Any], wrong: str, right: str) -> None:
    with pytest.raises(UnknownKeyword, match=f"however {wrong!r} does not; did you mean {right!r}"):
        call(**{wrong: None})
