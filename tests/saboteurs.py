"""Those who break things, once, at a moment of their choosing."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.fitting import CANARY_ROWS
from dasktrain.wire.channel import Channel

#: parameters enough for a message that no socket takes at once, and for several
WIDE = 600_000
WIDTHS = {"send": WIDE, "receive": WIDE, "send in parts": 6 * WIDE}


class After(dt.Observer):
    """Does something once so many rounds are done, and writes down what it is told."""

    def __init__(self, rounds: int, strike: Callable[[], None]) -> None:
        self.rounds, self.strike = rounds, strike
        self.told: list[str] = []

    def stage(self, text: str) -> None:
        self.told.append(text)

    def start(self, run: dt.observe.Run) -> None:
        self.run = run

    def round(self, record: dict[str, Any]) -> None:
        if self.run.cursor.done == self.rounds:
            self.strike()


class Unhurried(dt.Observer):
    """Pauses after each round: rounds that only pass the time take it from processes that start meanwhile."""

    def round(self, record: dict[str, Any]) -> bool | None:
        Event().wait(0.02)
        return None


class Once:
    """True the first time it is called in any process."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "struck")

    def __call__(self) -> bool:
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def die() -> None:
    """End this process as the kernel would for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


class Mortal(nn.Module):
    """Kills the first worker that comes to `phase`; the same numbers as ever everywhere else.

    Parameters
    ----------
    phase
        "attach", "compute", "send" (half an answer is sent), "send in parts" (half of the second bucket of one is),
        "receive" (half the parameters have come), "evaluate" or "predict".
    once
        Shared by all processes.
    """

    def __init__(self, phase: str, once: Once) -> None:
        super().__init__()
        self.phase, self.once, self.driver, self.calls = phase, once, os.getpid(), 0
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        self.wide = nn.Parameter(torch.zeros(WIDTHS.get(phase, 1)))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._perhaps("attach")

    def forward(self, x: Tensor) -> Tensor:
        """(rows, 6) -> (rows, 3)."""
        if len(x) != CANARY_ROWS:
            self.calls += self.training
            if self.training and self.calls == 10:
                self._perhaps("compute")
                if os.getpid() != self.driver and self.phase in WIDTHS:
                    self._break_receive() if self.phase == "receive" else self._break_send()
            if not self.training:
                self._perhaps("evaluate")
                self._perhaps("predict")
        return self.body(x) + self.wide[:1]

    def _perhaps(self, phase: str) -> None:
        if phase == self.phase and os.getpid() != self.driver and self.once():
            die()

    def _break_send(self) -> None:
        whole, once, before = Channel.send, self.once, [None] * (self.phase == "send in parts")

        def half(channel: Channel, header: Any, arrays: Any = ()) -> None:
            if arrays and before:
                before.pop()
            elif arrays and once():
                channel.post(header, arrays)
                channel._socket.sendall(channel._out.popleft())
                channel._socket.sendall(channel._out.popleft()[: WIDE // 2])
                die()
            whole(channel, header, arrays)

        Channel.send = half  # type: ignore[method-assign]

    def _break_receive(self) -> None:
        whole, once = Channel.receive, self.once

        def half(channel: Channel, timeout: float | None = None) -> Any:
            if once():
                channel._socket.recv(WIDE // 2)
                die()
            return whole(channel, timeout)

        Channel.receive = half  # type: ignore[method-assign]
