"""What a run can go on from, and whether this run may."""

import copy
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dasktrain.balancing import Balance
from dasktrain.checkpoint import Store
from dasktrain.compute import Compute
from dasktrain.errors import BadInput
from dasktrain.events import Domain
from dasktrain.following import Following
from dasktrain.messages import Kind
from dasktrain.observe import Observer, Record, Run
from dasktrain.optimizers import each_of
from dasktrain.plan import Plan
from dasktrain.state import Cursor, Snapshot, TrainState, digest_of
from dasktrain.strategies import Strategy
from dasktrain.trees import flatten, unflatten

Facts = dict[str, Any]
#: name of the tensor that holds the rounds of the history, as lines of JSON
ROUNDS = "history/rounds"
#: facts of a checkpoint, besides its tree
PARTS = ("run", "identity", "fingerprints", "encoding", "threads", "domain")
#: partitions named in a message
MOST = 5


def identity(
    plan: Plan,
    state: TrainState,
    schedule_every: str,
    compute: Compute,
    balance: Balance | None = None,
    turns: Sequence[str] = ("",),
    inner: str = "",
    compression: str = "",
) -> Facts:
    """Return what a run and the one it goes on from must have in common, besides the data."""
    optional = {
        "tables": list(state.parameters.tables),
        "balance": None if balance is None else str(balance),
        "grouped": plan.grouped,
        "fold": None if plan.side is None else str(plan.side.fold),
        "turns": [turn for turn in turns if turn],
        "inner": inner,
        "compression": compression,
    }
    trainable = {id(parameter) for parameter in state.parameters.parameters.values()}
    frozen = [(name, each) for name, each in sorted(state.module.named_parameters()) if id(each) not in trainable]
    return {
        "shards": plan.shards,
        "batch_size": plan.batch_size,
        "seed": plan.seed,
        "partition": plan.partition,
        "shuffle": plan.shuffle,
        "window": plan.window,
        "schedule_every": schedule_every,
        "microbatch": compute.microbatch,
        "autocast": compute.autocast,
        "compile": compute.compile,
        "optimizer": " and ".join(type(each).__name__ for each in each_of(state.optimizer)),
        "scheduler": type(state.scheduler).__name__,
        "parameters": {name: list(shape) for name, shape in state.parameters.layout.shapes.items()},
        "frozen parameters": digest_of(frozen),
    } | {name: value for name, value in optional.items() if value}


