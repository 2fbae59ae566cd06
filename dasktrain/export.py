"""A trained module in formats that others run."""

import io
import json
import warnings
from importlib.util import find_spec
from typing import Any

import fsspec
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from dasktrain.data.block import Gathered
from dasktrain.data.encodings import ArrayEncoding, LabelledEncoding, TableEncoding
from dasktrain.data.ragged import Ragged
from dasktrain.data.source import Encoding, made_up_batch
from dasktrain.errors import BadInput
from dasktrain.keras_module import KerasModule

#: rows of the example that is traced: more than one, or their number would be taken for fixed
ROWS = 4
SUFFIXES = (".pt2", ".onnx", ".safetensors")


def export(module: nn.Module, encoding: Encoding, digest: str, url: str) -> None:
    """Write a trained module to a file.

    =================  =============================================================================================
    ``.pt2``           torch.export's program, for any number of rows: ``torch.export.load(path).module()(*inputs)``
    ``.onnx``          the same for ONNX runtimes; ``pip install 'dasktrain[onnx]'``
    ``.safetensors``   parameters and buffers by name; metadata have the digest, and the encoding as JSON
    =================  =============================================================================================

    The first two take what the encoding makes of rows, and return what the module does.

    Parameters
    ----------
    url
        Path or any fsspec URL, with one of these suffixes.

    Raises
    ------
    BadInput
        Another suffix, no ONNX, a module that cannot be traced, or inputs of which no example can be made.
    """
    if not str(url).endswith(SUFFIXES):
        raise BadInput(f"A model must be exported to one of {SUFFIXES}, however it is to {url}")
    if str(url).endswith(".safetensors"):
        payload = _weights(module, encoding, digest)
    else:
        payload = _program(module.eval(), encoding, onnx=str(url).endswith(".onnx"))
    with fsspec.open(str(url), "wb") as file:
        file.write(payload)


def _weights(module: nn.Module, encoding: Encoding, digest: str) -> bytes:
    named = dict(module.named_parameters()) | dict(module.named_buffers())
    tensors = {name: tensor.detach().contiguous() for name, tensor in named.items()}
    payload: bytes = safetensors.torch.save(tensors, {"digest": digest, "encoding": json.dumps(encoding.to_json())})
    return payload


def _program(module: nn.Module, encoding: Encoding, onnx: bool) -> bytes:
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if onnx and missing:
        raise BadInput(
            f"{' and '.join(missing)} must be installed to export to ONNX, however they are not; "
            "pip install 'dasktrain[onnx]'"
        )
    if isinstance(module, KerasModule):
        raise BadInput(
            "A module must be of torch alone to be traced, however this one is a Keras model; use "
            'result.model.keras_model.save("model.keras"), or export to .safetensors'
        )
    args, named, shapes = _example(encoding)
    try:
        dims = shapes.dynamic_shapes(module, args, named)  # type: ignore[no-untyped-call]
        program: ExportedProgram = torch.export.export(module, args, named, dynamic_shapes=dims)
    except Exception as error:
        raise BadInput(
            f"A module must be made of what torch.export can trace, however {type(error).__name__}: {error}; export "
            "to .safetensors, or save() it"
        ) from error
    if onnx:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the exporter itself should not use any more
            found = torch.onnx.export(program, dynamo=True, verbose=False)
        assert found is not None
        payload: bytes = found.model_proto.SerializeToString()
        return payload
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _example(encoding: Encoding) -> tuple[tuple[Tensor, ...], dict[str, Tensor], ShapesCollection]:
    """Return inputs in order, those by name, and which of their axes may be of any length."""
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    if isinstance(encoding, LabelledEncoding):
        lengths = torch.full((ROWS,), max(2, encoding.context // 2))
        tokens = Ragged(torch.zeros(int(lengths.sum()), dtype=torch.int64).numpy(), _offsets(lengths))
        batch = encoding.collate(Gathered((tokens,), None, None, ROWS))
        assert isinstance(batch.inputs, dict)
        for part in batch.inputs.values():
            shapes[part] = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
        return (), batch.inputs, shapes
    if not isinstance(encoding, TableEncoding | ArrayEncoding):
        raise BadInput(
            f"A model must be of tables, arrays or texts with labels to be exported so, however it is of "
            f"{type(encoding).__name__}; export to .safetensors"
        )
    inputs = made_up_batch(encoding.schema, encoding.target, ROWS, weighted=False).inputs
    assert isinstance(inputs, tuple)
    for part in inputs:
        shapes[part] = {0: Dim.DYNAMIC}
    return inputs, {}, shapes


def _offsets(lengths: Tensor) -> Any:
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).numpy()
