"""capacity.py: what rounds are predicted to take, and how many workers help."""

import json
import re
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import dasktrain as dt
from dasktrain.capacity import COLUMNS, MOST, PAYLOAD, WIDTH, ClusterPlan
from dasktrain.cli import main
from dasktrain.errors import BadInput
from dasktrain.fleet import default_shards, shares
from dasktrain.messages import State, Task
from dasktrain.topology import AMONG, GAIN, MESSAGE, Links, Reduction
from dasktrain.wire.peers import Peers
from dasktrain.wire.ways import Among

PAGE = Path(__file__).parents[1] / "docs" / "capacity.md"
GIGABIT = 1e9
#: a model of 25M parameters at 10 Gbit/s
GIVEN: dict[str, Any] = {
    "parameters": 25_000_000,
    "worker_rows_per_second": 200.0,
    "batch_size": 4096,
    "bandwidth": 10 * GIGABIT,
}


@st.composite
def plans(draw: st.DrawFn) -> ClusterPlan:
    """Draw anything that can be asked."""
    return dt.plan_cluster(
        draw(st.integers(1, 1 << 32)),
        draw(st.floats(1e-2, 1e6)),
        draw(st.integers(1, 1 << 20)),
        draw(st.floats(1e6, 1e12)),
        draw(st.integers(1, MOST)),
        workers_per_host=draw(st.integers(1, 64)),
        shards=draw(st.none() | st.integers(1, 4096)),
        steps=draw(st.integers(1, 1000)),
        reduction=draw(st.sampled_from(get_args(Reduction))),
    )


# -- laws -------------------------------------------------------------------------------------------------------------


@given(plans(), st.floats(1, 1e3))
def test_more_bandwidth_never_takes_longer(plan: ClusterPlan, more: float) -> None:
    assume(plan.reduction != "auto")  # which does not change ways for what nobody notices
    assert replace(plan, bandwidth=more * plan.bandwidth).seconds <= plan.seconds


@given(plans())
def test_auto_is_the_best_of_all_ways_but_for_what_nobody_notices(plan: ClusterPlan) -> None:
    auto, flat, sharded, tree = (replace(plan, reduction=way) for way in ("auto", "flat", "sharded", "tree"))
    assert auto.wire <= flat.wire
    assert (1 - GAIN) * auto.wire <= min(sharded.wire, tree.wire)
    assert auto.seconds in (flat.seconds, sharded.seconds, tree.seconds)


@given(plans(), st.integers(1, MOST))
def test_no_number_of_workers_is_quicker_than_the_most_that_help(plan: ClusterPlan, workers: int) -> None:
    best = replace(plan, workers=plan.most_workers)
    assert replace(plan, workers=workers).rows_per_second <= best.rows_per_second


@given(plans())
def test_parts_are_the_whole_and_nobody_computes_more_than_all_the_time(plan: ClusterPlan) -> None:
    assert plan.seconds == plan.compute + plan.wire + plan.step
    assert plan.rows_per_second * plan.seconds == pytest.approx(plan.batch_size)
    assert 0 < plan.efficiency <= 1 + 1e-9


@given(plans())
def test_the_busiest_worker_has_the_shards_that_a_run_gives_it(plan: ClusterPlan) -> None:
    shards = plan.shards or default_shards(plan.workers)
    most = max(stop - start for _, start, stop in shares([str(one) for one in range(plan.workers)], shards))
    rows = plan.compute * plan.worker_rows_per_second
    assert most / shards * plan.batch_size <= rows * (1 + 1e-9) < most / shards * plan.batch_size + 1 + 1e-6 * rows


