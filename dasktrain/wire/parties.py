"""On the driver: which workers of one host get parameters once and send together, by way of one of them."""

from collections.abc import Iterable, Sequence
from math import inf

from dasktrain.messages import Answer, Task
from dasktrain.wire.together import Meeting
from dasktrain.wire.ways import Joint, Via, Way

#: what a worker is asked
Ask = tuple[str, Task]


class Parties:
    """Workers that can send together, and those that do in the round under way.

    Whoever then gets parameters itself or sends for itself, because it or another was late, goes on so for the rest of
    the epoch.
    """

    def __init__(self) -> None:
        self._meetings: dict[str, Meeting] = {}
        self._passing: dict[str, tuple[str, Task]] = {}  # who has what sent by whom, until it is asked anew
        self._asks: dict[str, Task] = {}  # of the round under way
        self._left: dict[str, int] = {}  # bytes of it that were to be sent when a worker last lacked parameters
        self._alone: set[str] = set()
        self._epoch = -1

    def add(self, worker: str, meeting: Meeting | None) -> None:
        """Take note of where a worker can be met, if it can."""
        if meeting is not None:
            self._meetings[worker] = meeting

    def forget(self, worker: str) -> None:
        """Take note of a worker's end."""
        self._meetings.pop(worker, None)

    def may_meet(self, worker: str) -> bool:
        """Return whether a worker can send together with others."""
        return worker in self._meetings

    def ways(self, asks: Sequence[Ask], can_give: bool) -> dict[str, Way]:
        """Return how the answers to what a round begins with are to be sent, of those that are not sent as ever.

        `can_give`: whether parameters that one worker gets are what others lack.
        """
        ways: dict[str, Way] = {}
        self._asks = dict(asks)
        for worker, task in asks:
            self._passing.pop(worker, None)
            if task.epoch != self._epoch:
                self._epoch, self._alone = task.epoch, set()
        for (first, _), *others in self._divided(asks):
            meeting = self._meetings.get(first)
            if others and meeting is not None:
                self._passing |= {worker: (first, task) for worker, task in others}
                ways[first] = Joint(tuple(task for _, task in others), can_give)
                ways |= {worker: Via(meeting.gate, can_give) for worker, _ in others}
        return ways

    def end(self) -> None:
        """Take note that the round is over."""
        self._asks, self._left = {}, {}

    def giver(self, worker: str, task: Task) -> str | None:
        """Return who is to give a worker the parameters of a task, if that is of the round under way."""
        first, passing = self._passing.get(worker, ("", None))
        return first if passing == task == self._asks.get(worker) else None

    def instead(self, worker: str, giver: str, left: int) -> Way:
        """Return the way of a worker that lacks parameters, of which so many bytes are still to be sent to their giver.

        As long as they become fewer it waits on, once more when all were sent: the giver may be about to lay them out.
        Otherwise it gets them itself, and sends for itself.
        """
        if giver in self._meetings and left < self._left.get(worker, inf):
            self._left[worker] = left
            return Via(self._meetings[giver].gate, given=True)
        self._alone.add(worker)
        return None

    def sender(self, worker: str, answer: Answer, passed: bool) -> str:
        """Return whose answer it is that `worker` sent, or passed on for another that it was told of."""
        if passed:
            told = (worker, answer.task)
            return next((owner for owner, passing in self._passing.items() if passing == told), worker)
        if self._passing.get(worker, ("", None))[1] == answer.task:
            self._alone.add(worker)
        return worker

    def _divided(self, asks: Iterable[Ask]) -> list[list[Ask]]:
        """Cut what is asked into the longest runs of shards of one host."""
        runs: list[list[Ask]] = []
        for ask in asks:
            if runs and self._meet(runs[-1][-1], ask):
                runs[-1].append(ask)
            else:
                runs.append([ask])
        return runs

    def _meet(self, left: Ask, right: Ask) -> bool:
        """Whether two workers can send together what they are asked."""
        (one, before), (other, task) = left, right
        hosts = [meeting.host for meeting in map(self._meetings.get, (one, other)) if meeting is not None]
        together = len(hosts) == 2 and hosts[0] == hosts[1] and self._alone.isdisjoint((one, other))
        return together and task.kind == "train" and before.stop == task.start
