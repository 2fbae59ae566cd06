"""wire/handout.py, wire/holding.py: an owner is given values once, and from then on how they are stepped."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dasktrain.cut import Cut
from dasktrain.messages import Bucket, Header, Task, decode_mark, decode_places
from dasktrain.owned import Owned
from dasktrain.state import TrainState
from dasktrain.steps import Mean, Step
from dasktrain.wire import holding
from dasktrain.wire.handout import Handout
from dasktrain.wire.holding import UNLIKE, Holding
from dasktrain.wire.lease import _aside
from tests.test_owned import MAKERS, Model, Training

TASK = Task("r", "train", 0, 0, 0, 8)
CUT = Cut(30, 10)
OWNED = range(0, 30, 20)
MEAN = Mean(2.0, 1.0, (0, 1))


class Owner:
    """A worker that owns two of three buckets, the driver's state, and what was sent between them."""

    def __init__(self, handout: Handout) -> None:
        self.state = TrainState(Model([12, 18]), MAKERS["momentum"])
        self.training = Training(self.state, seed=0)
        self.told: list[Header] = []
        self.holding = Holding(self.told.append)
        self.handout = handout

    def step(self) -> np.ndarray:
        """Step the state of record; return the sum."""
        return self.training.round(MEAN)

    def sum(self, total: np.ndarray, offsets: Sequence[int] = OWNED) -> None:
        """Add up some buckets of a sum."""
        for offset in offsets:
            self.holding.summed(Bucket(TASK, 0, 8, offset, total[CUT.place(offset)]))

    def messages(self, mesh: str = "mesh", cut: Cut = CUT, steps: bool = True) -> list[Any]:
        """Return what is sent to begin a round."""
        state = self.state.message() if steps else replace(self.state.message(), steps=None)
        return list(self.handout.parts("worker", mesh, TASK, cut, OWNED, state))

    def ask(self, mesh: str = "mesh", steps: bool = True) -> list[str]:
        """Begin a round; return how each of the messages tells what it does, with what comes of it checked."""
        kinds = []
        for header, arrays in self.messages(mesh, steps=steps):
            kinds.append(next(name for name in ("stepped", "made", "pieces", "part") if name in header))
            for _, (values,) in self.holding.parts(header, [array.tobytes() for array in arrays]):
                place = CUT.place(header["part"])
                assert bytes(values) == self.state.message().parameters[place].tobytes()
        return kinds


VALUES, GIVEN, TOLD, KEPT = ["part"] * 2, ["pieces"] * 2, ["stepped", "made", "made"], ["made"] * 2


@pytest.fixture
def owner() -> Owner:
    """One that has values and what the optimizer keeps of them."""
    found = Owner(Handout())
    assert (found.ask(), found.ask()) == (VALUES, GIVEN)
    return found


def test_values_are_given_first_then_what_is_kept_of_them_and_then_steps() -> None:
    owner, kinds = Owner(Handout()), []
    for _ in range(5):
        kinds.append(owner.ask())
        owner.sum(owner.step())
    assert kinds == [VALUES, GIVEN, TOLD, TOLD, TOLD]
    assert owner.told == []


def test_between_two_steps_nothing_changes(owner: Owner) -> None:
    owner.sum(owner.step())
    assert (owner.ask(), owner.ask(), owner.ask()) == (TOLD, KEPT, KEPT)
    owner.sum(owner.step())
    assert owner.ask() == TOLD
    assert owner.told == []


def test_a_sum_that_is_computed_again_is_stepped_with_once(owner: Owner) -> None:
    total = owner.step()
    owner.sum(total + 1)
    owner.sum(total)
    assert owner.ask() == TOLD
    owner.sum(total)
    assert owner.ask() == KEPT
    assert owner.told == []