@given(st.integers(1, 1 << 28), st.integers(1, 64), st.floats(1e6, 1e12))
def test_a_run_reduces_as_it_is_planned(parameters: int, workers: int, bandwidth: float) -> None:
    plan = dt.plan_cluster(parameters, 1.0, 1, bandwidth, workers)
    peers = Peers()
    addresses = [f"tcp://10.0.0.{worker}:9" for worker in range(workers)]
    for address in addresses:
        peers.add(address, bandwidth / 8 * PAYLOAD)
    peers.choose(
        "auto",
        State(np.broadcast_to(np.float32(0), parameters), np.empty(0, np.uint8)),
        default_shards(workers),
        addresses,
    )
    peers.settle()
    ways = peers.ways([(address, Task("r", "train", 0, 0, 0, 1)) for address in addresses], {})
    chosen = {way.reduction for way in ways.values() if isinstance(way, Among)} or {"flat"}
    assert chosen == {plan.topology}


# -- examples ---------------------------------------------------------------------------------------------------------


def test_a_model_is_as_good_as_its_number_of_parameters() -> None:
    settings = {name: value for name, value in GIVEN.items() if name != "parameters"}
    assert dt.plan_cluster(nn.Linear(9, 11), **settings) == dt.plan_cluster(9 * 11 + 11, **settings)


@pytest.mark.parametrize(("reduction", "topology"), [("flat", "host pre-reduce"), ("auto", "sharded")])
def test_the_wire_is_that_of_the_links(reduction: Any, topology: str) -> None:
    plan = dt.plan_cluster(**GIVEN, workers=12, workers_per_host=4, reduction=reduction)
    rate = GIVEN["bandwidth"] / 8 * PAYLOAD
    links = Links(12, 3, 16, WIDTH * GIVEN["parameters"], WIDTH, rate).cut(reduction, WIDTH)
    wire = links.flat if reduction == "flat" else links.sharded
    assert (plan.hosts, plan.topology, plan.wire) == (3, topology, wire)


def test_workers_beyond_the_shards_are_spares() -> None:
    plan = dt.plan_cluster(**GIVEN, workers=16, shards=4)
    assert (plan.wire, plan.compute) == (replace(plan, workers=4).wire, replace(plan, workers=4).compute)
    assert plan.efficiency == pytest.approx(replace(plan, workers=4).efficiency / 4)


def test_shards_that_step_by_themselves_spare_the_wire() -> None:
    once, rarely = (dt.plan_cluster(**GIVEN, workers=8, steps=steps) for steps in (1, 100))
    assert rarely.wire == pytest.approx(once.wire / 100)
    assert rarely.step == pytest.approx(once.step / 100)
    assert rarely.compute == once.compute


def test_without_a_network_only_messages_cost() -> None:
    plan = dt.plan_cluster(**GIVEN | {"bandwidth": inf}, workers=32)
    assert plan.wire == 2 * 32 * MESSAGE


def test_flat_stops_where_the_square_root_says() -> None:
    """N_opt = sqrt(T1 / q) of the cost model, as near as a power of two can be."""
    plan = dt.plan_cluster(1e6, 1e6, 1 << 20, 10 * GIGABIT, reduction="flat")
    q = 2 * WIDTH * 1e6 / (10 * GIGABIT / 8 * PAYLOAD)
    assert 0.5 <= plan.workers / (2**20 / 1e6 / q) ** 0.5 <= 2


