"""What all estimators share: parameters as scikit-learn has them, where to train, and what a fit leaves."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from typing import Any, Self

from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state

from dasktrain.balancing import Balance
from dasktrain.data.source import Source
from dasktrain.errors import BadInput
from dasktrain.observe import History, Observer
from dasktrain.observers.progress import Progress
from dasktrain.result import Result
from dasktrain.trainer import Trainer, current_client
from dasktrain.wire.local import LocalWire


class NotFitted(BadInput, NotFittedError):  # type: ignore[misc]
    """An estimator was asked for what only `fit` finds out."""


class Estimator(BaseEstimator):  # type: ignore[misc]
    """What estimators share.

    Attributes
    ----------
    result_ : Result
        Of the latest fit.
    history_ : History
        Of the latest fit, one dict an epoch.
    loss_curve_ : list of float
        The loss of every epoch of all fits that went on from each other.
    n_iter_ : int
        How many epochs these were.
    """

    # Parameters that every estimator has.
    batch_size: int
    epochs: int | None
    max_rounds: int | None
    shards: int | None
    random_state: Any
    client: Any
    observers: Sequence[Observer] | None
    verbose: bool

    def set_params(self, **params: Any) -> Self:
        """Change parameters; those of a parameter that is an estimator itself behind two underscores."""
        known = self.get_params(deep=False)
        for name in params:
            if name.partition("__")[0] not in known:
                raise BadInput(f"A parameter must be one of {sorted(known)}, however it is {name!r}")
        found: Self = super().set_params(**params)
        return found

    def __sklearn_clone__(self) -> Self:
        params = self.get_params(deep=False)
        client = params.pop("client")  # is where to train, and has no copies
        return type(self)(**{name: clone(value, safe=False) for name, value in params.items()}, client=client)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return state | {"client": None}

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_result")

    @property
    def result_(self) -> Result:
        """What the latest fit left."""
        if not self.__sklearn_is_fitted__():
            raise NotFitted(f"A {type(self).__name__} must be fitted first, however it is not; call fit")
        return self._result

    @property
    def history_(self) -> History:
        """One dict an epoch."""
        return self.result_.history

    @property
    def n_iter_(self) -> int:
        """Epochs of all fits that went on from each other."""
        return len(self.loss_curve_)

    @property
    def loss_curve_(self) -> list[float]:
        """The loss of each of these epochs."""
        return [*self._earlier, *(record["loss"] for record in self.history_)]

    def _train(
        self,
        trainer: Trainer,
        data: Source,
        validation: Source | None,
        in_memory: bool,
        going_on: bool = False,
        epochs: int | None = None,
    ) -> Self:
        """Fit a trainer, and keep what it leaves; `epochs` None: as many as the parameter says."""
        earlier = self.loss_curve_ if going_on else []
        self._result = trainer.fit(
            data,
            validation,
            epochs=self.epochs if epochs is None else epochs,
            max_rounds=self.max_rounds,
            batch_size=self.batch_size,
            shards=self.shards,
            seed=self._seed() + len(earlier),  # another for rows that come again, or dropout would repeat itself
            client=self._where(in_memory),
            balance=self._balance(),
        )
        self._earlier = earlier
        return self

    def _balance(self) -> Balance | None:
        """Return what is done about labels that are rare."""
        return None

    def _seed(self) -> int:
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _where(self, in_memory: bool) -> Any:
        """Return the client there is; data in memory need none, and are trained on in this process."""
        found = self.client or current_client()
        return LocalWire() if found is None and in_memory else found

    def _there(self) -> AbstractContextManager[Any]:
        """Have Dask compute where `fit` trained, if that was on a cluster."""
        found: AbstractContextManager[Any] = getattr(self.client, "as_current", nullcontext)()
        return found

    def _observers(self) -> list[Observer]:
        return [*([Progress()] if self.verbose else []), *(self.observers or ())]
