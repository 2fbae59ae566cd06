"""Runs of several candidates in step: one round of the cluster for all that ask for the same one."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

import numpy as np

from dasktrain.candidates import ASKED, GONE, IDLE, Places, Size
from dasktrain.coordinator import Coordinator
from dasktrain.driver import Ask, Asks, Driver, Leave
from dasktrain.errors import NonFinite
from dasktrain.messages import Partial, State
from dasktrain.vector import Memory, as_tensor

#: candidates that are gone are moved out of memory, and no longer sent, once so large a part of all is left
LEFT = 0.5


class Together:
    """The states of candidates side by side, in memory of the wire's.

    Parameters
    ----------
    drivers
        One a candidate.
    memory
        Where what workers read lies.
    """

    def __init__(self, drivers: Sequence[Driver], memory: Memory) -> None:
        self._drivers, self._memory = drivers, memory
        self._sizes = [
            Size(driver.state.parameters.layout.size, driver.state.buffers.vector.nbytes, driver.sums.layout.size)
            for driver in drivers
        ]
        self.keep(range(len(drivers)))

    def keep(self, there: Sequence[int]) -> None:
        """Have these be there and no others."""
        self.there = list(there)
        vector = self._drivers[0].state.parameters.vector.numpy()
        roles = [number in self.there for number in range(len(self._drivers))]
        self._places = Places(self._sizes, roles, vector.itemsize)
        totals = self._places.totals
        memory = self._memory(max(1, totals.parameters) * vector.itemsize)
        self._parameters = np.frombuffer(memory, dtype=vector.dtype, count=totals.parameters)
        self._parameters[:] = 0  # also what lies between them
        self._buffers = np.frombuffer(self._memory(totals.buffers), dtype=np.uint8, count=totals.buffers)
        for number, place in self._places.parameters.items():
            self._drivers[number].state.parameters.move(as_tensor(self._parameters[place]))

    def message(self, asked: Sequence[int]) -> State:
        """Return what a round of some of them starts from."""
        self._buffers[: len(self._sizes)] = GONE
        self._buffers[self.there] = IDLE
        self._buffers[list(asked)] = ASKED
        for number in asked:
            self._buffers[self._places.buffers[number]] = self._drivers[number].state.buffers.vector.numpy()
        return State(self._parameters, self._buffers)

    def parts(self, total: Partial, asked: Sequence[int]) -> dict[int, Partial | None]:
        """Return each one's part of a total; None for those that failed on a worker."""
        assert total.sums is not None
        found: dict[int, Partial | None] = {}
        for number in asked:
            vector = None if total.vector is None else total.vector[self._places.parameters[number]]
            part = Partial(total.start, total.stop, vector, total.sums[self._places.sums[number]])
            found[number] = None if total.sums[number] > 0 else part
        return found


class InStep:
    """Drives candidates round by round; one that fails leaves the others to go on.

    Parameters
    ----------
    drivers
        One a candidate, that share a coordinator.
    memory
        Where what workers read lies.
    after
        Called after every round with the candidates that go on; returns those that are to leave, and why.

    Attributes
    ----------
    failed : dict
        Candidate -> why it ended, if its numbers were not finite any more.
    """

    def __init__(self, drivers: Sequence[Driver], memory: Memory, after: Callable[[list[int]], dict[int, str]]) -> None:
        self._drivers, self._after = drivers, after
        self._coordinator: Coordinator = drivers[0].coordinator
        self._together = Together(drivers, memory)
        self._runs: dict[int, Asks] = {}
        self._asks: dict[int, Ask] = {}
        self.failed: dict[int, NonFinite] = {}

    def drive(self) -> None:
        """Run until all have ended."""
        with ExitStack() as ends:
            self._drive(ends)

    def _drive(self, ends: ExitStack) -> None:
        for number, driver in enumerate(self._drivers):
            self._runs[number] = driver.asks()
            ends.callback(self._runs[number].close)  # has its observers end, whatever becomes of others
            self._go_on(number, None)
        while self._asks:
            if len(self._asks) <= LEFT * len(self._together.there):
                self._together.keep(sorted(self._asks))
            ask = min(self._asks.values(), key=lambda ask: (ask.epoch, ask.round, ask.kind == "evaluate", ask.turn))
            who = [number for number, wanted in self._asks.items() if wanted == ask]
            try:
                self._round(ask, who)
            except Exception as error:
                self._end(error)
            for number, reason in self._after(sorted(self._asks)).items():
                self._throw(number, Leave(reason))

    def _round(self, ask: Ask, who: Sequence[int]) -> None:
        """Have a round computed for some; if a sum is not finite, for each of them alone."""
        try:
            whose = "/" + ",".join(map(str, who))
            total = self._coordinator.ask(*ask, self._together.message(who), whose=whose)
        except NonFinite as error:
            if len(who) == 1:
                self._fail(who[0], error)
                return
            for each in who:
                self._round(ask, [each])
            return
        for number, part in self._together.parts(total, who).items():
            if part is None:
                where = f"epoch {ask.epoch}, round {ask.round}"
                self._fail(number, NonFinite(f"Loss and metrics must be finite, however they are not in {where}"))
            else:
                self._go_on(number, part)

    def _go_on(self, number: int, part: Partial | None) -> None:
        """Have a candidate take its part of a round, and ask for the next."""
        run = self._runs[number]
        try:
            self._asks[number] = next(run) if part is None else run.send(part)
        except StopIteration:
            self._asks.pop(number, None)
        except NonFinite as error:
            self.failed[number] = error
            self._asks.pop(number, None)

    def _fail(self, number: int, error: NonFinite) -> None:
        """Have a candidate end."""
        self.failed[number] = error
        with suppress(NonFinite):
            self._throw(number, error)

    def _end(self, error: Exception) -> None:
        """Have every candidate see what ended the round: all of them may take it for an end like any other."""
        raised = None
        for number in list(self._asks):
            try:
                self._throw(number, error)
            except Exception as found:
                raised = found
        if raised is not None:
            raise raised

    def _throw(self, number: int, error: Exception) -> None:
        """End a candidate's run."""
        del self._asks[number]
        with suppress(StopIteration):
            self._runs[number].throw(error)
