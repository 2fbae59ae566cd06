"""What can be told of the manifests for Kubernetes and Slurm without either: they are read, not run."""

import ast
import inspect
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from dask.utils import parse_bytes, parse_timedelta

from dasktrain.config import seconds
from tests.test_docker_files import parsed

DOCKER = Path(__file__).parents[1] / "docker"
KUBERNETES = DOCKER / "kubernetes"
HELM = yaml.safe_load((KUBERNETES / "helm-values.yaml").read_text())
CLUSTER = yaml.safe_load((KUBERNETES / "daskcluster.yaml").read_text())
TRAINER = yaml.safe_load((KUBERNETES / "trainer.yaml").read_text())
SLURM = ast.parse((DOCKER / "hpc" / "slurm.py").read_text())

SCHEDULER_POD = CLUSTER["spec"]["scheduler"]["spec"]
WORKER_POD = CLUSTER["spec"]["worker"]["spec"]
TRAINER_POD = TRAINER["spec"]["template"]["spec"]
PODS = {"scheduler": SCHEDULER_POD, "worker": WORKER_POD, "trainer": TRAINER_POD}
HELM_ROLES = ("scheduler", "worker")


def container(role: str) -> dict[str, Any]:
    (found,) = PODS[role]["containers"]
    return dict(found)


def helm_worker() -> list[str]:
    """Return the command that the chart makes of the values, in today's words."""
    worker = HELM["worker"]
    limits = [
        "--nthreads",
        str(worker["threads_per_worker"]),
        "--memory-limit",
        worker["resources"]["limits"]["memory"],
    ]
    dashboard = ["--no-dashboard", "--dashboard-address", str(worker["portDashboard"])]
    return ["dask", "worker", "dasktrain-scheduler:8786", *limits, *dashboard, *worker["extraArgs"]]


@pytest.mark.parametrize("role", PODS)
def test_pods_run_todays_commands(role: str) -> None:
    words = container(role)["args"]
    assert words[:2] == {"trainer": ["dasktrain", "fit"]}.get(role, ["dask", role])
    assert parsed(words)


def test_the_charts_commands_are_in_the_image() -> None:
    assert HELM["worker"]["image"]["dask_worker"] == "dask-worker"
    dockerfile = (DOCKER / "Dockerfile").read_text()
    for role in HELM_ROLES:
        assert f"COPY docker/kubernetes/dask-command /usr/local/bin/dask-{role}\n" in dockerfile
    assert 'exec dask "${0##*/dask-}" "$@"' in (KUBERNETES / "dask-command").read_text()


@pytest.mark.parametrize("words", [container("worker")["args"], helm_worker()], ids=["operator", "helm"])
def test_workers_have_one_thread(words: list[str]) -> None:
    assert parsed(words)["nthreads"] == 1


def test_the_operators_worker_has_a_little_less_memory_than_its_container() -> None:
    limit = parse_bytes(container("worker")["resources"]["limits"]["memory"])
    assert 0.9 * limit < parse_bytes(parsed(container("worker")["args"])["memory_limit"]) < limit


def test_dask_understands_the_memory_that_the_chart_hands_on() -> None:
    assert parse_bytes(parsed(helm_worker())["memory_limit"]) == 2 * 2**30


@pytest.mark.parametrize("role", PODS)
def test_pods_ask_for_what_they_may_use_at_most(role: str) -> None:
    resources = container(role)["resources"]
    assert resources["requests"] == resources["limits"]


@pytest.mark.parametrize("role", PODS)
def test_pods_are_of_the_one_image_and_of_a_user_without_rights(role: str) -> None:
    assert container(role)["image"] == "dasktrain:latest"
    assert PODS[role]["securityContext"] == {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000}


@pytest.mark.parametrize("role", HELM_ROLES)
def test_the_charts_pods_are_so_too(role: str) -> None:
    image = HELM[role]["image"]
    assert (image["repository"], image["tag"]) == ("dasktrain", "latest")
    assert HELM[role]["securityContext"] == PODS[role]["securityContext"]
    assert HELM[role]["resources"]["requests"] == HELM[role]["resources"]["limits"]


