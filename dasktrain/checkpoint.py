"""States as files: safetensors for tensors, JSON for the rest, nothing that is unpickled."""

import hashlib
import json
import os
import posixpath
import re
import warnings
from collections.abc import Mapping
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load, save
from torch import Tensor

from dasktrain.errors import BadInput

MANIFEST = "dasktrain.json"
FORMAT = 1
CHECKPOINT = "round-{:012d}"
TEMPORARY = ".tmp"
PROBE = ".dasktrain-probe"


def save_state(url: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a directory so that a reader sees the old state or the new one, never a half.

    Tensors go to a file named by their digest; the manifest that names it, sealed by a digest too, is replaced last.

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
    manifest["seal"] = _seal(manifest)
    _make_directory(fs, root)
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
        whole = manifest["format"] == FORMAT and manifest["seal"] == _seal(manifest)
        payload = fs.cat_file(f"{root}/{_file_of(manifest)}")
        whole = whole and hashlib.sha256(payload).hexdigest() == manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(
            f"A saved result must be at {url}, however it cannot be read ({type(error).__name__}: {error})"
        ) from error
    if not whole:
        raise BadInput(
            f"{url} must hold the bytes that were saved, however its digest or format differs; save it again"
        )
    return _tensors(url, payload), manifest


def _file_of(manifest: Mapping[str, Any]) -> str:
    """Return the name of the file of tensors: one beside the manifest, and not any that a manifest may name."""
    name = manifest["tensors"]
    if not re.fullmatch(r"state-[0-9a-f]{16}\.safetensors", name):
        raise ValueError(f"its tensors are in {name!r}")
    return str(name)


def _tensors(url: str, payload: bytes) -> dict[str, Tensor]:
    try:
        return dict(load(payload))
    except Exception as error:  # of safetensors or of torch, as the case may be
        raise BadInput(
            f"The tensors at {url} must be safetensors, however {type(error).__name__}: {error}; save it again"
        ) from error


class Store:
    """Numbered checkpoints under one URL, each a directory that `save_state` wrote. One writer at a time.

    Parameters
    ----------
    url
        Directory of the checkpoints, any fsspec URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._written: Any = None

    def check(self) -> None:
        """Write a small file and delete it again, with the directories it needed.

        Raises
        ------
        BadInput
            It cannot be written: protocol, package, credentials or rights are missing, or a file is in the way.
        """
        fs, root = self._open()
        try:
            _probe(fs, root)
        except Exception as error:  # each backend has errors of its own
            raise BadInput(
                f"Checkpoints must be written to {self.url}, however {type(error).__name__}: {error}; "
                "choose a directory that this process may write to, and give it the credentials for that"
            ) from error

    def write(self, number: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write a checkpoint whole or not at all; one of the same number is replaced."""
        save_state(self._at(number), tensors, facts)
        self._written = self._look(number)

    def newest(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read the newest checkpoint that is complete, and warn of newer ones that are not.

        Raises
        ------
        BadInput
            None is complete.
        """
        for number in sorted(self._directories(), reverse=True):
            try:
                return load_state(self._at(number))
            except BadInput as error:
                warnings.warn(f"The checkpoint after {number} rounds is passed over: {error}", stacklevel=2)
        raise BadInput(f"A complete checkpoint must be at {self.url}, however there is none; look for the right URL")

    def numbers(self) -> list[int]:
        """Return the numbers that have a manifest, ascending; tensors are not read."""
        fs, _ = self._open()
        return [number for number, path in sorted(self._directories().items()) if fs.exists(f"{path}/{MANIFEST}")]

    def prune(self, keep: int) -> None:
        """Delete all but the newest, and what killed writers left behind.

        Parameters
        ----------
        keep
            How many to keep. If all of these are damaged, the newest complete one stays as well.
        """
        if keep < 1:
            raise BadInput(f"keep must be at least 1, however it is {keep}")
        fs, _ = self._open()
        numbers = self.numbers()
        kept = {*numbers[-keep:], next(filter(self._is_complete, reversed(numbers)), None)}
        for number, path in sorted(self._directories().items()):
            if number in kept or number > max(numbers, default=-1):
                for left in fs.ls(path, detail=False):
                    if left.endswith(TEMPORARY):
                        fs.rm(left)
            else:
                if number in numbers:  # first, so that nobody takes a half for a whole
                    fs.rm(f"{path}/{MANIFEST}")
                if fs.exists(path):  # an object store has no empty directories
                    fs.rm(path, recursive=True)

    def _at(self, number: int) -> str:
        return posixpath.join(self.url, CHECKPOINT.format(number))

    def _open(self) -> tuple[Any, str]:
        """Return file system and path, with nothing remembered of what others may have changed."""
        try:
            fs, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise BadInput(
                f"Checkpoints must be at a URL that fsspec can open, however {self.url}: {error}; "
                "install its package or choose another"
            ) from error
        fs.invalidate_cache()
        return fs, root

    def _directories(self) -> dict[int, str]:
        fs, root = self._open()
        paths = fs.ls(root, detail=False) if fs.exists(root) else []
        found = ((re.fullmatch(r"round-(\d{12,})", posixpath.basename(path)), path) for path in paths)
        return {int(match[1]): path for match, path in found if match}

    def _look(self, number: int) -> Any:
        """Return what can be told of a checkpoint without reading it: sizes and times, or tags."""
        fs, root = self._open()
        return fs.ls(f"{root}/{CHECKPOINT.format(number)}", detail=True)

    def _is_complete(self, number: int) -> bool:
        if self._look(number) == self._written:  # by this store, and not touched since
            return True
        try:
            load_state(self._at(number))
        except BadInput:
            return False
        return True


def _seal(manifest: Mapping[str, Any]) -> str:
    """Return the digest of what a manifest says."""
    said = {name: value for name, value in manifest.items() if name != "seal"}
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _probe(fs: Any, root: str) -> None:
    """Raise whatever keeps a file from being written to a directory."""
    if fs.isfile(root):
        raise NotADirectoryError(f"{root} is a file")
    path, missing = root, []
    while path and not fs.exists(path):
        missing.append(path)
        path = posixpath.dirname(path)
    if missing and "/" not in missing[-1]:  # nor is it made: whoever mistypes a bucket wants none
        raise FileNotFoundError(f"there is no bucket {missing[-1]}")
    try:
        fs.makedirs(root, exist_ok=True)
        fs.pipe_file(f"{root}/{PROBE}", b"dasktrain")
        fs.rm(f"{root}/{PROBE}")
    finally:
        for path in filter(fs.exists, missing):
            fs.rmdir(path)


def _make_directory(fs: Any, path: str) -> None:
    """Make a directory that outlives a power cut, as the files in it do."""
    if not isinstance(fs, LocalFileSystem):
        fs.makedirs(path, exist_ok=True)
    elif not os.path.isdir(path):
        parent = os.path.dirname(path)
        _make_directory(fs, parent)
        os.mkdir(path)
        _sync(parent)


def _replace(fs: Any, path: str, payload: bytes) -> None:
    """Write a file whole or not at all; object stores do so by themselves."""
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, payload)
        return
    temporary = f"{path}.{os.getpid()}{TEMPORARY}"
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    _sync(os.path.dirname(path))


def _sync(path: str) -> None:
    """Have a directory's entries on the disk."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