def capture(
    run: Run, state: TrainState, strategy: Strategy, following: Following | None, observers: Sequence[Observer]
) -> Facts:
    """Return a copy of all that changes while a run goes on, but for the rounds of its history."""
    return {
        "state": vars(state.snapshot()),
        "cursor": vars(copy.copy(run.cursor)),
        "strategy": copy.deepcopy(strategy.state_dict()),
        "following": {} if following is None else following.state_dict(),
        "observers": [[type(observer).__name__, observer.state_dict()] for observer in observers],
        "epochs": [record for record in run.history if record["epoch"] < run.cursor.epoch],  # the finished ones
    }


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read.

    Attributes
    ----------
    url : str
        Where from.
    facts : dict
        ``identity``, ``fingerprints`` (of each partition of each data set), ``encoding``, ``threads``, ``domain``.
    tree : dict
        What `capture` returned.
    rounds : list of dict
        The history's.
    """

    url: str
    facts: Facts
    tree: Facts
    rounds: list[Record]

    @property
    def shards(self) -> int:
        """Shards of the saved run."""
        return int(self.facts["identity"]["shards"])

    @property
    def threads(self) -> int:
        """Torch threads of its replicas."""
        return int(self.facts["threads"])

    @property
    def domain(self) -> Domain | None:
        """Its determinism domain."""
        domain: Domain | None = self.facts["domain"]
        return domain

    @staticmethod
    def read(url: str) -> "Saved":
        """Read the newest complete checkpoint.

        Raises
        ------
        BadInput
            There is none, or what is there is none.
        """
        tensors, facts = Store(url).newest()
        with _as_it_was(url):
            lines = tensors.pop(ROUNDS)
            rounds = [json.loads(line) for line in bytes(lines.numpy()).decode().splitlines()]
            saved = Saved(url, facts, unflatten(facts["tree"], tensors), rounds)
            for part in PARTS:
                _ = facts[part]
            _ = saved.shards, saved.threads
        return saved

    def check(self, identity: Facts, fingerprints: Mapping[Kind, Sequence[str]]) -> None:
        """Refuse to go on with another plan, model or data set.

        Raises
        ------
        BadInput
            Says what differs.
        """
        was = self.facts["identity"]
        faults = [
            f"{name} is {_shown(identity.get(name))} and was {_shown(was.get(name))}"
            for name in identity | was
            if identity.get(name) != was.get(name)
        ]
        faults += _other_data(fingerprints, self.facts["fingerprints"])
        if faults:
            raise BadInput(
                f"A resumed run must have the plan, model and data of the checkpoint at {self.url}, however "
                f"{'; '.join(faults)}; give it those, or start anew without resume="
            )

    def restore(self, run: Run, state: TrainState, strategy: Strategy, following: Following | None) -> None:
        """Put a run where the saved one was.

        Raises
        ------
        BadInput
            The saved state does not fit the run's.
        """
        with _as_it_was(self.url):
            state.restore(Snapshot(**self.tree["state"]))
            vars(run.cursor).update(vars(Cursor(**self.tree["cursor"])))
            strategy.load_state_dict(self.tree["strategy"])
            if following is not None:
                following.load_state_dict(self.tree["following"])
            run.history[:] = self.tree["epochs"]
            run.history.rounds[:] = self.rounds

    def hand_back(self, place: int, observer: Observer) -> None:
        """Give an observer what it left in the checkpoint; it must be at the place it had."""
        kept = self.tree["observers"]
        name, state = kept[place] if place < len(kept) else ("", {})
        if name == type(observer).__name__:
            observer.load_state_dict(state)
        elif observer.state_dict():
            warnings.warn(
                f"Observers must be given in the order of the resumed run to go on where they were, however "
                f"{type(observer).__name__} is at place {place}, which {name or 'nobody'} had; it starts anew",
                stacklevel=2,
            )


@contextmanager
def _as_it_was(url: str) -> Iterator[None]:
    """Have whatever a checkpoint lacks, or has of another kind, be a BadInput."""
    try:
        yield
    except Exception as error:  # of torch, NumPy, optimizers, strategies
        raise BadInput(
            f"The checkpoint at {url} must be as it was written, however {type(error).__name__}: {error}; "
            "resume from another, or start anew without resume="
        ) from error


def as_tensors(tree: Facts, rounds: bytes) -> tuple[Any, dict[str, Tensor]]:
    """Turn a captured tree, and rounds as lines of JSON, into plain values and tensors, as `Saved.read` wants them."""
    plain, tensors = flatten(tree, "run")
    return plain, tensors | {ROUNDS: torch.from_numpy(np.frombuffer(bytearray(rounds), dtype=np.uint8))}


def _other_data(now: Mapping[Kind, Sequence[str]], was: Mapping[Kind, Sequence[str]]) -> list[str]:
    faults = []
    for kind in sorted({*now, *was}):
        here, there = now.get(kind, []), was.get(kind, [])
        if len(here) != len(there):
            faults.append(f"the {kind} data has {len(here)} partitions and had {len(there)}")
            continue
        others = [number for number, pair in enumerate(zip(here, there, strict=True)) if pair[0] != pair[1]]
        if others:
            named = ", ".join(map(str, others[:MOST])) + (", ..." if len(others) > MOST else "")
            faults.append(f"partitions {named} of the {kind} data hold other rows ({len(others)} of {len(here)})")
    return faults


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
