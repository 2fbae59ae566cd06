"""A run on the scheduler's own dashboard: what it remembers, what a browser sees, and that no bit changes."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from distributed import Client, LocalCluster

import dasktrain as dt
from dasktrain.dashboard.board import LINES, PREFIX, ROUNDS, RUNS, Board, Boards
from dasktrain.errors import BadInput
from dasktrain.observe import History, Record, Run, nobody, nothing
from dasktrain.relay import Relay
from dasktrain.state import Cursor
from tests.browser import CHROMIUM, browser
from tests.small import fit, table

PAGE = "individual-dasktrain"


@pytest.fixture(scope="module")
def shown() -> Iterator[Client]:
    """A cluster of its own: the page stays on its scheduler."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def link(client: Client) -> str:
    return client.dashboard_link.removesuffix("/status")


def record(number: int) -> Record:
    return {"epoch": 0, "round": number, "loss": 1.0 / (number + 1), "rows_per_second": 10.0}


def a_run(workers: int = 2) -> Run:
    addresses = [f"tcp://{number}" for number in range(workers)]
    return Run("r", addresses, 8, 1, 100, 7, 5, 2, None, {}, None, Cursor(), History(), nobody, nothing)


# -- what is remembered -------------------------------------------------------------------------------------------


def test_boards_remember_what_a_relay_tells() -> None:
    boards = Boards()
    relay = Relay("a", lambda message: boards.log_event(PREFIX + "r", message))
    relay.stage("looking for workers")
    relay.start(a_run())
    for number in range(5):
        relay.round(record(number))
    relay.epoch({"epoch": 0, "loss": 0.5})
    boards.log_event(PREFIX + "r", {"workers": {"tcp://0": [0.1, 0.2]}})
    board = boards.boards["r"]
    assert not board.over
    relay.end()
    assert board.over
    assert [each["round"] for each in board.rounds] == list(range(5))
    assert [text for _, text in board.told] == ["looking for workers"]
    assert board.workers == {"tcp://0": [0.1, 0.2]}
    assert board.run is not None
    assert board.run.rounds_per_epoch == 5


def test_a_message_that_is_lost_is_not_waited_for_without_an_end() -> None:
    boards, messages = Boards(), list[Any]()
    relay = Relay("a", messages.append)
    relay.start(a_run())
    for number in range(2 * LINES):
        relay.stage(str(number))
    relay.end()
    for message in messages[:5] + messages[6:]:
        boards.log_event(PREFIX + "r", message)
    board = boards.boards["r"]
    assert board.over
    assert board.told[-1][1] == str(2 * LINES - 1)


def test_a_run_that_is_resumed_begins_with_what_was_before() -> None:
    boards = Boards()
    for attempt in "ab":
        relay = Relay(attempt, lambda message: boards.log_event(PREFIX + "r", message))
        run = a_run()
        if attempt == "b":
            run.history.rounds += [record(0), record(1)]
        relay.start(run)
        relay.round(record(2))
        relay.end()
    assert [each["round"] for each in boards.boards["r"].rounds] == [0, 1, 2]


