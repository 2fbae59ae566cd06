"""From texts to numbers and back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import index
from typing import Any, Protocol

import numpy as np

from dasktrain.data.ragged import Ragged
from dasktrain.errors import BadInput, DataError

#: what tokenizers call the tokens that a batch needs; the first that a tokenizer has is taken
PAD = ("[PAD]", "<pad>", "<|pad|>", "<|padding|>")
START = ("[BOS]", "<bos>", "<s>", "<|startoftext|>", "[CLS]")
END = ("[EOS]", "<eos>", "</s>", "<|endoftext|>", "[SEP]")


class Tokenizer(Protocol):
    """What turns texts into tokens 0 to `size` - 1; None: any number of them."""

    @property
    def size(self) -> int | None:
        """Tokens it knows."""

    def encode(self, texts: Sequence[str], longest: int | None) -> tuple[Ragged, int]:
        """Return the tokens of each text and how many texts were longer than `longest` tokens, and were cut to that.

        None: texts are parts of a stream. They are of any length, and get no tokens that say where they begin and end.
        """

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""

    def token(self, names: Sequence[str]) -> int | None:
        """Return the first of some tokens that it has."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values from which `tokenizer_from_json` makes an equal one."""


@dataclass(frozen=True)
class Bytes:
    """A token for each byte of UTF-8."""

    size = 256

    def encode(self, texts: Sequence[str], longest: int | None) -> tuple[Ragged, int]:
        """Return bytes."""
        found = Ragged.of_bytes([text.encode() for text in texts])
        return cut_to(found, longest)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return text, the replacement character for what is not UTF-8."""
        return bytes(tokens).decode(errors="replace")

    def token(self, names: Sequence[str]) -> int | None:
        """None of them is a byte."""
        return None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"bytes": True}


@dataclass(frozen=True)
class HuggingFace:
    """A tokenizer of the `tokenizers` library, as its JSON."""

    json: str

    @property
    def size(self) -> int:
        """Tokens it knows."""
        return 1 + max(_built(self.json, None).get_vocab().values(), default=-1)  # their numbers may have gaps

    def encode(self, texts: Sequence[str], longest: int | None) -> tuple[Ragged, int]:
        """Return tokens, with those that its post-processor adds unless texts are parts of a stream."""
        tokenizer = _built(self.json, longest)
        if longest is not None and longest <= (added := tokenizer.num_special_tokens_to_add(False)):
            raise DataError(
                f"A text must have room for more than the {added} tokens that its tokenizer adds, however it may have "
                f"{longest} in all; use a larger context"
            )
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=longest is not None)
        cut = sum(bool(encoding.overflowing) for encoding in encodings) if longest is not None else 0
        return Ragged.of([encoding.ids for encoding in encodings], np.int32), cut

    def decode(self, tokens: Sequence[int]) -> str:
        """Return text, without special tokens."""
        return str(_built(self.json, None).decode(list(tokens)))

    def token(self, names: Sequence[str]) -> int | None:
        """Return the first of some tokens that it has."""
        found = (_built(self.json, None).token_to_id(name) for name in names)
        return next((token for token in found if token is not None), None)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"tokenizers": self.json}


@lru_cache(maxsize=8)
def _built(json: str, longest: int | None) -> Any:
    from tokenizers import Tokenizer as Library  # an extra

    tokenizer = Library.from_str(json)
    tokenizer.no_padding()
    if longest is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(longest)
    return tokenizer


@dataclass(frozen=True)
class Function:
    """Any function from a text to its tokens."""

    function: Callable[[str], Sequence[int]]
    size: int | None = None

    def encode(self, texts: Sequence[str], longest: int | None) -> tuple[Ragged, int]:
        """Call it for each text."""
        returned = [self.function(text) for text in texts]
        try:
            found = Ragged.of([[index(token) for token in tokens] for tokens in returned], np.int32)
        except (TypeError, OverflowError) as error:
            raise DataError(f"A tokenizer must return whole numbers for a text, however {error}") from error
        low, high = int(found.values.min(initial=0)), int(found.values.max(initial=0))
        if low < 0 or (self.size is not None and high >= self.size):
            raise DataError(
                f"Tokens must be from 0 to {'any number' if self.size is None else self.size - 1}, however the "
                f"tokenizer returned {low if low < 0 else high}; give vocab_size= the number of tokens there are"
            )
        return cut_to(found, longest)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return what its own ``decode`` does."""
        decode = getattr(self.function, "decode", None)
        if decode is None:
            raise BadInput(f"A tokenizer must have decode(tokens) to write texts, however {self.function} has none")
        return str(decode(list(tokens)))

    def token(self, names: Sequence[str]) -> int | None:
        """Say that it knows none of them."""
        return None

    def to_json(self) -> dict[str, Any]:
        """Return its size: functions are not saved."""
        function = self.function
        name = function.name if isinstance(function, NotSaved) else getattr(function, "__name__", str(function))
        return {"function": name, "size": self.size}


