"""What a worker sends, in a thread of its own, while the thread that computes goes on."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace

from dasktrain.messages import Reply, State, Stream, Task, Vector, encode_reply
from dasktrain.wire.channel import Channel
from dasktrain.wire.member import Meet, Member
from dasktrain.wire.shared import Store
from dasktrain.wire.together import Meeting, Together
from dasktrain.wire.ways import Among, Way


class Outbox:
    """Sends a worker's buckets and answers: to the driver, with those of others of its host, or to peers.

    Parameters
    ----------
    channel
        The driver's connection.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dasktrain-send")
        self._sending: list[Future[None]] = []
        self._take: Callable[[Reply], None] = self._send
        self._together: Together | None = None
        self._member: Member | None = None
        self._ends = ExitStack()

    def meet(self, store: Store, stream: Stream) -> Meeting:
        """Be ready to send with others, who read in a store what this worker sums; return where they find it."""
        self._together = self._ends.enter_context(closing(Together(self._channel, store, stream)))
        return self._together.meeting

    def join(self, meet: Meet, stream: Stream) -> None:
        """Be ready to reduce among workers of other hosts, to whom `meet` adds lines."""
        self._member = self._ends.enter_context(closing(Member(self._channel, meet, stream)))

    def recut(self, stream: Stream | None) -> None:
        """Send gradients that are cut in some way from the next task on, if there are any in buckets."""
        for part in (self._member, self._together):
            if part is not None and stream is not None:
                part.recut(stream)

    def begin(self, task: Task, way: Way, state: State) -> State | None:
        """Have what belongs to a task sent in some way; return its state, None if the driver is to send it anew."""
        self._take, parameters = self._begun(task, way, state.parameters)
        return None if parameters is None else replace(state, parameters=parameters)

    def _begun(self, task: Task, way: Way, parameters: Vector) -> tuple[Callable[[Reply], None], Vector | None]:
        """Return what sends all that belongs to a task, and its parameters if they come."""
        if way is None:
            return self._send, parameters
        if isinstance(way, Among):
            assert self._member is not None  # or the driver could not know of a way
            return self._member.take, self._member.begin(task, way)
        assert self._together is not None
        return self._together.begin(task, way, parameters, self._member)

    def send_again(self, task: Task, places: Iterable[int]) -> None:
        """Send the driver itself what was sent to some peers."""
        assert self._member is not None
        self._member.send_again(task, places)

    def put(self, reply: Reply) -> None:
        """Have something sent after all else, which stays as it is until `wait` returns."""
        self._sending.append(self._thread.submit(self._take, reply))

    def end(self, reply: Reply) -> None:
        """Send an answer: at once if nothing is being sent."""
        if self._sending:
            self.put(reply)
        else:
            self._take(reply)

    def wait(self) -> None:
        """Wait until all is sent; only then the connection may be read from, which TLS takes from one thread alone.

        Raises
        ------
        OSError
            The connection was closed or lost.
        """
        sending, self._sending = self._sending, []
        for each in sending:
            each.result()

    def close(self) -> None:
        """End the connection and the thread."""
        self._channel.abort()
        self._thread.shutdown(cancel_futures=True)
        self._ends.close()

    def _send(self, reply: Reply) -> None:
        self._channel.send(*encode_reply(reply))
