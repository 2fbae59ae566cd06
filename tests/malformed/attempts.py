"""Everything of ours that reads bytes it did not write, and what it may do with nonsense: raise an error of ours."""

import warnings
from collections.abc import Callable
from random import Random

from dasktrain.errors import DasktrainError
from tests.malformed import files, messages
from tests.malformed.watch import executions

#: name -> reads something that `random` damaged
READERS: dict[str, Callable[[Random], None]] = {
    "connection": messages.stream,
    "message": messages.message,
    "shared memory": messages.shared,
    "offer": messages.offered,
    "topic": messages.topic,
    "settings": messages.settings,
    "checkpoint": files.checkpoint,
    "result": files.result,
    "encoding": files.encoding,
    "recipe": files.recipe,
}
#: a connection may also end
EXPECTED = (DasktrainError, ConnectionResetError)


def outcome(reader: str, random: Random) -> str:
    """Return the name of the error that was raised, or "read" if what is left of the damage can be read.

    Raises
    ------
    AssertionError
        Code that came with the bytes ran.
    Exception
        Any that is not of ours.
    """
    messages.told(), files.made()  # which pickles what it trains on
    with executions() as ran, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is passed over, and of models that have become strange
        try:
            READERS[reader](random)
            name = "read"
        except EXPECTED as error:
            name = type(error).__name__
    assert not ran, f"{reader} ran {ran}"
    return name
