"""A trained state as files: safetensors for tensors, JSON for the rest, nothing that is unpickled."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load, save
from torch import Tensor

from dasktrain.errors import BadInput

MANIFEST = "dasktrain.json"
FORMAT = 1


def save_state(url: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a directory so that a reader sees the old state or the new one, never a half.

    Tensors go to a file named by their digest; the manifest that names it is replaced last.

    Parameters
    ----------
    url
        Directory, any fsspec URL.
    tensors
        Name -> tensor.
    facts
        Plain values for the manifest.
    """
    fs, root = fsspec.core.url_to_fs(url)
    payload = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    digest = hashlib.sha256(payload).hexdigest()
    name = f"state-{digest[:16]}.safetensors"
    manifest = {"format": FORMAT, "tensors": name, "sha256": digest, **facts}
    fs.makedirs(root, exist_ok=True)
    _replace(fs, f"{root}/{name}", payload)
    _replace(fs, f"{root}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
    for path in fs.ls(root, detail=False):
        old = path.rsplit("/", 1)[-1]
        if old.startswith("state-") and old.endswith(".safetensors") and old != name:
            fs.rm(path)


def load_state(url: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote.

    Raises
    ------
    BadInput
        There is no complete state at `url`, or its bytes are not those that were written.
    """
    fs, root = fsspec.core.url_to_fs(url)
    try:
        manifest = json.loads(fs.cat_file(f"{root}/{MANIFEST}"))
        payload = fs.cat_file(f"{root}/{manifest['tensors']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"A saved result must be at {url}, however it cannot be read ({type(error).__name__}: {error})"
        ) from error
    if manifest.get("format") != FORMAT or hashlib.sha256(payload).hexdigest() != manifest.get("sha256"):
        raise BadInput(
            f"{url} must hold the bytes that were saved, however its digest or format differs; save it again"
        )
    return load(payload), manifest


def _replace(fs: Any, path: str, payload: bytes) -> None:
    """Write a file whole or not at all; object stores do so by themselves."""
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, payload)
        return
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
