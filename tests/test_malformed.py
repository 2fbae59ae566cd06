"""Whatever reads bytes it did not write: errors of ours, at once, for no more memory than came, and nothing runs."""

import json
import os
import pickle
import socket
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dasktrain.checkpoint import MANIFEST, _seal, load_state, save_state
from dasktrain.errors import BadInput, WireError
from dasktrain.trees import unflatten
from dasktrain.wire.channel import MAGIC, MOST_BYTES, MOST_FRAMES, MOST_HEADER, PREFIX, Channel
from tests.malformed import files
from tests.malformed.attempts import READERS, outcome
from tests.malformed.watch import Canary, executions

#: far more than any reading takes; far less than a hang
DEADLINE = timedelta(seconds=5)
#: of text as YAML, which takes its time
FEWER = {"recipe": 20}


@pytest.fixture(autouse=True, scope="module")
def no_files() -> Iterator[None]:
    yield
    files.cleaned()


@pytest.mark.parametrize("reader", READERS)
def test_nonsense_is_an_error_of_ours(reader: str) -> None:
    @settings(
        max_examples=FEWER.get(reader, 400), deadline=DEADLINE, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.randoms(use_true_random=True))
    def check(random: Random) -> None:
        outcome(reader, random)

    outcome(reader, Random(0))  # makes what is valid, which takes longer
    check()


def test_what_runs_is_seen() -> None:
    """What the test above relies on."""
    with executions() as ran:
        pickle.loads(pickle.dumps(Canary()))
    assert "putenv" in ran[0]
    os.unsetenv("DASKTRAIN_TEST_CANARY")


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "announced",
    [
        PREFIX.pack(MAGIC, 2, 1) + MOST_BYTES.to_bytes(8, "little") + b"{}" + bytes(1000),
        PREFIX.pack(MAGIC, 2, MOST_FRAMES) + (MOST_BYTES // MOST_FRAMES).to_bytes(8, "little") * MOST_FRAMES + b"{}",
        PREFIX.pack(MAGIC, MOST_HEADER, 0) + b"{",
    ],
    ids=["frame", "frames", "header"],
)
def test_what_is_announced_takes_no_memory_before_it_comes(announced: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs, closing(Channel(ours)) as channel:
        theirs.sendall(announced)
        theirs.shutdown(socket.SHUT_WR)
        tracemalloc.start()
        try:
            with pytest.raises(ConnectionResetError):
                channel.receive(10)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 4 << 20


def test_deeply_nested_header_is_refused() -> None:
    text = b'{"x": ' + b"[" * 100_000
    ours, theirs = socket.socketpair()
    with theirs, closing(Channel(ours)) as channel:
        theirs.sendall(PREFIX.pack(MAGIC, len(text), 0) + text)
        with pytest.raises(WireError, match="JSON"):
            channel.receive(10)


# -- files ------------------------------------------------------------------------------------------------------------


def sealed(folder: Path, **facts: object) -> str:
    """Save a state, then have its manifest say something else under a seal of its own."""
    save_state(str(folder), {"x": torch.ones(2)}, {})
    manifest = json.loads((folder / MANIFEST).read_text()) | facts
    (folder / MANIFEST).write_text(json.dumps(manifest | {"seal": _seal(manifest)}))
    return str(folder)


@pytest.mark.parametrize("name", ["/dev/zero", "../secret", "../../../../../../../../dev/zero", "", None, 1])
def test_manifest_names_no_file_but_its_own(tmp_path: Path, name: object) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    with pytest.raises(BadInput, match="cannot be read"):
        load_state(sealed(tmp_path / "state", tensors=name))


@pytest.mark.parametrize("dtype", ["O", "V8", "S8", "i4,O"])
def test_saved_arrays_hold_nothing_but_numbers(dtype: str) -> None:
    """Bytes that NumPy took for objects would be addresses."""
    with pytest.raises((ValueError, TypeError)):
        unflatten({"array": [dtype, [1], "x"]}, {"x": torch.zeros(8, dtype=torch.uint8)})
    with pytest.raises((ValueError, TypeError)):
        unflatten({"number": [dtype, "00" * 8]}, {})


def test_saved_dtype_is_one_and_not_any_name_in_torch() -> None:
    with pytest.raises(ValueError, match="no dtype"):
        unflatten({"dtype": "load"}, {})
