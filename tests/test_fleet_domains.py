"""Which workers may compute for a run: those whose bits are the run's."""

from typing import Any

import pytest

from dasktrain.events import Abort, Assign, Domain, Notice, Release
from tests.fleets import HERE, THERE, after, left, part, ready

STRANGE = "Worker {} must be in the run's determinism domain, however its canary is there and the run's here"


def test_most_of_the_first_members_decide_the_domain() -> None:
    fleet, out = after(ready("ac", THERE), ready("b", HERE), 0)
    reason = "Worker b must be in the run's determinism domain, however its canary is here and the run's there"
    assert fleet.domain == THERE
    assert out == [
        Release("b", f"{reason}; it is left to predictions and other work"),
        Assign("a", part(0, 4)),
        Assign("c", part(4, 8)),
    ]


@pytest.mark.parametrize("domains", [(HERE, THERE), (THERE, HERE)], ids=["first", "last"])
def test_of_two_domains_with_as_many_members_the_same_wins_whoever_has_it(domains: tuple[Domain, Domain]) -> None:
    fleet, _ = after(ready("a", domains[0]), ready("b", domains[1]), 0)
    assert fleet.domain == HERE
    assert fleet.members == ["ab"[domains.index(HERE)]]


def test_who_left_before_the_first_round_has_no_say() -> None:
    assert after(ready("ab", THERE), ready("c", HERE), left("a"), left("b"), 0)[0].domain == HERE


def test_the_first_to_come_decides_if_nobody_was_there() -> None:
    fleet, out = after(ready("a", THERE), left("a"), 0, ready("b", HERE), ready("c", THERE))
    assert fleet.domain == HERE
    assert [type(each) for each in out] == [Release]


@pytest.mark.parametrize("settings", [{}, {"domain": HERE}], ids=["a new run", "a resumed run"])
def test_strangers_are_refused_and_told_why(settings: dict[str, Any]) -> None:
    fleet, out = after(ready("a"), 0, ready("b", THERE), **settings)
    assert out == [Release("b", f"{STRANGE.format('b')}; it is left to predictions and other work")]
    assert fleet.members == ["a"]


def test_a_resumed_run_on_strangers_alone_ends() -> None:
    reason = f"{STRANGE.format('a')}; it is left to predictions and other work"
    assert after(ready("a", THERE), domain=HERE)[1] == [Release("a", reason), Abort(reason)]


def test_strangers_are_admitted_with_a_notice_if_bits_do_not_matter() -> None:
    notice = f"{STRANGE.format('b')}; it computes all the same, and this run's bits cannot be had again"
    assert after(ready("a"), 0, ready("b", THERE), strict=False)[1] == [Notice(notice)]
    assert after(ready("a"), ready("b", THERE), 0, strict=False)[1] == [
        Notice(notice),
        Assign("a", part(0, 4)),
        Assign("b", part(4, 8)),
    ]


def test_all_that_differs_is_named() -> None:
    (release,) = after(ready("a"), 0, ready("b", {"canary": "there", "torch": "9"}))[1]
    assert isinstance(release, Release)
    for difference in ("threads is None and the run's 1", "canary is there", "torch is 9 and the run's None"):
        assert difference in release.reason