def test_buckets_are_stepped_a_few_at_a_time(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, step = [], Owned.step

    def noted(owned: Owned, told: Step, totals: Mapping[int, Any]) -> None:
        chosen.append(list(totals))
        step(owned, told, totals)

    monkeypatch.setattr(Owned, "step", noted)
    for most in (1, 20):
        monkeypatch.setattr(holding, "AT_ONCE", most)
        owner.sum(owner.step())
        assert owner.ask() == TOLD
    assert chosen == [[0], [20], [0, 20]]
    assert owner.told == []


def test_whoever_was_not_asked_after_each_step_is_given_values_for_an_epoch(owner: Owner) -> None:
    owner.sum(owner.step())
    owner.sum(owner.step())
    assert (owner.ask(), owner.ask()) == (VALUES, VALUES)
    owner.handout.begin_epoch()
    assert owner.ask() == GIVEN
    owner.sum(owner.step())
    assert owner.ask() == TOLD
    assert owner.told == []


def test_as_long_as_steps_are_such_that_nobody_can_be_told_nobody_owns_anything(owner: Owner) -> None:
    owner.state.step(())
    assert (owner.ask(), owner.ask()) == (VALUES, VALUES)
    owner.state.restore(owner.state.snapshot())
    assert owner.ask() == VALUES
    owner.step()
    assert owner.ask() == GIVEN
    owner.sum(owner.step())
    assert owner.ask() == TOLD
    assert owner.told == []


@pytest.mark.parametrize("change", [{"mesh": "another"}, {"cut": Cut(30, 15)}])
def test_whoever_owns_something_else_is_given_its_values(owner: Owner, change: dict[str, Any]) -> None:
    assert [len(header) for header, _ in owner.messages(**change)] == [3, 3]
    assert ["pieces" in header for header, _ in owner.messages(**change)] == [True, True]


def test_whoever_comes_back_is_given_values(owner: Owner) -> None:
    owner.handout.forget("worker")
    assert (owner.ask(), owner.ask()) == (VALUES, GIVEN)


def test_where_owners_do_not_step_they_own_nothing(owner: Owner) -> None:
    owner.sum(owner.step())
    assert owner.ask(steps=False) == VALUES
    owner.sum(owner.step())
    assert owner.ask() == GIVEN
    assert owner.told == []


def test_who_owns_no_bucket_is_told_nothing(owner: Owner) -> None:
    for _ in range(4):
        assert list(owner.handout.parts("another", "mesh", TASK, CUT, range(0), owner.state.message())) == []
        owner.step()


def test_of_what_becomes_something_else_values_are_given_for_an_epoch_then_for_two(owner: Owner) -> None:
    for epochs in (1, 2, 4):
        owner.sum(owner.step())
        owner.state.parameters.vector[:] += 1.0
        assert owner.ask() == TOLD
        for _ in OWNED:  # as each of its buckets does
            owner.handout.unlike("worker")
        for _ in range(epochs):
            assert owner.ask() == VALUES
            owner.handout.begin_epoch()
        assert owner.ask() == GIVEN


def test_of_what_becomes_something_else_values_are_given(owner: Owner) -> None:
    owner.sum(owner.step())
    owner.state.parameters.vector[25] += 1.0
    assert owner.ask() == TOLD
    (told,) = owner.told
    assert (decode_mark(told), decode_places(told)) == ((UNLIKE, TASK), {20})
    owner.handout.unlike("worker")
    owner.sum(owner.step())
    assert owner.ask() == VALUES


def test_whoever_cannot_take_a_step_says_so_of_each_bucket(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*given: object) -> None:
        raise IndexError

    monkeypatch.setattr(Owned, "step", raises)
    owner.sum(owner.step())
    assert owner.ask() == TOLD
    assert [decode_places(told) for told in owner.told] == [{0}, {20}]


def test_what_has_no_sum_is_not_made_up(owner: Owner) -> None:
    owner.sum(owner.step(), OWNED[:1])
    assert owner.ask() == TOLD
    assert [decode_places(told) for told in owner.told] == [{20}]


def test_sums_of_what_others_own_are_not_kept(owner: Owner) -> None:
    owner.sum(owner.step(), (10,))
    assert owner.holding._sums == {}


def test_a_sum_is_of_one_step(owner: Owner) -> None:
    owner.sum(owner.step())
    owner.ask()
    owner.step()
    owner.ask()
    assert [decode_places(told) for told in owner.told] == [{0}, {20}]


def test_what_is_given_has_forgotten_old_sums(owner: Owner) -> None:
    owner.sum(owner.step())
    owner.ask(mesh="another")
    owner.ask(mesh="another")
    owner.step()
    owner.ask(mesh="another")
    assert [decode_places(told) for told in owner.told] == [{0}, {20}]


def test_whoever_leaves_its_peers_owns_nothing_more(owner: Owner) -> None:
    owner.sum(owner.step())
    owner.holding.clear()
    owner.ask()
    assert [decode_places(told) for told in owner.told] == [{0}, {20}]


def test_steps_of_a_round_that_was_given_up_are_passed_over(owner: Owner) -> None:
    owner.step()
    (header, _), *parts = owner.messages()
    assert "stepped" in header
    assert all(_aside(None, None, told) for told in (header, *(part for part, _ in parts)))  # type: ignore[arg-type]
