"""Rows of rare classes, made up by a generator that was trained against a critic.

A conditional generative adversarial network (Goodfellow et al., "Generative Adversarial Nets", NIPS 2014; Mirza and
Osindero, "Conditional Generative Adversarial Nets", 2014, arXiv 1411.1784) is two players of a Trainer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dasktrain.balancing import Balance, Oversample, require_numbers
from dasktrain.data.source import Encoding, Schema, Source
from dasktrain.domain import pinned
from dasktrain.errors import DataError, PlanError
from dasktrain.observe import Observer
from dasktrain.trainer import Trainer, Where

#: numbers of noise that a row is made of; units of the two hidden layers of both players
NOISE, WIDTH = 32, 128
#: of Adam, for both players; half the weight of the critic's squared slope
RATE, BETAS, SLOPE = 5e-4, (0.5, 0.9), 0.5
Floats = NDArray[np.float32]


class Generator(nn.Module):
    """Makes rows of noise and class numbers."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.layers = _layers(NOISE + classes, features)

    def forward(self, labels: Tensor, noise: Tensor) -> Tensor:
        """Return (rows, features) of (rows,) class numbers and (rows, NOISE) normal noise."""
        found: Tensor = self.layers(_beside(noise, labels, self.classes))
        return found


class Critic(nn.Module):
    """Scores how real rows look for their class."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.layers = _layers(features + classes, 1)

    def forward(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Return (rows,) log-odds of (rows, features) being real rows of (rows,) class numbers."""
        found: Tensor = self.layers(_beside(rows, labels, self.classes))
        return found[:, 0]


class Seen(NamedTuple):
    """What both players' losses start from: (rows, features) real rows, and the players."""

    rows: Tensor
    generator: Generator
    critic: Critic


