"""Scripts of peers and ours, side by side: both run, and do about as well."""

import re
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from distributed import Client

from tests import pages, scripts

FOLDER = Path(__file__).parents[2] / "docs" / "coming-from"
#: page -> what its peer is imported as
PEERS = {
    "ddp": "torch.distributed",
    "lightning": "lightning",
    "skorch": "skorch",
    "xgboost": "xgboost",
    "keras": "keras",
}
#: shares of rows that both get right at least, and by which they may differ
LEAST, APART = 0.85, 0.1
SECONDS = 300
pytestmark = pytest.mark.timeout(SECONDS)
run = partial(scripts.run, Path(pages.__file__), seconds=SECONDS - 20)


def accuracies(printed: str) -> list[float]:
    """Return what a page's scripts said of themselves."""
    return [float(found) for found in re.findall(r"^accuracy ([\d.]+)$", printed, re.MULTILINE)]


def folder(path: Path) -> Path:
    """Make an empty one."""
    path.mkdir()
    return path


@pytest.mark.parametrize("name", [name for name in PEERS if name != "ddp"])
def test_ours_does_as_well_as_theirs(name: str, cluster: Client, tmp_path: Path) -> None:
    peer, here = PEERS[name], find_spec(PEERS[name]) is not None
    arguments = [f"--put=tcp://scheduler:8786->{cluster.scheduler.address}", "--set=KERAS_BACKEND=torch"]
    found = accuracies(
        run(folder(tmp_path / "here"), str(FOLDER / f"{name}.md"), *arguments, *([] if here else [f"--without={peer}"]))
    )
    assert min(found) >= LEAST
    if not here:
        pytest.skip(f"ours alone was run: {peer} is not installed")
    theirs, ours = found
    assert abs(theirs - ours) <= APART


def test_ours_does_as_well_as_ddp_on_two_ranks(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": 2,
        "GLOO_SOCKET_IFNAME": "lo",
    }  # as torchrun would

    def rank(number: int) -> str:
        arguments = [f"--set={name}={value}" for name, value in (told | {"RANK": number}).items()]
        return run(
            folder(tmp_path / f"rank{number}"),
            str(FOLDER / "ddp.md"),
            *arguments,
            *(["--without=dasktrain"] if number else []),
        )

    with ThreadPoolExecutor(2) as both:
        first, second = both.map(rank, range(2))
    theirs, ours = accuracies(first)
    assert accuracies(second) == []
    assert min(theirs, ours) >= LEAST
    assert abs(theirs - ours) <= APART


def test_every_page_has_its_peer() -> None:
    assert {page.stem for page in FOLDER.glob("*.md")} == {"index", *PEERS}
