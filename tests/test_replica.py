"""Rows gathered ahead of a round save time and change nothing."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from dasktrain.buffers import FlatBuffers
from dasktrain.data.block import Batch, Block, Stack, as_block
from dasktrain.job import Job
from dasktrain.messages import Answer, Failure, Kind, State, Task
from dasktrain.plan import Plan, rows_only
from dasktrain.players import Players
from dasktrain.replica import Replica
from dasktrain.strategies import GradientAveraging
from dasktrain.vector import FlatParameters

SIZES = (14, 0, 25, 1)
PLAN = Plan(rows_only(SIZES), 4, 18, seed=5)


class Reader:
    """Hands out blocks, counts how often, and can be made to fail."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.blocks = [
            as_block((rng.normal(size=(size, 3)).astype(np.float32),), rng.integers(0, 2, size)) for size in SIZES
        ]
        self.reads: Counter[Kind] = Counter()
        self.fails = False

    def __call__(self, kind: Kind, partition: int) -> Block:
        self.reads[kind] += 1
        if self.fails:
            raise OSError("partition is nowhere")
        return self.blocks[partition]


def replica(reader: Reader) -> tuple[Replica, State]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.5), nn.Dropout(0.5), nn.Linear(4, 2))
    plans: dict[Kind, Plan] = {"train": PLAN, "evaluate": Plan(rows_only(SIZES), 4, 18, shuffle=False)}
    fingerprints = [block.fingerprint for block in reader.blocks]
    sample = Batch((torch.zeros(4, 3),), torch.zeros(4, dtype=torch.long), None, 4)
    known: dict[Kind, list[str]] = {"train": fingerprints, "evaluate": fingerprints}
    job = Job(module, Players.of(nn.CrossEntropyLoss()), {}, GradientAveraging(), plans, 5, 1, sample, known, Stack())
    made = Replica(job, reader)
    return made, State(FlatParameters(module).vector.numpy().copy(), FlatBuffers(module).vector.numpy().copy())


def answered(made: Replica, task: Task, state: State) -> bytes:
    answer = made(task, state)
    assert isinstance(answer, Answer), answer
    parts = [part for partial in answer.partials for part in (partial.vector, partial.sums) if part is not None]
    assert parts
    return b"".join(part.tobytes() for part in parts)


#: (task that was answered, task that follows): the same shards, others, the next epoch, a jump, a repeat
FOLLOWED = [
    (Task("r", "train", 0, 0, 0, 4), Task("r", "train", 0, 1, 0, 4)),
    (Task("r", "train", 0, 0, 0, 2), Task("r", "train", 0, 1, 1, 4)),
    (Task("r", "train", 0, PLAN.rounds - 1, 0, 4), Task("r", "train", 1, 0, 0, 4)),
    (Task("r", "train", 0, 0, 0, 4), Task("r", "train", 3, 1, 0, 4)),
    (Task("r", "train", 0, 1, 0, 4), Task("r", "train", 0, 1, 0, 4)),
]


@pytest.mark.parametrize(("task", "then"), FOLLOWED)
def test_answers_have_the_same_bits_with_and_without_rows_gathered_ahead(task: Task, then: Task) -> None:
    plain, state = replica(Reader())
    eager, _ = replica(Reader())
    for each in (task, then):
        assert answered(eager, each, state) == answered(plain, each, state)
        eager.ahead(each)


@pytest.mark.parametrize(("task", "then"), FOLLOWED[::2])
def test_a_round_that_was_foreseen_reads_nothing(task: Task, then: Task) -> None:
    reader = Reader()
    made, state = replica(reader)
    made(task, state)
    made.ahead(task)
    before = reader.reads["train"]
    answered(made, then, state)
    assert (reader.reads["train"] == before) == (then != task)


def test_validation_between_epochs_keeps_what_was_gathered() -> None:
    reader = Reader()
    made, state = replica(reader)
    last, validation = Task("r", "train", 0, PLAN.rounds - 1, 0, 4), Task("r", "evaluate", 0, PLAN.rounds - 1, 0, 4)
    for task in (last, validation):
        made(task, state)
        made.ahead(task)
    before = reader.reads["train"]
    answered(made, Task("r", "train", 1, 0, 0, 4), state)
    assert reader.reads["train"] == before


def test_no_more_than_one_round_is_held() -> None:
    made, state = replica(Reader())
    for round in range(PLAN.rounds):
        made(Task("r", "train", 0, round, 0, 4), state)
        made.ahead(Task("r", "train", 0, round, 0, 2))
        assert len(made._ahead) == 2


def test_a_partition_that_cannot_be_read_is_told_by_the_round_and_not_before() -> None:
    reader = Reader()
    made, state = replica(reader)
    task = Task("r", "train", 0, 0, 0, 4)
    made(task, state)
    reader.fails = True
    made.ahead(task)
    failure = made(Task("r", "train", 0, 1, 0, 4), state)
    assert isinstance(failure, Failure)
    assert "partition is nowhere" in failure.text