def cut_to(tokens: Ragged, longest: int | None) -> tuple[Ragged, int]:
    """Cut rows to `longest` tokens, and count those that were longer."""
    if longest is None:
        return tokens, 0
    cut = int((tokens.lengths > longest).sum())
    return (tokens.cut(longest) if cut else tokens), cut


@dataclass(frozen=True)
class NotSaved:
    """Stands for a function that a saved model was trained with."""

    name: str

    def __call__(self, text: str) -> Sequence[int]:
        """Raise BadInput."""
        raise BadInput(
            f"A tokenizer must be at hand, however that of a saved model, {self.name!r}, is a function, and those are "
            "not saved; give it to dt.load as tokenizer="
        )

    decode = __call__


def as_tokenizer(given: Any, size: int | None = None) -> Tokenizer:
    """Return a tokenizer for what a user may give as one."""
    if given is None or given == "bytes":
        return Bytes()
    if isinstance(given, Bytes | HuggingFace | Function):
        return given
    given = getattr(given, "backend_tokenizer", given)  # of transformers' fast tokenizers
    if hasattr(given, "encode_batch_fast") and hasattr(given, "to_str"):
        return HuggingFace(given.to_str())
    if callable(given):
        return Function(given, size)
    raise BadInput(
        f"A tokenizer must be 'bytes', a tokenizers.Tokenizer or a function of a text, however it is {type(given)}"
    )


def tokenizer_from_json(plain: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer whose ``to_json`` gave `plain`."""
    if "bytes" in plain:
        return Bytes()
    if "tokenizers" in plain:
        return HuggingFace(plain["tokenizers"])
    return Function(NotSaved(plain["function"]), plain["size"])


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and the special tokens that batches need: its own if it has them, or new ones behind its own.

    Attributes
    ----------
    size : int
        Tokens a model must know, special ones included.
    pad, start, end : int
        What fills a row, begins a text that is written, and ends one.
    """

    tokenizer: Tokenizer
    size: int
    pad: int
    start: int
    end: int

    @staticmethod
    def of(tokenizer: Tokenizer, top: int) -> "Vocabulary":
        """Make it for a tokenizer whose largest token is `top` in the data, if it does not say itself."""
        size = top + 1 if tokenizer.size is None else tokenizer.size
        special = []
        for names in (PAD, START, END):
            token = tokenizer.token(names)
            special.append(size if token is None else token)
            size += token is None
        return Vocabulary(tokenizer, size, *special)

    @property
    def dtype(self) -> Any:
        """The smallest that holds all tokens and that torch gathers."""
        return np.int16 if self.size <= np.iinfo(np.int16).max else np.int32

    def encode(self, texts: Sequence[str], longest: int | None) -> tuple[Ragged, int]:
        """Return what the tokenizer does; an empty text is the one token `end`, unless it is part of a stream."""
        tokens, cut = self.tokenizer.encode(texts, longest)
        self.check(int(tokens.values.max(initial=0)))
        return (tokens if longest is None else tokens.filled(self.end)), cut

    def check(self, top: int) -> None:
        """Refuse a token that a model trained with this vocabulary does not know."""
        if top >= self.size:
            raise DataError(
                f"Tokens must be below {self.size}, as in training, however the tokenizer returned {top}; "
                "give vocab_size= the number of tokens there are, and train again"
            )

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens up to the first `end`, without special ones."""
        kept: list[int] = []
        for token in tokens:
            if token == self.end:
                break
            if token not in (self.pad, self.start):
                kept.append(int(token))
        return self.tokenizer.decode(kept)

    def with_function(self, function: Callable[[str], Sequence[int]]) -> "Vocabulary":
        """Return it with a function in the place of one that was not saved."""
        return replace(self, tokenizer=Function(function, self.tokenizer.size)) if self._unsaved else self

    @property
    def _unsaved(self) -> bool:
        return isinstance(self.tokenizer, Function) and isinstance(self.tokenizer.function, NotSaved)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"tokenizer": self.tokenizer.to_json(), **{name: getattr(self, name) for name in _PARTS}}

    @staticmethod
    def from_json(plain: dict[str, Any]) -> "Vocabulary":
        """Return the vocabulary whose `to_json` gave `plain`."""
        return Vocabulary(tokenizer_from_json(plain["tokenizer"]), *(plain[name] for name in _PARTS))


_PARTS = ("size", "pad", "start", "end")
