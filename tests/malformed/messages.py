"""Connections, topics and settings that carry nonsense."""

import json
import socket
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import dask
import numpy as np

from dasktrain.config import DEFAULTS, setting
from dasktrain.messages import (
    Answer,
    Bucket,
    Failure,
    Partial,
    State,
    Table,
    Task,
    decode_ask,
    decode_attach,
    decode_mark,
    decode_part,
    decode_places,
    decode_reply,
    encode_ask,
    encode_attach,
    encode_mark,
    encode_part,
    encode_reply,
)
from dasktrain.relay import Relay, Replay
from dasktrain.steps import Mean, Piece, Step
from dasktrain.touched import Touched
from dasktrain.wire.channel import Channel
from dasktrain.wire.handout import decode_pieces, decode_step, encode_pieces, encode_step
from dasktrain.wire.shared import SharedChannel, Store, accept
from dasktrain.wire.tables import Changes, Copy
from dasktrain.wire.ways import Among, Joint, Via, decode_way, encode_way
from tests.malformed.mutations import JUNK, changed_bytes, changed_value
from tests.small import fit, table

#: seconds without a byte; the other end is closed, so that none of them should pass
PATIENCE = 5.0
TASK = Task("4f2a", "train", epoch=3, round=14, start=2, stop=5)
NUMBERS = np.arange(6, dtype=np.float32)
ROWS = Touched(np.array([1, 5]), NUMBERS[:4].reshape(2, 2))
PARTIALS = (Partial(2, 3, NUMBERS, None, (ROWS,)), Partial(3, 5, NUMBERS, NUMBERS.astype(np.float64)))
Message = tuple[dict[str, Any], Sequence[Any]]
SHARDED = Among("name", 1, ("tcp://a", "tcp://b"), (replace(TASK, start=0, stop=2), TASK))
STEP = Step("AdamW", ({"lr": 0.1, "betas": (0.9, 0.999), "fused": True},), Mean(32.0, 1.0, (0, 1)))
PIECE = Piece(1, 0, slice(0, 6), 3, 0, {"step": 3.0, "exp_avg": NUMBERS, "momentum_buffer": None})
UPDATED = State(NUMBERS, np.arange(9, dtype=np.uint8), (Table(2, rows=2, width=2, changed=np.array([1])),))


def _update(state: State) -> Message:
    """Return what is sent to a worker that has the parameters."""
    changes = Changes()
    for _ in range(2):
        changes.begin(state)
        message = changes.encode("a", TASK, state)
    return message


def _updated(header: dict[str, Any], frames: Sequence[Any]) -> None:
    """Receive rows of parameters that came before."""
    copy, changes = Copy(), Changes()
    changes.begin(UPDATED)
    copy.decode(*changes.encode("a", TASK, UPDATED))
    copy.decode(header, frames)


MESSAGES: tuple[tuple[Callable[..., Any], Message], ...] = (
    (decode_ask, encode_ask(TASK, State(NUMBERS, np.arange(9, dtype=np.uint8)))),
    (_updated, _update(UPDATED)),
    (lambda header, _: decode_way(header, TASK), (encode_way(Joint((replace(TASK, start=5, stop=6),))), [])),
    (lambda header, _: decode_way(header, TASK), (encode_way(Via("gate")), [])),
    (lambda header, _: decode_way(header, TASK), (encode_way(SHARDED), [])),
    (lambda header, _: decode_way(header, TASK), (encode_way(replace(SHARDED, is_new=False)), [])),
    (lambda header, _: decode_mark(header), (encode_mark("comes", TASK), [])),
    (lambda header, _: (decode_mark(header), decode_places(header)), (encode_mark("lacks", TASK, (1, 2)), [])),
    (decode_part, encode_part(TASK, 7, NUMBERS)),
    (lambda header, _: decode_step(header), (encode_step(STEP), [])),
    (lambda header, frames: decode_pieces({"dtype": "float32"} | header, frames), encode_pieces([PIECE])),
    (decode_attach, encode_attach(TASK, b"replica", b"keys", steps=True)),
    (decode_reply, encode_reply(Answer(TASK, PARTIALS, 0.5))),
    (decode_reply, encode_reply(Bucket(TASK, 2, 4, 7, NUMBERS))),
    (decode_reply, encode_reply(Failure("ReplicaError", "no", "Traceback", TASK))),
)


