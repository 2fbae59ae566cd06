"""Hosts with addresses and links of their own, on one machine: network namespaces around a switch.

Everything is inside namespaces, also the switch: the machine's own network is not touched, and deleting the namespaces
deletes links and addresses with them.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

CABLE = Path(__file__).with_name("cable.py")
#: seconds for a process to end before it is killed, and for a command that sets up a link
PATIENCE = 10.0
#: a queue that is too short for any packet: what a host sends is lost, and nobody is told
BLACKHOLE = ("bfifo", "limit", "1")
SLOW = ("tbf", "rate", "50mbit", "burst", "64kb", "latency", "100ms")
USUAL = ("pfifo", "limit", "1000")


class Network:
    """Hosts that reach each other through a switch; made by `connected`.

    Parameters
    ----------
    hosts
        Their names, in the order of their addresses.
    delay
        Seconds from a host to the switch, and back.
    """

    def __init__(self, hosts: Sequence[str], delay: float = 0.0) -> None:
        self._delay = delay
        self._numbers = {host: number for number, host in enumerate(hosts, 1)}
        self._processes: list[subprocess.Popen[Any]] = []

    def address(self, host: str) -> str:
        """Return a host's IP address."""
        return f"10.77.0.{self._numbers[host]}"

    # -- making and ending ------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Make the namespaces and links."""
        ip("netns", "add", space("switch"))
        ip("-n", space("switch"), "link", "add", "bridge", "type", "bridge")
        ip("-n", space("switch"), "link", "set", "bridge", "up")
        for host in self._numbers:
            self._plug_in(host)

    def _plug_in(self, host: str) -> None:
        ip("netns", "add", space(host))
        if self._delay:
            self._lay_long_cable(host)
        else:
            cable = ("link", "add", f"to-{host}", "type", "veth", "peer", "name", "eth0", "netns", space(host))
            ip("-n", space("switch"), *cable)
        ip("-n", space("switch"), "link", "set", f"to-{host}", "master", "bridge", "up")
        ip("-n", space(host), "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            ip("-n", space(host), "link", "set", link, "up")

    def _lay_long_cable(self, host: str) -> None:
        ends = (space(host), "eth0", space("switch"), f"to-{host}")
        command = [sys.executable, str(CABLE), str(self._delay), *ends]
        cable = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._processes.append(cable)
        assert cable.stdout is not None
        assert cable.stderr is not None
        if not cable.stdout.readline():  # either a line or the end of it comes at once
            raise OSError(cable.stderr.read().decode().splitlines()[-1])

    def tear_down(self) -> None:
        """End all processes, then the namespaces; what was never made is passed over."""
        for process in self._processes:
            ended(process)
        for name in ("switch", *self._numbers):
            with suppress(OSError):
                ip("netns", "delete", space(name))

    def start(self, host: str, *command: str, **options: Any) -> "subprocess.Popen[Any]":
        """Start a process on a host; it is ended with the network at the latest."""
        process = subprocess.Popen(["ip", "netns", "exec", space(host), *command], **options)
        self._processes.append(process)
        return process

    # -- faults -----------------------------------------------------------------------------------------------

    def cut(self, host: str) -> None:
        """Pull a host's cable: what it sends and what it is sent is lost, and nobody is told."""
        ip("-n", space("switch"), "link", "set", f"to-{host}", "down")

    def drop_from(self, host: str) -> None:
        """Lose what a host sends, and nothing that it is sent."""
        tc("-n", space(host), "qdisc", "replace", "dev", "eth0", "root", *BLACKHOLE)

    def shape(self, host: str, *queue: str) -> None:
        """Have both directions of a host's link go through a queue, such as ``"tbf", "rate", "50mbit", ...``."""
        tc("-n", space(host), "qdisc", "replace", "dev", "eth0", "root", *queue)
        tc("-n", space("switch"), "qdisc", "replace", "dev", f"to-{host}", "root", *queue)

    def heal(self, host: str) -> None:
        """Take back whatever was done to a host's link."""
        ip("-n", space("switch"), "link", "set", f"to-{host}", "up")
        self.shape(host, *USUAL)


@contextmanager
def connected(*hosts: str, delay: float = 0.0) -> Iterator[Network]:
    """Make hosts, and end them with all that runs on them."""
    network = Network(hosts, delay)
    try:
        network.set_up()
        yield network
    finally:
        network.tear_down()


@cache
def missing(delay: float = 0.0) -> str | None:
    """Return why there can be no hosts here, or none with such a delay; None if there can be."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"{tool} must be installed to make hosts, however it is not; install iproute2"
    try:
        with connected("trial", delay=delay) as network:
            for queue in (BLACKHOLE, SLOW):
                network.shape("trial", *queue)
    except OSError as error:
        return f"This kernel must allow hosts with links of their own, however {error}; run as root, or elsewhere"
    return None


def ended(process: "subprocess.Popen[Any]") -> None:
    """Terminate a process, kill it if it does not end, and close its pipes."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(PATIENCE)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def space(name: str) -> str:
    """Return the namespace of a host; test processes beside this one have others."""
    return f"dasktrain-{os.getpid()}-{name}"


def ip(*arguments: str) -> None:
    """Run ``ip``."""
    _run("ip", *arguments)


def tc(*arguments: str) -> None:
    """Run ``tc``."""
    _run("tc", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
