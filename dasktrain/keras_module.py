"""Keras models and losses, of the torch backend, as torch modules and losses."""

import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dasktrain.errors import ModelError

#: what Keras calls the state of a generator of random numbers
SEED = "seed_generator_state"
LARGEST_SEED = 2**31


class KerasModule(nn.Module):
    """A built Keras 3 model of the torch backend as a torch module.

    What Keras trains are its parameters; what it only keeps, such as the moving means of BatchNormalization, are its
    buffers. Layers that draw, such as Dropout, draw from torch's generator, which a run seeds for every shard and
    round. A :class:`dasktrain.Trainer` makes one of a Keras model that it is given.

    Parameters
    ----------
    model : keras.Model

    Raises
    ------
    ModelError
        It has another backend, or no weights yet.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        _check(model)
        self._held = (model,)  # in a tuple: as a part of this module it would have every weight twice
        for place, variable in enumerate(model.trainable_weights):  # paths count the models of a process
            self.register_parameter(f"{place}_{variable.name}", variable.value)
        self._kept = {f"kept_{place}_{each.name}": each for place, each in enumerate(model.non_trainable_weights)}
        for name, variable in self._kept.items():
            self.register_buffer(name, variable.value.detach())
        self._seeds = [variable for variable in model.variables if variable.name == SEED]
        self._takes = len(model.inputs) if getattr(model, "inputs", None) else None

    @property
    def keras_model(self) -> Any:
        """The Keras model with this module's values: to ``predict``, or to ``save("model.keras")``."""
        self._lend()
        return self._held[0]

    def forward(self, *inputs: Tensor) -> Any:
        """Call the model with inputs in order, as many as it takes."""
        given = list(inputs[: self._takes])
        self._lend()
        if self.training:
            for seed in self._seeds:
                seed.assign(torch.randint(LARGEST_SEED, (2,)))
        return self._held[0](given[0] if len(given) == 1 else given, training=self.training)

    def _lend(self) -> None:
        """Have variables lie where the buffers do: Keras writes to them in place."""
        for name, variable in self._kept.items():
            variable.value.data = self.get_buffer(name)

    def __reduce__(self) -> tuple[Any, ...]:
        import keras

        model = self.keras_model
        parts = {type(part) for part in model._flatten_layers()}  # Keras has no public name for all of them
        kinds = {part.__name__: part for part in parts if _is_own(part)}
        config = keras.saving.serialize_keras_object(model)
        weights = [variable.value.detach().cpu().numpy() for variable in model.weights]
        return _rebuilt, (_TorchBackend(), config, kinds, weights, self.training)

    def __deepcopy__(self, memo: dict[int, Any]) -> "KerasModule":
        build, arguments = self.__reduce__()
        made: KerasModule = build(*arguments)
        memo.update({id(old): new for old, new in zip(self.parameters(), made.parameters(), strict=True)})
        memo[id(self)] = made
        return made


class KerasLoss:
    """A loss of Keras as one of torch: ``loss(output, target)``, one value a row.

    Parameters
    ----------
    loss : keras.losses.Loss
        Its reduction is not used: what is summed and what it is divided by is the strategy's.
    """

    def __init__(self, loss: Any) -> None:
        self._loss = loss

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return one value a row."""
        values: Tensor = self._loss.call(target, output)
        return values

    def __reduce__(self) -> tuple[Any, ...]:
        import keras

        own = type(self._loss)
        kinds = {own.__name__: own} if _is_own(own) else {}
        return _rebuilt_loss, (_TorchBackend(), keras.saving.serialize_keras_object(self._loss), kinds)


def adapted(model: Any) -> Any:
    """Return a module in place of a Keras model; anything else as it is."""
    keras = sys.modules.get("keras")
    return KerasModule(model) if keras is not None and isinstance(model, keras.Model) else model


def adapted_loss(loss: Any) -> Any:
    """Return a loss of torch in place of each that is Keras's, also in a mapping; anything else as it is."""
    if isinstance(loss, Mapping):
        return {name: adapted_loss(each) for name, each in loss.items()}
    keras = sys.modules.get("keras")
    return KerasLoss(loss) if keras is not None and isinstance(loss, keras.losses.Loss) else loss


def _check(model: Any) -> None:
    import keras

    if (backend := keras.config.backend()) != "torch":
        raise ModelError(
            f"A Keras model must have the torch backend, however it has {backend}; set KERAS_BACKEND=torch in the "
            "environment before Keras is imported, here and on workers"
        )
    if not model.built or not model.weights:
        raise ModelError(
            f"A Keras model must have its weights, however {model.name!r} is not built; begin it with keras.Input, or "
            "call model.build(shape)"
        )
    if model.losses:
        raise ModelError(
            f"A Keras model must have no losses of its own, however {model.name!r} has {len(model.losses)}; leave out "
            "regularizers and add_loss, and use the optimizer's weight_decay"
        )


def _is_own(kind: type) -> bool:
    """Return whether a class is the user's."""
    return kind.__module__.split(".")[0] not in ("keras", "torch")


class _TorchBackend:
    """What chooses the backend where it is unpickled, before what comes next there imports Keras."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _chosen, ()


def _chosen() -> _TorchBackend:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return _TorchBackend()


def _rebuilt(
    backend: _TorchBackend, config: Any, kinds: Mapping[str, type], weights: list[np.ndarray], training: bool
) -> KerasModule:
    import keras

    model = keras.saving.deserialize_keras_object(config, custom_objects=dict(kinds), safe_mode=False)
    model.set_weights(weights)
    module = KerasModule(model)
    module.train(training)
    return module


def _rebuilt_loss(backend: _TorchBackend, config: Any, kinds: Mapping[str, type]) -> KerasLoss:
    import keras

    return KerasLoss(keras.saving.deserialize_keras_object(config, custom_objects=dict(kinds), safe_mode=False))