def stream(random: Random) -> None:
    """Read bytes off a connection that were a message, and what they say."""
    decode, message = random.choice(MESSAGES)
    sent = changed_bytes(raw(*message), random)
    ours, theirs = socket.socketpair()
    with theirs, closing(Channel(ours)) as channel:
        theirs.sendall(sent)
        theirs.shutdown(socket.SHUT_WR)
        decode(*channel.receive(PATIENCE))


def shared(random: Random) -> None:
    """Read a message whose arrays lie in shared memory, and are named by nonsense."""
    (ours, theirs), (descriptors, handed_over) = socket.socketpair(), socket.socketpair()
    store = Store()
    with (
        closing(SharedChannel(ours, descriptors, Store(), writable=False)) as channel,
        closing(SharedChannel(theirs, handed_over, store, writable=True)) as peer,
    ):
        for _ in range(random.randint(0, 3)):
            store(random.choice((0, 8, NUMBERS.nbytes)))
        peer._introduce()
        named = [(0, 1, 0, NUMBERS.nbytes), (1, 2, 0, 9)][: random.randint(0, 2)]
        header, arrays = encode_ask(TASK, State(NUMBERS, np.arange(9, dtype=np.uint8)))
        changed = changed_value(json.loads(json.dumps(header | {"shared": named, "turn": 0})), random)
        peer.send(changed if isinstance(changed, dict) else {}, arrays[len(named) :])
        theirs.shutdown(socket.SHUT_WR)
        decode_ask(*channel.receive(PATIENCE))


def offered(random: Random) -> None:
    """Take up an offer to share memory that is none."""
    ours, theirs = socket.socketpair()
    with theirs, closing(Channel(ours)) as channel:
        header = changed_value({"share": f"dasktrain-{random.randbytes(16).hex()}"}, random)
        channel = accept(channel, header if isinstance(header, dict) else {}, Store())
        assert not isinstance(channel, SharedChannel)


def message(random: Random) -> None:
    """Read a message that is well formed, whose header or frames are not."""
    decode, (header, arrays) = random.choice(MESSAGES)
    frames = [changed_bytes(bytes(array), random) if random.random() < 0.3 else bytes(array) for array in arrays]
    changed = changed_value(json.loads(json.dumps(header)), random)
    decode(changed if isinstance(changed, dict) else {}, frames[random.choice((0, 0, 0, 1)) :])


def topic(random: Random) -> None:
    """Replay what somebody else told of a run."""
    replay = Replay([])
    for each in told():
        replay.play(changed_value(each, random) if random.random() < 0.5 else each)
    replay.skip()
    replay.end()


def settings(random: Random) -> None:
    """Read settings that are none."""
    name = random.choice(sorted(DEFAULTS))
    junk = random.choice((*JUNK, "10 lightyears", "1e400s", "-3s", "nan", [1], {"s": 1}, b"\xff"))
    with dask.config.set({f"dasktrain.{name}": junk}):
        setting(name)


def raw(header: dict[str, Any], arrays: Sequence[Any]) -> bytes:
    """Return a message as it goes over a connection."""
    ours, theirs = socket.socketpair()
    with theirs, closing(Channel(ours)) as channel:
        channel.send(header, arrays)
        return theirs.recv(1 << 16)


@cache
def told() -> list[Any]:
    """Return what a short run tells."""
    messages: list[Any] = []
    fit(table(), observers=[Relay("attempt", messages.append)])
    plain: list[Any] = json.loads(json.dumps(messages))
    return plain
