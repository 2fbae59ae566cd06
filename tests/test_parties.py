"""wire/parties.py: who sends together, and whose answer it is that another sends."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasktrain.fleet import shares
from dasktrain.messages import Answer, Task
from dasktrain.wire.parties import Parties
from dasktrain.wire.together import Meeting
from dasktrain.wire.ways import Joint, Via, decode_way, encode_way

TASK = Task("r", "train", 0, 0, 0, 8)


def known(hosts: str) -> Parties:
    """Return what is known of workers 0, 1, ..., each on a host with a letter; a dash for one that cannot be met."""
    parties = Parties()
    for worker, host in enumerate(hosts):
        parties.add(str(worker), None if host == "-" else Meeting(host, f"gate {worker}"))
    return parties


def asks(hosts: str, task: Task = TASK) -> list[tuple[str, Task]]:
    """Return what the workers are asked that can be met."""
    given = shares([str(worker) for worker in range(len(hosts))], task.stop)
    return [(worker, replace(task, start=a, stop=b)) for worker, a, b in given if hosts[int(worker)] != "-"]


def answer(task: Task) -> Answer:
    return Answer(task, (), 0.0)


@given(st.text("ab-", min_size=1, max_size=8))
def test_runs_of_one_host_send_together(hosts: str) -> None:
    parties, asked = known(hosts), asks(hosts)
    ways, tasks = parties.ways(asked, True), dict(asked)
    assert [parties.may_meet(str(worker)) for worker in range(len(hosts))] == [host != "-" for host in hosts]
    for worker, task in asked:
        before = hosts[int(worker) - 1] if worker != "0" else "-"
        way, joined = ways.get(worker), before == hosts[int(worker)]
        assert isinstance(way, Via) == joined
        if isinstance(way, Joint):
            last = int(worker) + len(way.tasks)
            assert set(hosts[int(worker) : last + 1]) == {hosts[int(worker)]}
            assert hosts[last + 1 : last + 2] != hosts[int(worker)]
            for number, other in enumerate(way.tasks, int(worker) + 1):
                assert tasks[str(number)] == other
                assert ways[str(number)] == Via(f"gate {worker}", given=True)
                assert parties.sender(worker, answer(other), passed=True) == str(number)
        assert decode_way(encode_way(way), task) == way


@pytest.mark.parametrize("change", [{"kind": "evaluate"}, {"start": 5}])
def test_only_training_on_shards_in_a_row_is_done_together(change: dict[str, str]) -> None:
    parties = known("aa")
    first, (worker, task) = asks("aa")
    kind = {"kind": "evaluate"} if "kind" in change else {}
    asked = [(first[0], replace(first[1], **kind)), (worker, replace(task, **change))]  # type: ignore[arg-type]
    assert parties.ways(asked, True) == {}


def test_whoever_sent_for_itself_goes_on_so_until_the_epoch_ends() -> None:
    parties = known("aaa")
    (_, _), (_, task), (_, last) = asks("aaa")
    assert set(parties.ways(asks("aaa"), True)) == {"0", "1", "2"}
    assert parties.sender("0", answer(task), passed=False) == "0"  # for it was asked as well, since "1" is late
    assert parties.sender("1", answer(task), passed=False) == "1"
    assert parties.sender("0", answer(last), passed=True) == "2"
    assert parties.ways(asks("aaa", replace(TASK, round=1)), True) == {}
    assert set(parties.ways(asks("aaa", replace(TASK, epoch=1)), True)) == {"0", "1", "2"}


def test_an_answer_of_an_older_round_is_still_its_owners() -> None:
    parties = known("aaa")
    (_, _), (_, task), (_, _) = asks("aaa")
    parties.ways(asks("aaa"), True)
    parties.ways([ask for ask in asks("aaa", replace(TASK, round=1)) if ask[0] != "1"], True)
    assert parties.sender("0", answer(task), passed=True) == "1"
    assert parties.sender("2", answer(task), passed=True) == "2"  # nobody was told that it would send that


def test_whoever_left_is_not_met() -> None:
    parties = known("aa")
    parties.forget("0")
    assert not parties.may_meet("0")
    assert parties.ways(asks("aa"), True) == {}


def given(parties: Parties, hosts: str, can_give: bool = True, round: int = 1) -> set[str]:
    """Return who gets parameters from another, as all are told alike."""
    ways = parties.ways(asks(hosts, replace(TASK, round=round)), can_give)
    found = {worker for worker, way in ways.items() if isinstance(way, Via) and way.given}
    assert [way.gives for way in ways.values() if isinstance(way, Joint)] in ([], [bool(found)])
    return found


def test_parameters_come_once_for_all_of_a_host() -> None:
    assert given(known("aaa"), "aaa") == {"1", "2"}
    assert given(known("aaa"), "aaa", can_give=False) == set()


def test_whoever_is_new_is_given_them_as_well() -> None:
    parties = known("aa")
    assert given(parties, "aa", round=0) == {"1"}
    parties.add("2", Meeting("a", "gate 2"))
    assert given(parties, "aaa") == {"1", "2"}


def test_whoever_lacks_parameters_waits_while_they_get_on_and_then_gets_them() -> None:
    parties = known("aaa")
    assert given(parties, "aaa") == {"1", "2"}
    (_, _), (_, task), (_, _) = asks("aaa", replace(TASK, round=1))
    assert parties.giver("1", replace(task, round=0)) is None
    assert parties.giver("1", task) == "0"
    assert [parties.instead("1", "0", left) for left in (9, 5)] == [Via("gate 0", given=True)] * 2
    assert parties.instead("2", "0", 5) is not None, "each has a say of its own"
    assert parties.instead("1", "0", 5) is None
    assert given(parties, "aaa", round=2) == set()


def test_whoever_lacks_parameters_whose_giver_is_gone_gets_them() -> None:
    parties = known("aa")
    given(parties, "aa")
    parties.forget("0")
    assert parties.instead("1", "0", 5) is None


@pytest.mark.parametrize("before", [[], [5]])
def test_whoever_lacks_parameters_that_were_sent_waits_once_more(before: list[int]) -> None:
    parties = known("aa")
    given(parties, "aa")
    for left in (*before, 0):
        assert parties.instead("1", "0", left) == Via("gate 0", given=True)
    assert parties.instead("1", "0", 0) is None


def test_when_a_round_is_over_nobody_gets_its_parameters() -> None:
    parties = known("aa")
    assert given(parties, "aa") == {"1"}
    task = asks("aa", replace(TASK, round=1))[1][1]
    assert parties.giver("1", task) == "0"
    parties.end()
    assert parties.giver("1", task) is None