def test_it_says_what_there_is_to_know() -> None:
    plan = dt.plan_cluster(**GIVEN)
    for words in (f"{plan.workers} workers", plan.topology, f"more than {plan.most_workers} workers do not help"):
        assert words in str(plan)
    frame = plan.to_frame()
    assert tuple(frame.columns) == COLUMNS
    assert frame["workers"].tolist() == [1 << power for power in range(11)]
    assert frame.set_index("workers").loc[8, "seconds"] == replace(plan, workers=8).seconds


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"parameters": 0}, "parameters must be a number, 1 or more, or a module, however it is 0"),
        ({"parameters": "25M"}, "parameters must be a number, 1 or more, or a module, however it is '25M'"),
        ({"parameters": float("nan")}, "however it is nan"),
        ({"parameters": nn.ReLU()}, "parameters must be a whole number, 1 or more, however it is 0"),
        ({"worker_rows_per_second": 0.0}, "worker_rows_per_second must be more than 0"),
        ({"batch_size": 0}, "batch_size must be a whole number, 1 or more"),
        ({"bandwidth": float("nan")}, "bandwidth must be more than 0"),
        ({"batch_size": None}, "batch_size must be a whole number"),
        ({"workers": 2.5}, "workers must be a whole number"),
        ({"workers": 0}, "workers must be a whole number, 1 or more"),
        ({"workers_per_host": 0}, "workers_per_host must be a whole number, 1 or more"),
        ({"shards": 0}, "shards must be a whole number, 1 or more"),
        ({"steps": 0}, "steps must be a whole number, 1 or more"),
        ({"step_seconds": -1.0}, "step_seconds must be 0 or more"),
        ({"reduction": "shraded"}, "reduction must be one of 'auto', 'flat', 'sharded', 'tree'"),
    ],
)
def test_a_number_that_cannot_be_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        dt.plan_cluster(**GIVEN | changed)


# -- the command line -------------------------------------------------------------------------------------------------

TYPED = ("plan", "--parameters", "25e6", "--rows-per-second", "200", "--batch-size", "4096", "--bandwidth", "10e9")


def test_the_command_says_the_same() -> None:
    plan = dt.plan_cluster(**GIVEN)
    done = CliRunner().invoke(main, [*TYPED, "--json"])
    found = json.loads(done.stdout)
    assert (found["workers"], found["topology"], found["most_workers"]) == (plan.workers, plan.topology, plan.workers)
    assert [row["workers"] for row in found["table"]] == [1 << power for power in range(11)]
    assert found["seconds"] == pytest.approx(plan.seconds, rel=1e-2)


def test_the_command_refuses_what_cannot_be() -> None:
    done = CliRunner().invoke(main, [*TYPED, "--workers", "0"])
    assert done.exit_code == 2
    assert "workers must be a whole number, 1 or more" in done.output


# -- the page ---------------------------------------------------------------------------------------------------------


def seconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def line(*cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def rounds() -> list[str]:
    """Return the lines of the table of a round."""
    return [
        line(
            f"{row.workers:,}",
            row.topology,
            *map(seconds, (row.compute, row.wire, row.seconds)),
            f"{row.rows_per_second:,.0f}",
            f"{row.efficiency:.0%}",
        )
        for row in dt.plan_cluster(100e6, 20, 4096, 10 * GIGABIT).to_frame().itertuples()
    ]


def each_way(workers: int, parameters: float, bandwidth: float) -> str:
    """Return what a round is on the wire flat, sharded, and along a tree."""
    ways: tuple[Reduction, ...] = ("flat", *AMONG)
    plans = [dt.plan_cluster(parameters, 1, 1, bandwidth, workers, shards=workers, reduction=way) for way in ways]
    assert tuple(plan.topology for plan in plans) == ways
    return " / ".join(seconds(plan.wire) for plan in plans)


def wires() -> list[str]:
    """Return the lines of the table of what is on the wire."""
    cases = ((1e6, 10), (25e6, 1), (25e6, 10), (100e6, 10), (1e9, 10))
    return [
        line(f"{workers:,}", *(each_way(workers, parameters, gigabits * GIGABIT) for parameters, gigabits in cases))
        for workers in (2, 4, 8, 16, 64, 256, 1024)
    ]


@pytest.mark.parametrize("lines", [rounds, wires], ids=["a round", "the wire"])
def test_tables_of_the_page_are_what_the_code_says(lines: Any) -> None:
    text = "\n".join(lines())
    written = re.findall(r"(?:^\|.*\|\n)+", PAGE.read_text(), re.MULTILINE)
    assert [one for one in written if one.split("\n", 2)[2].strip() == text], f"the page must have this table:\n{text}"
