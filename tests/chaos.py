"""Random schedules of faults, each of which must leave the bits as they are: ``python -m tests.chaos 10000``."""

import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

import fsspec

import dasktrain as dt
from dasktrain.checkpointer import Checkpoint
from dasktrain.messages import Partial
from dasktrain.observe import PARTS, Observer
from dasktrain.plan import SHUFFLES
from dasktrain.state import TrainState
from dasktrain.strategies import GradientAveraging, Sums
from tests.chaos_wire import ChaosWire, Clock
from tests.problems import PARTITIONS, PROBLEMS, Problem

EPOCHS, BATCH_SIZE, ROUNDS = 2, 100, 5
#: fault-free runs to compare with; more of them take longer
SETTINGS = 30
WHERE = "memory://dasktrain-chaos"


@dataclass(frozen=True)
class Setting:
    """What decides a run's bits."""

    problem: Problem
    shards: int
    shuffle: Any
    validation: bool

    @property
    def arguments(self) -> dict[str, Any]:
        """Return arguments of fit."""
        rest = {"batch_size": BATCH_SIZE, "epochs": EPOCHS, "seed": 7, "shards": self.shards, "shuffle": self.shuffle}
        return rest | ({"validation": self.problem.data} if self.validation else {})


def _settings() -> list[Setting]:
    random = Random(0)
    return [
        Setting(
            PROBLEMS[place % len(PROBLEMS)], 1 + place % 9, random.choice(SHUFFLES), validation=random.random() < 0.3
        )
        for place in range(SETTINGS)
    ]


@dataclass(frozen=True)
class Counting(GradientAveraging):
    """Keeps the rows of every round's answers."""

    rows: list[int] = field(default_factory=list)

    def apply(self, state: TrainState, total: Partial, sums: Sums) -> dict[str, float]:
        assert total.sums is not None
        self.rows.append(int(sums.layout.views(total.sums)["rows"]))
        return super().apply(state, total, sums)


@dataclass(frozen=True)
class Outcome:
    """What must not depend on who computed it."""

    digest: str
    rounds: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    rows: list[int]


def outcome(setting: Setting, wire: dt.LocalWire, observers: list[Observer], **other: Any) -> Outcome:
    """Train on a wire."""
    trainer, counting = setting.problem.trainer(observers), Counting()
    trainer.strategy = counting
    result = trainer.fit(setting.problem.data, client=wire, **(setting.arguments | other))
    timeless = [
        [
            {name: value for name, value in record.items() if "second" not in name and name not in PARTS}
            for record in records
        ]
        for records in (result.history.rounds, result.history)
    ]
    return Outcome(result.digest, *timeless, counting.rows)


@cache
def reference(setting: Setting) -> Outcome:
    """Train on one worker on which all goes well."""
    found = outcome(setting, dt.LocalWire(1), [])
    assert [sum(found.rows[epoch * ROUNDS :][:ROUNDS]) for epoch in range(EPOCHS)] == [sum(PARTITIONS)] * EPOCHS
    return found


def schedule(seed: int) -> Counter[str]:
    """Train while everything goes wrong, in a third of the cases in two runs, and compare; count what went wrong."""
    random, clock = Random(seed), Clock()
    setting = random.choice(_settings())
    wires = [ChaosWire(random, random.randint(1, 6), clock)]
    rows: list[int] = []
    with clock.ticking():
        if random.random() < 1 / 3:
            url = f"{WHERE}/{seed}"
            stop, every = random.randrange(1, EPOCHS * ROUNDS), random.randint(1, 4)
            keeps = Checkpoint(url, f"{every} rounds", keep=1)
            rows += outcome(setting, wires[0], [keeps], max_rounds=stop).rows
            wires.append(ChaosWire(random, random.randint(1, 6), clock))
            found = outcome(setting, wires[1], [keeps] if random.random() < 0.5 else [], resume=url)
            fsspec.filesystem("memory").rm(url, recursive=True)
        else:
            found = outcome(setting, wires[0], [])
    wanted = reference(setting)
    assert found.digest == wanted.digest, f"schedule {seed} of {setting} changed the result"
    assert found.rounds == wanted.rounds, f"schedule {seed} of {setting} changed the history"
    assert found.epochs == wanted.epochs, f"schedule {seed} of {setting} changed the history"
    assert rows + found.rows == wanted.rows, f"schedule {seed} of {setting} lost or doubled rows"
    total = Counter({"schedules": 1, "resumed": len(wires) - 1})
    return total + sum((wire.happened for wire in wires), Counter())


def schedules(count: int, first_seed: int = 0) -> Counter[str]:
    """Run many schedules; count them and what went wrong in them."""
    total: Counter[str] = Counter()
    for seed in range(first_seed, first_seed + count):
        try:
            total += schedule(seed)
        except Exception as error:
            error.add_note(f"in schedule {seed}")
            raise
    return total


def main(count: int) -> None:
    """Run schedules and print what happened in them."""
    for name, number in schedules(count).most_common():
        print(f"{name:<26}{number:>10,}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
