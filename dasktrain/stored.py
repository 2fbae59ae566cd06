"""What was saved of a run, read back; Dask is not needed for it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dasktrain.checkpoint import load_state
from dasktrain.data.saved import encoding_from_json
from dasktrain.data.source import Encoding, Schema
from dasktrain.errors import BadInput, ModelError
from dasktrain.keras_module import adapted
from dasktrain.state import digest_of


@dataclass(frozen=True)
class Stored:
    """A saved result whose bytes are those that its digest names.

    Attributes
    ----------
    tensors : dict
        Parameters, buffers and the optimizer's state by name, in the digest's order.
    encoding : Encoding
    digest : str
    facts : dict
        All else that was saved.
    """

    tensors: dict[str, Tensor]
    encoding: Encoding
    digest: str
    facts: dict[str, Any]

    @classmethod
    def read(cls, url: str) -> "Stored":
        """Read a directory.

        Raises
        ------
        BadInput
            There is nothing complete there.
        """
        tensors, facts = load_state(str(url))
        try:
            tensors = dict(sorted(tensors.items(), key=_digest_order))
            digest, encoding = facts["digest"], encoding_from_json(facts["encoding"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise not_saved(url, error) from error
        if digest_of(tensors.items()) != digest:
            raise BadInput(f"{url} must hold the state its digest names, however it differs; save it again")
        return cls(tensors, encoding, digest, facts)

    def filled(self, model: Any, schema: Schema) -> nn.Module:
        """Return a module, or what a callable makes for a schema, with the saved parameters and buffers.

        Raises
        ------
        ModelError
            It has others than were saved.
        """
        module = adapted(model)
        module = module if isinstance(module, nn.Module) else _built(model, schema)
        _fill(module, self.tensors)
        return module.eval()


def not_saved(url: str, error: Exception) -> BadInput:
    """Return what to say of a saved result of which a part is missing or of another kind."""
    return BadInput(f"{url} must hold a saved result, however {type(error).__name__}: {error}; save it again")


def _built(model: Any, schema: Schema) -> nn.Module:
    module = adapted(model(schema))
    if not isinstance(module, nn.Module):
        raise ModelError(f"model(schema) must return a module, however it returned {type(module)}")
    return module


def _fill(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy saved parameters and buffers into a module of the same architecture."""
    own: dict[str, Tensor] = {f"parameters/{name}": parameter for name, parameter in module.named_parameters()}
    own |= {f"buffers/{name}": buffer for name, buffer in module.named_buffers()}
    saved = {name for name in tensors if not name.startswith("optimizer/")}
    for name in sorted(own.keys() ^ saved):
        where = "saved state" if name in saved else "module"
        raise ModelError(f"The module must have the saved tensors, however only the {where} has {name!r}")
    faults = [
        f"{name!r} is {_kind(tensor)} and was {_kind(tensors[name])}"
        for name, tensor in sorted(own.items())
        if _kind(tensor) != _kind(tensors[name])
    ]
    if faults:
        raise ModelError(f"Tensors must have their saved shape and dtype, however {'; '.join(faults[:10])}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def _digest_order(item: tuple[str, Tensor]) -> tuple[Any, ...]:
    kind, name = item[0].split("/", 1)
    return (("parameters", "buffers", "optimizer").index(kind), *name.rsplit("/", 1))
