"""Train in containers undisturbed, with a worker killed, and over TLS, then on this machine, and compare the digests.

python docker/test.py    # or: make docker-test

Everything it starts is gone at the end, whatever becomes of it. Where no engine runs it says so, and has not failed.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, STDOUT

from dask.distributed import Client

import dasktrain as dt

FOLDER = Path(__file__).parent
WORKERS = 3
EPOCHS = 40  # long enough to be in the middle of
SETTINGS = {"WORKERS": str(WORKERS), "EPOCHS": str(EPOCHS), "SCHEDULER_PORT": "0"}  # port 0: any that is free
DEADLINE = 300.0  # seconds for anything but the build
BUILD_DEADLINE = 900.0


def run(*command: str | Path, deadline: float = DEADLINE) -> str:
    """Return what a command prints; if it fails or takes too long, print that and raise."""
    environment = os.environ | SETTINGS
    try:
        done = subprocess.run(
            command, env=environment, stdout=PIPE, stderr=STDOUT, text=True, timeout=deadline, check=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(error.stdout, file=sys.stderr)
        raise
    return done.stdout


def works(*command: str) -> bool:
    """Tell whether a command is there and succeeds."""
    try:
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def find_compose() -> tuple[str, ...] | None:
    """Return the command that is Compose here, if there is an engine to use it with."""
    if works("docker", "info"):
        for command in (("docker", "compose"), ("docker-compose",)):
            if works(*command, "version"):
                return command
    return None


def say(what: str) -> None:
    """Print a line at once."""
    print(f"docker-test: {what}", flush=True)


class Project:
    """The services of some Compose files, under a name of their own."""

    def __init__(self, compose: tuple[str, ...], *files: str) -> None:
        named = [part for file in files for part in ("--file", str(FOLDER / file))]
        self.command = (*compose, "--project-name", "dasktrain-test", *named)

    def __call__(self, *arguments: str, deadline: float = DEADLINE) -> str:
        """Return what Compose prints."""
        return run(*self.command, *arguments, deadline=deadline)

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's containers."""
        return self("ps", "--quiet", service).split()

    def trained(self) -> str:
        """Return what the trainer has printed so far."""
        return self("logs", "--no-color", "trainer")


@contextmanager
def gone_afterwards(project: Project) -> Iterator[Project]:
    """Have no container, network or volume of a project before and after."""
    clean = ("down", "--volumes", "--remove-orphans", "--timeout", "5")
    project(*clean)
    try:
        yield project
    finally:
        project(*clean)


def digest(printed: str) -> str:
    """Find the digest in what a trainer printed."""
    (found,) = re.findall(r"digest: ([0-9a-f]{64})$", printed, re.MULTILINE)
    return str(found)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again until something is so."""
    patience = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > patience:
            raise TimeoutError(f"{what} within {DEADLINE:g} s, however it is not so")
        time.sleep(0.2)


def undisturbed(project: Project) -> str:
    """Run as the README says to."""
    with gone_afterwards(project):
        return digest(project("up", "--exit-code-from", "trainer"))


def disturbed(project: Project) -> str:
    """Kill a worker in the middle of the run, and have another join it."""
    with gone_afterwards(project):
        project("up", "--detach")
        (trainer,) = project.containers("trainer")
        with Client(project("port", "scheduler", "8786").strip()) as client:
            wait_until(lambda: "epoch 3 " in project.trained(), "three epochs must be done")
            victim = project.containers("worker")[0]
            run("docker", "kill", victim)
            run("docker", "rm", victim)  # Compose would start it again
            wait_until(lambda: at_work(client) == WORKERS - 1, "its death must be noticed")
            project("up", "--detach", "--no-deps", "--no-recreate", "--scale", f"worker={WORKERS}", "worker")
            wait_until(lambda: at_work(client) == WORKERS, "another worker must have joined the run")
        say(f"killed worker {victim[:12]}, and another joined, before: {last_line(project.trained())}")
        assert run("docker", "wait", trainer).strip() == "0", project.trained()
        return digest(project.trained())


def at_work(client: Client) -> int:
    """Return how many workers the run under way has."""
    found = dt.runs(client)
    assert found, "the run must be under way, however it is over; train for more epochs"
    return found[0].workers


def last_line(printed: str) -> str:
    """Return what a service said last, without the name that Compose puts before it."""
    return printed.splitlines()[-1].partition("|")[2].strip()


def on_this_machine() -> str:
    """Train the same job on a LocalCluster of this environment."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, FOLDER / "data.py", folder)
        paths = {"data.parquet": f"{folder}/train", "validation.parquet": f"{folder}/valid", "epochs": EPOCHS}
        settings = [part for name, value in paths.items() for part in ("--set", f"{name}={value}")]
        dasktrain = Path(sys.executable).with_name("dasktrain")
        return digest(run(dasktrain, "fit", FOLDER / "job.yaml", "--workers", "2", *settings))


def main() -> int:
    """Run everything; return the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up then, too
    warnings.filterwarnings("ignore", "Mismatched versions")  # of Python's last number, which changes no bits
    compose = find_compose()
    if compose is None:
        say("no Docker engine with Compose runs here, so nothing was tested")
        return 0
    plain = Project(compose, "docker-compose.yml")
    encrypted = Project(compose, "docker-compose.yml", "docker-compose.tls.yml")
    runs: dict[str, Callable[[], str]] = {
        f"{WORKERS} workers": lambda: undisturbed(plain),
        "one killed, one joining": lambda: disturbed(plain),
        f"{WORKERS} workers over TLS": lambda: undisturbed(encrypted),
        "LocalCluster here": on_this_machine,
    }
    timed("built the image", lambda: plain("build", deadline=BUILD_DEADLINE))
    digests = {name: timed(name, train) for name, train in runs.items()}
    for name, found in digests.items():
        say(f"{name:24} {found}")
    if len(set(digests.values())) > 1:
        say("the digests differ; is torch the same here as in the image?")
        return 1
    say("equal, bit for bit")
    return 0


def timed(name: str, action: Callable[[], str]) -> str:
    """Do something, say how long it took, and return what it returned."""
    start = time.monotonic()
    done = action()
    say(f"{name}: {time.monotonic() - start:.0f} s")
    return done


if __name__ == "__main__":
    sys.exit(main())
