"""Checkpoints on a real S3 server, run by this process: the contract of every store, and what S3 alone can refuse."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.config import conf
from moto.server import ThreadedMotoServer

from dasktrain.checkpoint import Store
from dasktrain.errors import BadInput
from tests.test_checkpoint_store import Contract, newest, write

KEYS = {"key": "test", "secret": "test"}


@pytest.fixture(scope="session")
def settings() -> Iterator[dict[str, Any]]:
    """Run a server and return how s3fs reaches it, but for the keys."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # Connections that stay open would keep a thread of the server's each.
    settings = {
        "endpoint_url": f"http://{host}:{port}",
        "config_kwargs": {"connector_args": {"force_close": True, "keepalive_timeout": None}},
    }
    fsspec.filesystem("s3", **settings, **KEYS).mkdir("bucket")  # also starts fsspec's own thread, before any test
    yield settings
    server.stop()


@pytest.fixture(autouse=True)
def configured(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let s3:// URLs lead to the server, and no credentials or addresses of the machine's be found."""
    monkeypatch.setitem(conf, "s3", settings | KEYS)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)


class TestOnS3(Contract):
    @pytest.fixture
    def url(self) -> Iterator[str]:
        """A prefix that does not exist yet."""
        yield "s3://bucket/deep/store"
        fs = fsspec.filesystem("s3")
        fs.invalidate_cache()
        if fs.exists("bucket/deep"):
            fs.rm("bucket/deep", recursive=True)


def test_bucket_itself_holds_checkpoints() -> None:
    fs = fsspec.filesystem("s3")
    fs.mkdir("other")
    store = Store("s3://other")
    store.check()
    write(store, 1)
    write(store, 2)
    store.prune(1)
    assert (store.numbers(), newest(store)) == ([2], 2)
    fs.rm("other", recursive=True)


def test_bucket_that_does_not_exist_is_named_and_not_made() -> None:
    with pytest.raises(
        BadInput, match=r"written to s3://mistyped/x, however FileNotFoundError: there is no bucket mist"
    ):
        Store("s3://mistyped/x").check()
    assert not fsspec.filesystem("s3", skip_instance_cache=True).exists("mistyped")


def test_missing_credentials_are_named(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(conf, "s3", settings)
    with pytest.raises(BadInput, match=re.escape("however NoCredentialsError: Unable to locate credentials; ")):
        Store("s3://bucket/x").check()


def test_server_that_does_not_answer_is_named(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 0}}}
    monkeypatch.setitem(conf, "s3", KEYS | gone)
    with pytest.raises(BadInput, match=r"http://127\.0\.0\.1:9"):
        Store("s3://bucket/x").check()
