"""Rows that are made up in place of those that a plan reads again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dasktrain.data.block import Batch, Collate, ReadBlock, gather
from dasktrain.plan import Piece, Plan

Floats = NDArray[np.float32]


class Synthesis(Protocol):
    """Makes up rows; shipped to every worker. It must give the same bits for the same arguments, anywhere."""

    def __call__(
        self, features: Floats, labels: NDArray[np.int64], wanted: Mapping[int, int], seed: int
    ) -> Mapping[int, Floats]:
        """Return made-up rows of some classes.

        Parameters
        ----------
        features, labels
            (rows, features) and (rows,): those that a window really has.
        wanted
            Class number -> rows to make up.
        seed
            32 bits, the window's own.

        Returns
        -------
        mapping
            Class number -> (wanted, features) float32. For a class it leaves out, its rows are read again.
        """


@dataclass(frozen=True)
class Neighbours:
    """SMOTE, by imbalanced-learn.

    Neighbours are found by a tree in one thread: which they are then depends neither on BLAS nor on how many cores
    there are.
    """

    neighbours: int

    def __call__(
        self, features: Floats, labels: NDArray[np.int64], wanted: Mapping[int, int], seed: int
    ) -> dict[int, Floats]:
        """Return rows between those of a class, as `Synthesis` says."""
        from imblearn.over_sampling import SMOTE  # an extra
        from sklearn.neighbors import NearestNeighbors

        made = {}
        for label, count in sorted(wanted.items()):
            own = labels == label
            rows = int(own.sum())
            if rows < 2 or rows == len(labels):
                continue
            # imbalanced-learn wants another class beside; of its rows nothing but their number matters.
            least = [*np.flatnonzero(own).tolist(), int(np.argmin(own))]
            nearest = NearestNeighbors(n_neighbors=min(self.neighbours, rows - 1) + 1, algorithm="kd_tree", n_jobs=1)
            smote = SMOTE(sampling_strategy={1: rows + count}, k_neighbors=nearest, random_state=seed)
            found, _ = smote.fit_resample(features[least], own[least].astype(int))
            made[label] = found[len(least) :].astype(np.float32)
        return made


@dataclass
class Synthesiser:
    """Puts made-up rows into the batches of a plan that reads rows again.

    Attributes
    ----------
    synthesis, plan, collate
        What to make rows up with, where they come, and how they become a batch.
    """

    synthesis: Synthesis
    plan: Plan
    collate: Collate
    #: shard -> ((epoch, window), features of the rows that are read again, made up); its latest window
    _latest: dict[int, tuple[tuple[int, int], Floats]] = field(default_factory=dict, repr=False)

    def __call__(self, batch: Batch, read: ReadBlock, epoch: int, shard: int, pieces: Sequence[Piece]) -> Batch:
        """Return a batch of the pieces' rows with others in place of those that came before in the epoch."""
        features = _features(batch)
        start = 0
        for piece in pieces:
            assert piece.rows.copy is not None
            again = piece.rows.copy > 0
            chosen = np.flatnonzero(again[piece.read])
            if len(chosen):
                made = self._made(read, epoch, shard, piece)
                first = int(again[: piece.read.start].sum())
                rows = torch.from_numpy(made[first : first + len(chosen)])
                features[torch.from_numpy(start + chosen)] = rows.reshape(-1, *features.shape[1:])
            start += piece.read.stop - piece.read.start
        return replace(batch, inputs=(features,))

    def _made(self, read: ReadBlock, epoch: int, shard: int, piece: Piece) -> Floats:
        """Return what is read for the rows of a window that came before, in their order: (rows, features)."""
        key, made = self._latest.get(shard, ((-1, -1), None))
        if made is None or key != (epoch, piece.window):
            whole = gather(read, piece.rows, self.collate)
            assert piece.rows.copy is not None
            made = self._window(whole, piece.rows.copy > 0, self.plan.window_seed(epoch, shard, piece.window))
            self._latest[shard] = (epoch, piece.window), made
        return made

    def _window(self, whole: Batch, again: NDArray[np.bool_], seed: int) -> Floats:
        features = _features(whole).numpy().reshape(whole.rows, -1)
        labels = whole.target.numpy()
        classes, counts = np.unique(labels[again], return_counts=True)
        wanted = dict(zip(classes.tolist(), counts.tolist(), strict=True))
        found = features[again]
        for label, rows in self.synthesis(features[~again], labels[~again], wanted, seed).items():
            found[labels[again] == label] = rows
        return found


def _features(batch: Batch) -> Tensor:
    """Return a batch's only input; that it is the only one was seen before the first round."""
    assert isinstance(batch.inputs, tuple)
    features: Tensor = batch.inputs[0]
    return features