def test_long_runs_are_thinned_and_old_ones_forgotten() -> None:
    board = Board()
    board.start(a_run())
    for number in range(3 * ROUNDS):
        board.round(record(number))
        board.stage(str(number))
    numbers = [each["round"] for each in board.rounds]
    assert len(numbers) <= ROUNDS
    assert numbers[0] == 0
    assert numbers[-ROUNDS // 4 :] == list(range(3 * ROUNDS - ROUNDS // 4, 3 * ROUNDS))
    assert numbers == sorted(numbers)
    assert len(board.told) == LINES
    boards = Boards()
    for number in range(RUNS + 3):
        boards.log_event(f"{PREFIX}{number}", {"workers": {}})
    assert list(boards.boards) == [str(number) for number in range(3, RUNS + 3)]


@pytest.mark.parametrize("nonsense", [None, 3, "text", {}, {"attempt": 1}, {"workers": 5}, {"workers": {"a": ["x"]}}])
def test_what_others_log_does_no_harm(nonsense: Any) -> None:
    boards = Boards()
    boards.log_event("another topic", nonsense)
    assert not boards.boards
    boards.log_event(PREFIX + "r", nonsense)
    assert boards.boards["r"].rounds == []


# -- on a cluster -------------------------------------------------------------------------------------------------


def remembered(client: Client) -> dict[str, Any]:
    """Return the latest run on the scheduler's board."""

    def look(dask_scheduler: Any) -> dict[str, Any]:
        board = list(dask_scheduler.plugins["dasktrain-dashboard"].boards.values())[-1]
        return {"rounds": board.rounds, "over": board.over, "workers": board.workers, "run": board.run.id}

    return client.run_on_scheduler(look)  # type: ignore[no-any-return]


def test_a_run_is_on_the_dashboard_and_in_its_menu_and_keeps_its_bits(shown: Client) -> None:
    settings: dict[str, Any] = {"epochs": 2, "shards": 4}
    results = [fit(table(), wire, observers=[dt.Dashboard()], **settings) for wire in (shown, shown)]
    assert {result.digest for result in results} == {fit(table(), **settings).digest}
    found = remembered(shown)
    assert found["over"]
    assert [each["loss"] for each in found["rounds"]] == [each["loss"] for each in results[1].history.rounds]
    assert found["run"] == results[1].settings["run"]
    assert len(found["workers"]) == 2
    with urllib.request.urlopen(f"{link(shown)}/{PAGE}", timeout=30) as page:
        assert b"dasktrain" in page.read()
    with urllib.request.urlopen(f"{link(shown)}/status", timeout=30) as page:
        assert page.read().decode().count(PAGE) == 1


def test_a_run_whose_driver_is_on_the_cluster_is_there_as_well(shown: Client) -> None:
    result = fit(table(), shown, observers=[dt.Dashboard()], driver="cluster")
    found = remembered(shown)
    assert found["run"] == result.settings["run"]
    assert len(found["rounds"]) == len(result.history.rounds)


def test_there_must_be_a_cluster() -> None:
    with pytest.raises(BadInput, match="A dashboard must be that of a Dask cluster"):
        fit(table(), observers=[dt.Dashboard()])


class Paused(dt.Observer):
    """Lets a run begin, and go on once it was looked at."""

    def __init__(self) -> None:
        self.begun, self.looked = Event(), Event()
        self.rounds = 0

    def round(self, record: Record) -> None:
        self.rounds += 1
        if self.rounds > 8:
            self.begun.set()
            assert self.looked.wait(120)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_sees_a_run_that_goes_on(shown: Client, tmp_path: Path) -> None:
    paused, results = Paused(), []
    settings: dict[str, Any] = {"observers": [dt.Dashboard(), paused], "epochs": 10, "validation": table(40)}
    running = Thread(target=lambda: results.append(fit(table(), shown, **settings)))
    running.start()
    try:
        assert paused.begun.wait(120)  # so the page is there
        with browser(tmp_path) as page:
            page.open(f"{link(shown)}/{PAGE}")
            page.wait("window.Bokeh && Bokeh.documents.length > 0")
            models = "[...Bokeh.documents[0]._all_models.values()]"
            drawn = (
                f"({models}.find(model => model.data && model.data.rate) || {{data: {{rate: []}}}}).data.rate.length"
            )
            assert page.wait(f"{drawn} >= 2") < 30
            headline = f"{models}.map(model => model.text || '').join(' ')"
            assert "<b>running</b>" in page.value(headline)
            page.shoot(tmp_path / "dashboard.png")
            assert (tmp_path / "dashboard.png").stat().st_size > 10_000
            paused.looked.set()
            page.wait(f"{headline}.includes('<b>ended</b>')")
            assert page.value(drawn) == 30
    finally:
        paused.looked.set()
        running.join(120)
    assert results[0].ended == "epochs"
