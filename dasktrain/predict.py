"""A trained module over Dask collections, lazily: Dask in, Dask out, index kept."""

from functools import lru_cache
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
from torch import nn

from dasktrain.data.arrays import as_features
from dasktrain.data.encodings import ArrayEncoding, LabelledEncoding, TableEncoding
from dasktrain.data.source import Encoding
from dasktrain.data.table import from_pandas
from dasktrain.data.target import Labels
from dasktrain.errors import BadInput
from dasktrain.predictor import Kind, Predictor, check_kind
from dasktrain.shipping import pack, run_packed


def predict(module: nn.Module, encoding: Encoding, data: Any, kind: Kind) -> Any:
    """Return predictions for every row of `data`, without computing them.

    Parameters
    ----------
    module, encoding
        Of a training run.
    data
        Dask or pandas DataFrame for a Table's, Dask or NumPy array for Arrays' encoding. For a Text's a DataFrame, a
        Series, a Dask Bag or a list of texts.
    kind
        ``"prediction"``: labels or numbers. ``"probability"``: one column a class, by softmax, or by the
        logistic function if the module has one output, or if a row may have several labels.

    Returns
    -------
    dask.dataframe.Series, dask.dataframe.DataFrame, dask.array.Array, dask.bag.Bag or list
        A Series or DataFrame with the index and partitions of `data`, an array with its blocks, or a Bag. A list for a
        list, at once.
    """
    check_kind(encoding, kind)
    # One value in the graph: Dask moves it to each worker once, however many partitions there are.
    shipped = dask.delayed(pack(Predictor, module, encoding, kind), pure=True)
    if isinstance(encoding, ArrayEncoding):
        if isinstance(data, pd.DataFrame | dd.DataFrame):
            raise BadInput(f"This model predicts for Dask and NumPy arrays, however it was given {type(data)}")
        return _over_array(shipped, encoding, data, kind)
    assert isinstance(encoding, TableEncoding | LabelledEncoding)
    texts = isinstance(encoding, LabelledEncoding)
    if texts and isinstance(data, list | tuple):
        return np.asarray(Predictor(module, encoding, kind)(list(data))).tolist()
    if texts and isinstance(data, db.Bag):
        return db.map_partitions(run_packed, pack(_predict_list), shipped, data)
    if isinstance(data, pd.DataFrame) or (texts and isinstance(data, pd.Series)):
        data = from_pandas(data)
    if not isinstance(data, dd.DataFrame) and not (texts and isinstance(data, dd.Series)):
        kinds = "Bags, DataFrames and Series of texts" if texts else "Dask and pandas DataFrames"
        raise BadInput(f"This model predicts for {kinds}, however it was given {type(data)}")
    encoding.check(data._meta)
    with dask.config.set({"optimization.tune.active": False}):
        return dd.map_partitions(
            run_packed,
            pack(_predict_frame),
            shipped,
            data,
            meta=_frame_meta(encoding, kind, data),
            enforce_metadata=False,
        )


@lru_cache(maxsize=4)
def _unpacked(shipped: bytes) -> Predictor:
    """Unpack a model once a process."""
    predictor: Predictor = run_packed(shipped)
    return predictor


def _predict_frame(shipped: bytes, partition: pd.DataFrame) -> Any:
    predictor = _unpacked(shipped)
    return _framed(predictor.encoding, predictor(partition), partition.index)


def _predict_list(shipped: bytes, partition: Any) -> list[Any]:
    found: list[Any] = np.asarray(_unpacked(shipped)(list(partition))).tolist()
    return found


def _framed(encoding: Encoding, values: Any, index: Any) -> Any:
    target = encoding.target
    assert target is not None
    if np.ndim(values) > 1:
        names = target.values if isinstance(target, Labels) else target.names
        return pd.DataFrame(values, index=index, columns=list(names))
    name = target.name if isinstance(target, Labels) else target.names[0]
    return pd.Series(values, index=index, name=name, dtype=values.dtype)  # or pandas would guess again


def _frame_meta(encoding: Encoding, kind: Kind, data: dd.DataFrame) -> Any:
    """Return an empty prediction, with the types a full one has."""
    return _framed(encoding, _no_values(encoding, kind), data._meta.index[:0])


def _no_values(encoding: Encoding, kind: Kind) -> Any:
    assert encoding.target is not None
    nothing = np.empty((0, encoding.target.num_outputs), dtype=np.float32)
    return nothing if kind == "probability" else encoding.target.decode(nothing)


def _predict_block(shipped: bytes, block: Any) -> Any:
    return np.asarray(_unpacked(shipped)(block))


def _over_array(shipped: Any, encoding: ArrayEncoding, data: Any, kind: Kind) -> da.Array:
    data = as_features(data)
    meta = np.asarray(_no_values(encoding, kind))
    run = dask.delayed(run_packed, name="dasktrain-predict", pure=True)
    blocks = [
        da.from_delayed(run(pack(_predict_block), shipped, block), (rows, *meta.shape[1:]), meta=meta)
        for block, rows in zip(data.to_delayed().ravel(), data.chunks[0], strict=True)
    ]
    return da.concatenate(blocks, allow_unknown_chunksizes=True)