@pytest.mark.parametrize(
    ("volumes", "mounts"),
    [
        (WORKER_POD["volumes"], container("worker")["volumeMounts"]),
        (TRAINER_POD["volumes"], container("trainer")["volumeMounts"]),
        (HELM["worker"]["mounts"]["volumes"], HELM["worker"]["mounts"]["volumeMounts"]),
    ],
    ids=["operator", "trainer", "helm"],
)
def test_shared_memory_is_memory_and_data_is_only_read(volumes: list[Any], mounts: list[Any]) -> None:
    held = {volume["name"]: volume for volume in volumes}
    at = {mount["mountPath"]: mount for mount in mounts}
    assert held[at["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"
    assert held[at["/data"]["name"]]["persistentVolumeClaim"] == {"claimName": "training-data", "readOnly": True}
    assert at["/data"]["readOnly"] is True


@pytest.mark.parametrize(
    ("probe", "port"),
    [
        (HELM["scheduler"]["livenessProbe"], 8787),
        (HELM["worker"]["livenessProbe"], HELM["worker"]["portDashboard"]),
        (container("scheduler")["livenessProbe"], "http-dashboard"),
        (container("worker")["livenessProbe"], "http"),
    ],
    ids=["helm-scheduler", "helm-worker", "scheduler", "worker"],
)
def test_probes_ask_for_health_and_are_patient(probe: dict[str, Any], port: int | str) -> None:
    assert probe["httpGet"] == {"path": "/health", "port": port}
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 60  # one that computes may answer late


def test_ports_of_probes_are_those_of_the_programs() -> None:
    ports = {port["name"]: port["containerPort"] for port in container("worker")["ports"]}
    assert parsed(container("worker")["args"])["dashboard_address"] == f":{ports['http']}"
    assert {port["name"]: port["containerPort"] for port in container("scheduler")["ports"]} == {
        "tcp-comm": 8786,  # where Dask listens if nothing else is said
        "http-dashboard": 8787,
    }


def test_the_trainer_finds_the_scheduler_of_either_cluster() -> None:
    environment = {variable["name"]: variable["value"] for variable in container("trainer")["env"]}
    service = f"tcp://{CLUSTER['metadata']['name']}-scheduler:8786"
    assert environment["DASK_SCHEDULER_ADDRESS"] == service
    assert HELM["fullnameOverride"] == CLUSTER["metadata"]["name"]
    assert parse_timedelta(environment["DASK_DASKTRAIN__TIMEOUTS__WORKERS"]) > seconds("timeouts.workers")


def test_the_trainer_waits_for_as_many_workers_as_there_will_be() -> None:
    assert parsed(container("trainer")["args"])["workers"] == CLUSTER["spec"]["worker"]["replicas"]
    assert HELM["worker"]["replicas"] == CLUSTER["spec"]["worker"]["replicas"]


def test_the_service_selects_the_scheduler() -> None:
    selector = CLUSTER["spec"]["scheduler"]["service"]["selector"]
    assert selector == {"dask.org/cluster-name": CLUSTER["metadata"]["name"], "dask.org/component": "scheduler"}


# -- Slurm --------------------------------------------------------------------------------------------------------


def slurm_keywords() -> dict[str, ast.expr]:
    calls = [node for node in ast.walk(SLURM) if isinstance(node, ast.Call)]
    (call,) = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "SLURMCluster"]
    return {str(keyword.arg): keyword.value for keyword in call.keywords}


def test_jobqueue_knows_the_keywords() -> None:
    handler = signal.getsignal(signal.SIGINT)
    import dask_jobqueue as jobqueue  # which makes an exit of Ctrl-C

    signal.signal(signal.SIGINT, handler)
    kinds = jobqueue.SLURMCluster.job_cls.__mro__ + jobqueue.SLURMCluster.__mro__
    known = {name for kind in kinds for name in inspect.signature(kind.__init__).parameters}
    assert slurm_keywords().keys() <= known


def test_no_keyword_is_one_that_jobqueue_has_renamed() -> None:
    assert not {"project", "extra", "env_extra", "job_extra", "header_skip"} & slurm_keywords().keys()


def test_a_slurm_worker_has_one_thread_and_leaves_before_its_job_ends() -> None:
    found = slurm_keywords()
    assert ast.unparse(found["cores"]) == ast.unparse(found["processes"])
    worker = parsed(["dask", "worker", *ast.literal_eval(found["worker_extra_args"])])
    hours, minutes, rest = map(int, ast.literal_eval(found["walltime"]).split(":"))
    stay = parse_timedelta(worker["lifetime"]) + parse_timedelta(worker["lifetime_stagger"])
    assert stay < hours * 3600 + minutes * 60 + rest