class ConditionalGan(nn.Module):
    """A generator and its critic."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.generator = Generator(schema.num_features, schema.num_outputs)
        self.critic = Critic(schema.num_features, schema.num_outputs)

    def forward(self, rows: Tensor) -> Seen:
        """Return what losses, which know the classes as well, go on from."""
        return Seen(rows.flatten(1), self.generator, self.critic)


def critic_loss(seen: Seen, labels: Tensor) -> Tensor:
    """Return (rows,): what is lost by scores of real rows and of made-up ones, and by steep scores.

    The last term keeps the game from circling (Mescheder, Geiger and Nowozin, "Which Training Methods for GANs do
    actually Converge?", ICML 2018, R1).
    """
    real = seen.rows.detach().requires_grad_()
    score = seen.critic(real, labels)
    (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
    made_up = seen.critic(_made_up(seen, labels).detach(), labels)
    return F.softplus(-score) + F.softplus(made_up) + SLOPE * slope.square().sum(dim=1)


def generator_loss(seen: Seen, labels: Tensor) -> Tensor:
    """Return (rows,): what is lost where made-up rows are seen through."""
    return F.softplus(-seen.critic(_made_up(seen, labels), labels))


def _made_up(seen: Seen, labels: Tensor) -> Tensor:
    """Return as many rows of each class as there are real ones."""
    found: Tensor = seen.generator(labels, torch.randn(len(labels), NOISE, device=seen.rows.device))
    return found


def _layers(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(inputs, WIDTH), nn.LeakyReLU(0.2), nn.Linear(WIDTH, WIDTH), nn.LeakyReLU(0.2)),
        nn.Linear(WIDTH, outputs),
    )


def _beside(numbers: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return numbers (rows, ...) with class numbers (rows,) beside them, one-hot."""
    return torch.cat([numbers, F.one_hot(labels, classes).to(numbers.dtype)], dim=1)


@dataclass(frozen=True)
class Generated:
    """Rows that a trained generator makes.

    It computes in one thread, on the CPU: so bits do not depend on how many there are.
    """

    generator: Generator

    def __call__(
        self, features: Floats, labels: NDArray[np.int64], wanted: Mapping[int, int], seed: int
    ) -> dict[int, Floats]:
        """Return rows as :class:`dasktrain.data.synthesis.Synthesis` says."""
        random = torch.Generator().manual_seed(seed)
        made = {}
        with pinned(1), torch.no_grad():
            for label, count in sorted(wanted.items()):
                noise = torch.randn(count, NOISE, generator=random)
                made[label] = self.generator(torch.full((count,), label), noise).numpy()
        return made


@dataclass(frozen=True)
class Rare(Balance):
    """Rows of rare classes alone."""

    ratio: float
    draws = True

    def drawn(self, rows: NDArray[np.int64]) -> tuple[int, ...]:
        """Return how many rows of each class an epoch reads."""
        filled = Oversample(self.ratio).drawn(rows)
        if (rows == filled).all():
            raise PlanError(
                f"A class must have fewer than {self.ratio:g} rows for every row of the largest to be rare, however "
                f"rows of classes are {rows.tolist()}; leave out balance="
            )
        return tuple(count if count < wanted else 0 for count, wanted in zip(rows.tolist(), filled, strict=True))

    def check(self, encoding: Encoding) -> None:
        """Raise BadInput if rows are more than numbers."""
        require_numbers(encoding)


@dataclass(frozen=True)
class Gan(Oversample):
    """Made-up rows in place of those that :class:`Oversample` would read again; see :meth:`trained`.

    Attributes
    ----------
    ratio : float
        As of :class:`Oversample`.
    digest : str
        Of the training of the generator and its critic.
    """

    digest: str = ""
    generator: Generator = field(repr=False, compare=False, kw_only=True)
    encoding: Encoding = field(repr=False, compare=False, kw_only=True)

    @classmethod
    def trained(
        cls,
        data: Source,
        ratio: float = 1.0,
        rounds: int = 2000,
        batch_size: int = 256,
        shards: int | None = None,
        seed: int = 0,
        client: Where = None,
        observers: Sequence[Observer] | None = None,
    ) -> "Gan":
        """Train a generator on the rows of rare classes, to balance these data with.

        Its bits, and so those of what it makes up, are the same on any number of workers.

        Parameters
        ----------
        data
            What is to be balanced, with numeric columns only.
        ratio
            As of :class:`Oversample`: classes that have fewer rows are rare.
        rounds, batch_size
            Of the training; in each the critic steps, and then the generator.
        shards, seed, client
            As :meth:`dasktrain.Trainer.fit` takes them.
        observers
            As :class:`dasktrain.Trainer` takes them.

        Raises
        ------
        BadInput
            Before the first round.

        Examples
        --------
        ``trainer.fit(data, balance=dt.balance.Gan.trained(data, ratio=0.2))``
        """
        optimizer = partial(torch.optim.Adam, lr=RATE, betas=BETAS)
        trainer = Trainer(
            ConditionalGan,
            loss={"critic": critic_loss, "generator": generator_loss},
            optimizer={"critic": optimizer, "generator": optimizer},
            observers=observers,
        )
        result = trainer.fit(
            data, max_rounds=rounds, batch_size=batch_size, shards=shards, seed=seed, client=client, balance=Rare(ratio)
        )
        assert isinstance(result.model, ConditionalGan)
        generator = result.model.generator.cpu().eval()
        return cls(ratio, result.digest, generator=generator, encoding=result.encoding)

    @property
    def synthesis(self) -> Generated:
        """What makes up rows in place of those that would come again."""
        return Generated(self.generator)

    def check(self, encoding: Encoding) -> None:
        """Raise BadInput if rows are not encoded as those that the generator was trained on."""
        require_numbers(encoding)
        known, found = (json.dumps(each.to_json()) for each in (self.encoding, encoding))
        if known != found:
            raise DataError(
                "Rows must be encoded as those that the generator was trained on, however their statistics differ; "
                "use dt.balance.Gan.trained on the data that it is to balance"
            )
