"""What can be told of the containers without an engine; docker/test.py starts them."""

import importlib.util
import os
import re
import shlex
import shutil
import ssl
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
import yaml
from dask.utils import parse_bytes
from distributed.cli import dask_scheduler, dask_worker
from distributed.security import Security

import dasktrain as dt
from dasktrain.commands import fit as dasktrain_fit
from dasktrain.jobs import read_job

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DOCKER / "docker-compose.yml").read_text())
TLS = yaml.safe_load((DOCKER / "docker-compose.tls.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ROLES = ("scheduler", "worker", "trainer")


def interpolated(text: str) -> str:
    """Put defaults in the place of Compose's variables."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def parsed(words: list[str]) -> dict[str, Any]:
    """Parse a command as its program will; Dask's take options that they do not know for arguments, we do not."""
    programs = {
        ("dask", "scheduler"): dask_scheduler.main,
        ("dask", "worker"): dask_worker.main,
        ("dasktrain", "fit"): dasktrain_fit,
    }
    found = programs[words[0], words[1]].make_context(words[1], words[2:]).params
    arguments = [found.get("scheduler") or "", *found.get("preload_argv", ())]
    assert not [argument for argument in arguments if argument.startswith("-")]
    return found


def options(service: str) -> dict[str, Any]:
    """Parse a service's command."""
    words = shlex.split(interpolated(SERVICES[service]["command"]))
    return parsed(shlex.split(words[2].rpartition("exec ")[2]) if words[:2] == ["sh", "-c"] else words)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docker_{name}", DOCKER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- the image ----------------------------------------------------------------------------------------------------


def copied() -> list[str]:
    """Return what the Dockerfile copies from the repository."""
    return [source for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for source in line.split()[:-1]]


def test_the_engine_is_sent_what_the_image_is_made_of_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied())
    assert all((ROOT / source).exists() for source in copied())


def test_the_image_has_what_the_packages_metadata_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= set(copied())


def test_the_image_runs_as_a_user_of_no_rights() -> None:
    assert DOCKERFILE.rstrip().endswith("\nUSER dask")


def test_the_image_has_the_constrained_versions() -> None:
    installs = re.findall(r"pip install (.*?)(?:&&|\n\n)", DOCKERFILE, re.DOTALL)
    assert all("--constraint constraints.txt" in install or "--no-deps" in install for install in installs)
    assert len(installs) == 2


def test_no_address_of_an_index_is_built_in() -> None:
    for file in DOCKER.rglob("*"):
        if file.is_file() and file.suffix != ".pyc":
            assert not re.search(r"https?://(?!localhost|helm\.dask\.org)", file.read_text()), file


@pytest.mark.parametrize("script", ["certificates.sh", "kubernetes/dask-command"])
def test_scripts_can_be_executed(script: str) -> None:
    assert os.access(DOCKER / script, os.X_OK)


# -- the services -------------------------------------------------------------------------------------------------


def test_both_generations_of_compose_read_the_files() -> None:
    for file in (COMPOSE, TLS):
        assert not {"version", "name"} & file.keys()  # 1.29 takes conditions only without the first, and no name at all
        assert {key for key in file if not key.startswith("x-")} == {"services", "volumes"}


@pytest.mark.parametrize("service", ROLES)
def test_every_service_is_of_the_one_image(service: str) -> None:
    assert SERVICES[service]["image"] == "dasktrain"
    assert (DOCKER / SERVICES[service]["build"]["context"]).resolve() == ROOT
    assert (ROOT / SERVICES[service]["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("service", ROLES)
def test_every_service_is_limited_and_ends_in_time(service: str) -> None:
    found = SERVICES[service]
    assert {"mem_limit", "stop_grace_period"} <= found.keys()
    assert found["init"] is True


def test_services_that_stay_say_how_they_are() -> None:
    assert "8787/health" in SERVICES["scheduler"]["healthcheck"]["test"]
    port = options("worker")["dashboard_address"].removeprefix(":")
    assert f"{port}/health" in SERVICES["worker"]["healthcheck"]["test"]


def test_a_worker_has_one_thread_and_less_memory_than_its_container() -> None:
    found = options("worker")
    assert found["nthreads"] == 1
    container = 2**30 * int(interpolated(SERVICES["worker"]["mem_limit"]).removesuffix("g"))
    assert 0.9 * container < parse_bytes(found["memory_limit"]) < container


def test_the_trainer_waits_for_all_workers() -> None:
    assert options("trainer")["workers"] == int(interpolated(SERVICES["worker"]["scale"])) == 3
    assert SERVICES["trainer"]["depends_on"] == {"scheduler": {"condition": "service_healthy"}}


def test_services_find_the_scheduler_by_its_name_and_port() -> None:
    assert options("scheduler")["port"] is None  # then it is 8786
    for service in ("worker", "trainer"):
        assert SERVICES[service]["environment"]["DASK_SCHEDULER_ADDRESS"] == "tcp://scheduler:8786"


def test_nobody_but_this_machine_reaches_the_scheduler() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_only_the_trainer_writes_to_the_data() -> None:
    assert SERVICES["worker"]["volumes"] == ["data:/data:ro"]
    assert SERVICES["trainer"]["volumes"] == ["data:/data"]


# -- over TLS -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["scheduler", "worker", "client"])
def test_dask_understands_what_the_environment_says_of_tls(role: str) -> None:
    service = {"client": "trainer"}.get(role, role)
    environment = {name: str(value) for name, value in TLS["services"][service]["environment"].items()}
    with dask.config.set(dask.config.merge(dask.config.config, dask.config.collect_env(environment))):
        security = Security()
        assert security.require_encryption
        assert dask.config.get("distributed.comm.default-scheme") == "tls"
        assert dask.config.get("scheduler-address").startswith("tls://")
        assert security.get_tls_config_for_role(role) == {
            "ca_file": "/certificates/ca.pem",
            "cert": "/certificates/node.pem",
            "key": "/certificates/node-key.pem",
            "ciphers": None,
        }


def test_only_the_scheduler_writes_certificates() -> None:
    volumes = {name: service["volumes"] for name, service in TLS["services"].items()}
    assert volumes.pop("scheduler") == ["certificates:/certificates"]
    assert all(found == ["certificates:/certificates:ro"] for found in volumes.values())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_the_certificate_is_of_the_authority_and_its_key_is_nobody_elses(tmp_path: Path) -> None:
    subprocess.run([DOCKER / "certificates.sh", tmp_path], check=True, capture_output=True, timeout=60)
    assert {file.name for file in tmp_path.iterdir()} == {"ca.pem", "node.pem", "node-key.pem"}
    assert (tmp_path / "node-key.pem").stat().st_mode & 0o777 == 0o600
    context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    context.load_cert_chain(tmp_path / "node.pem", tmp_path / "node-key.pem")
    verify = ["openssl", "verify", "-CAfile", tmp_path / "ca.pem", tmp_path / "node.pem"]
    subprocess.run(verify, check=True, capture_output=True, timeout=60)


# -- what is trained ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["data.py", str(folder)])
        load("data").main()
    return folder


def test_the_data_are_uneven_files_one_of_them_empty(data: Path) -> None:
    rows = [len(pd.read_parquet(file)) for file in sorted((data / "train").iterdir())]
    assert 0 in rows
    assert len(set(rows)) > 3
    assert sum(rows) == 16_000


def test_the_data_are_the_same_wherever_they_are_made() -> None:
    spirals = load("data").spirals
    first, second = (spirals(100, np.random.default_rng(0)) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)


def test_the_job_trains_on_the_data(data: Path) -> None:
    folders = {"data.parquet": str(data / "train"), "validation.parquet": str(data / "valid")}
    result = read_job(str(DOCKER / "job.yaml"))(**folders, max_rounds=2, client=dt.LocalWire(workers=2))
    assert len(result.history.rounds) == 2


# -- the test that needs an engine --------------------------------------------------------------------------------


def test_without_an_engine_it_says_so_and_has_not_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert load("test").main() == 0
    assert capsys.readouterr().out == "docker-test: no Docker engine with Compose runs here, so nothing was tested\n"


def test_it_finds_the_one_digest_among_what_is_printed() -> None:
    digest = load("test").digest
    assert digest(f"trainer_1 | loss: 0.1\ntrainer_1 | digest: {'a1' * 32}\nstopped\n") == "a1" * 32
    with pytest.raises(ValueError, match="not enough values"):
        digest("trainer_1 | Error: no workers\n")
