"""``kill -9`` of the driver at random moments and at every step of writing a checkpoint; others go on from there."""

import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import dasktrain as dt
from benchmarks.chaos.cluster import mortal_cluster
from tests.problems import PROBLEMS, SETTINGS

KILLS, INTERVAL, EPOCHS = int(os.environ.get("DRIVER_KILLS", "50")), 5, 300
PROBLEM = PROBLEMS[2]


def life(url: str, address: str, workers: int, rounds_left: int, steps_left: int) -> None:
    """Be a driver that dies after so many rounds, or at the so manieth step of writing checkpoints; -1: neither."""

    class Dies(dt.Observer):
        def start(self, run: Any) -> None:
            self.run, self.left = run, rounds_left
            print("resumed", run.cursor.done, flush=True)

        def round(self, record: dict[str, Any]) -> None:
            print("done", self.run.cursor.done, flush=True)
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if steps_left >= 0:
        _die_at_step(steps_left)
    client: Any = dt.LocalWire(workers)
    if address:
        from dask.distributed import Client

        client = Client(address)
    there = os.path.isdir(url) and any(os.scandir(url))
    observers = [Dies(), dt.Checkpoint(url, f"{INTERVAL} rounds", keep=2)]
    settings = SETTINGS | {"epochs": EPOCHS, "resume": url if there else None}
    result = PROBLEM.trainer(observers).fit(PROBLEM.data, client=client, **settings)  # type: ignore[arg-type]
    print("digest", result.digest, flush=True)


def _die_at_step(steps_left: int) -> None:
    """Have every write, fsync and rename from now on count, and the last of them not happen."""
    import builtins

    left = [steps_left]

    def counted(step: Any) -> Any:
        def do(*arguments: Any, **keywords: Any) -> Any:
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments, **keywords)

        return do

    real = builtins.open

    def opened(file: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        handle = real(file, mode, *arguments, **keywords)
        if "w" in mode and "round-" in str(file):
            return _Writes(handle, counted)
        return handle

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
    builtins.open = opened


class _Writes:
    """A file whose writes count, and of which the last writes half."""

    def __init__(self, file: Any, counted: Any) -> None:
        self._file, self.write = file, counted(file.write)

    def __enter__(self) -> "_Writes":
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def run(seed: int) -> dict[str, Any]:
    """Kill one driver after another, in half of the cases on a cluster that stays, then let one finish."""
    chance, lost, over, resumes = random.Random(seed), list[int](), 0, 0
    wanted = PROBLEM.fit(dt.LocalWire(), epochs=EPOCHS).digest
    with tempfile.TemporaryDirectory() as folder, mortal_cluster(3) as (client, _):
        url, reached, digest = str(Path(folder) / "checkpoints"), 0, ""
        for kill in range(KILLS + 1):
            last = kill == KILLS
            steps = -1 if last or kill % 2 else chance.randint(1, 40)
            rounds = -1 if last or kill % 2 == 0 else chance.randint(1, 60)
            address = client.scheduler.address if kill % 4 < 2 else ""
            arguments = [url, address, str(chance.randint(1, 5)), str(rounds), str(steps)]
            command = [sys.executable, "-m", "benchmarks.chaos.drivers", *arguments]
            output = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            whole = output.stdout[: output.stdout.rfind("\n") + 1]  # it may have died in the middle of a line
            said = [line.split() for line in whole.splitlines() if line.startswith(("resumed", "done", "digest"))]
            if output.returncode not in (0, -signal.SIGKILL) or not said:
                raise RuntimeError(f"driver {kill} ended with {output.returncode}: {output.stderr[-2000:]}")
            resumed = int(said[0][1])
            resumes += resumed > 0
            lost.append(reached - resumed)
            over += reached - resumed > INTERVAL
            reached = max(int(line[1]) for line in said if line[0] != "digest")
            digest = said[-1][1] if said[-1][0] == "digest" else ""
            if digest:
                break
    return {
        "goal": f"{KILLS} driver kills, resume with another worker count: same digest, lost work <= one interval",
        "seen": f"{kill} kills, {resumes} resumes, {'same' if digest == wanted else 'ANOTHER'} digest; "
        f"lost {max(lost)} rounds at most, more than the interval of {INTERVAL} in {over} cases",
        "holds": digest == wanted and not over and kill == KILLS,
        "rounds lost": lost,
    }


if __name__ == "__main__":
    life(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
