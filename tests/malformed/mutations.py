"""Valid bytes and values, made invalid: whatever ``random`` says, so that both hypothesis and a seed can say it."""

import copy
import json
import math
import pickle
from collections.abc import Callable
from random import Random
from typing import Any

from tests.malformed.watch import Canary

PICKLE = pickle.dumps(Canary())


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


#: what takes the place of a value
JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**63,
    10**400,
    1e308,
    math.nan,
    math.inf,
    "",
    "x",
    "\ud800",
    "../../../../dev/zero",
    "load",
    "object",
    "O",
    "category",
    "datetime64[ns, ../../etc/passwd]",
    PICKLE.hex(),
    PICKLE.decode("latin-1"),
    [],
    [[]],
    {},
    {"float": "00"},
    {"tuple": [{"array": ["O", [1], "x"]}]},
    {"dtype": "load"},
    {"dtype": {"arrow": PICKLE.hex()}},
    {"timestamp": "99999-01-01", "zone": "../x"},
    {"decimal": "1e"},
    _nested(200),
)
#: bytes that mean something to somebody
TOKENS = (b"\0" * 8, b"\xff" * 8, b"dtr1", b"{", b"[" * 3000, b'"', b"NaN", b"1" * 5000, b"1e999", b"\xff\xfe", PICKLE)


def changed_bytes(valid: bytes, random: Random) -> bytes:
    """Flip, cut, insert, repeat; or pure garbage."""
    made = bytearray(valid)
    for _ in range(random.randint(1, 3)):
        random.choice(_BYTES)(made, random)
    return bytes(made)


def _flip(made: bytearray, random: Random) -> None:
    if made:
        made[random.randrange(len(made))] ^= 1 << random.randrange(8)


def _truncate(made: bytearray, random: Random) -> None:
    del made[random.randint(0, len(made)) :]


def _insert(made: bytearray, random: Random) -> None:
    place = random.randint(0, len(made))
    made[place:place] = random.choice(TOKENS)


def _overwrite(made: bytearray, random: Random) -> None:
    place, token = random.randint(0, len(made)), random.choice(TOKENS)
    made[place : place + len(token)] = token


def _repeat(made: bytearray, random: Random) -> None:
    start, stop = sorted(random.randint(0, len(made)) for _ in range(2))
    made[stop:stop] = made[start:stop]


def _garbage(made: bytearray, random: Random) -> None:
    made[:] = random.randbytes(random.randint(0, 64))


_BYTES: tuple[Callable[[bytearray, Random], None], ...] = (_flip, _truncate, _insert, _overwrite, _repeat, _garbage)


def changed_value(valid: Any, random: Random) -> Any:
    """Replace, remove, rename or exchange parts of a value of lists and dicts."""
    made = [copy.deepcopy(valid)]
    for _ in range(random.randint(1, 3)):
        parts = list(_parts(made))
        holder, key = random.choice(parts)
        change = random.randrange(4)
        if change == 0 and holder is not made:
            del holder[key]
        elif change == 1 and isinstance(holder, dict):
            holder[random.choice(("", "x", "tensor", "dtype", key + "'"))] = holder.pop(key)
        elif change == 2:
            other, place = random.choice(parts)
            holder[key] = copy.deepcopy(other[place])
        else:
            holder[key] = copy.deepcopy(random.choice(JUNK))
    return made[0]


def _parts(holder: Any) -> list[tuple[Any, Any]]:
    """Return every container inside, with every key it has."""
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    found = [(holder, key) for key in keys]
    return found + [part for key in keys if isinstance(holder[key], dict | list) for part in _parts(holder[key])]


def changed_json(valid: Any, random: Random) -> bytes:
    """Return JSON of a changed value: sometimes with a key twice, or nested deeper than Python can go."""
    text = json.dumps(changed_value(valid, random)).encode()
    if random.random() < 0.1:
        return text.replace(b"{", b'{"seed": 1, "seed": 2, ', 1)
    if random.random() < 0.02:
        return b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    return text
