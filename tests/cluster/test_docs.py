"""The page of clusters: each kind is started, by the real thing or by what stands in for it."""

import os
from pathlib import Path

import pytest
from distributed import Client

from tests import pages, scripts

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "clusters.md"
STANDINS = ROOT / "tests" / "standins"
SCHEDULER = "tcp://scheduler:8786"
#: what is otherwise on this machine than on the page's
PUT = {"CORES = 8": "CORES = 1", '"ib0"': '"lo"', "32GiB": "1GiB", "maximum_jobs=4": "maximum_jobs=1"}


@pytest.mark.timeout(300)
def test_every_kind_of_cluster_gives_the_digest_of_the_page(clean: Client, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    put = PUT | {SCHEDULER: clean.scheduler.address}
    printed = scripts.run(
        Path(pages.__file__),
        folder,
        str(PAGE),
        *(f"--put={old}->{new}" for old, new in put.items()),
        f"--path={STANDINS}",
        f"--set=PATH={STANDINS / 'bin'}:{os.environ['PATH']}",
        seconds=280,
    )
    assert printed.count("epoch 2  round 6/6") == 1 + len(KINDS)
    assert "fit to train on" in printed


#: blocks that train on another cluster
KINDS = [block for block in pages.blocks(PAGE, "python") if "train(client)" in block.text and "def " not in block.text]


def test_page_has_a_block_for_each_kind() -> None:
    assert len(KINDS) == 7
    text = "".join(block.text for block in KINDS)
    for kind in ("LocalCluster", "processes=False", "KubeCluster", "SLURMCluster", "LocalCUDACluster", "Gateway"):
        assert kind in text
    assert all(old in text for old in (SCHEDULER, *PUT))
