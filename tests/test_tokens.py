"""Tokenizers: texts come back, what is cut is counted, and BPE merges are those of the `tokenizers` library."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask.bag as db
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

import dasktrain as dt
from dasktrain.data.ragged import Ragged
from dasktrain.data.tokens import Bytes, Function, HuggingFace, Vocabulary, as_tokenizer, tokenizer_from_json
from dasktrain.errors import BadInput, DataError

few = settings(max_examples=30, deadline=None)
WORDS = ["[UNK]", "[CLS]", "[SEP]", "to", "be", "or", "not"]


def words(*more: str, wrapped: bool = False) -> Tokenizer:
    """Return a tokenizer of a few words; if asked for one that says where a text begins and ends."""
    vocabulary = {word: number for number, word in enumerate([*WORDS, *more])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if wrapped:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    return tokenizer


def lists(tokens: Ragged) -> list[list[int]]:
    return [tokens.row(number).tolist() for number in range(tokens.num_rows)]


# -- bytes ------------------------------------------------------------------------------------------------------


@given(st.lists(st.text()))
def test_text_comes_back_from_its_bytes(texts: list[str]) -> None:
    tokens, cut = Bytes().encode(texts, None)
    assert lists(tokens) == [list(text.encode()) for text in texts]
    assert [Bytes().decode(row) for row in lists(tokens)] == texts
    assert cut == 0


@given(st.lists(st.text(max_size=9)), st.integers(1, 6))
def test_text_that_is_too_long_is_cut_and_counted(texts: list[str], longest: int) -> None:
    tokens, cut = Bytes().encode(texts, longest)
    assert lists(tokens) == [list(text.encode())[:longest] for text in texts]
    assert cut == sum(len(text.encode()) > longest for text in texts)


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert Bytes().decode(list("aä".encode())[:2]) == "a\N{REPLACEMENT CHARACTER}"


# -- tokenizers of the library ----------------------------------------------------------------------------------


def test_words_are_the_librarys_tokens() -> None:
    tokenizer = as_tokenizer(words())
    assert isinstance(tokenizer, HuggingFace)
    assert tokenizer.size == len(WORDS)
    tokens, cut = tokenizer.encode(["to be or not", "", "be that"], None)
    assert (lists(tokens), cut) == ([[3, 4, 5, 6], [], [4, 0]], 0)
    assert tokens.values.dtype == np.int32
    assert tokenizer.decode([3, 4]) == "to be"


@pytest.mark.parametrize(
    ("longest", "found", "cut"),
    [
        (None, [[3, 4, 5, 6], [4], []], 0),  # parts of a stream: they neither begin nor end
        (6, [[1, 3, 4, 5, 6, 2], [1, 4, 2], [1, 2]], 0),
        (5, [[1, 3, 4, 5, 2], [1, 4, 2], [1, 2]], 1),
        (3, [[1, 3, 2], [1, 4, 2], [1, 2]], 1),
    ],
)
def test_tokens_that_a_processor_adds_are_in_the_length(longest: int | None, found: list[Any], cut: int) -> None:
    tokens, was_cut = as_tokenizer(words(wrapped=True)).encode(["to be or not", "be", ""], longest)
    assert (lists(tokens), was_cut) == (found, cut)


def test_length_without_room_for_a_token_is_refused() -> None:
    with pytest.raises(
        DataError, match="room for more than the 2 tokens that its tokenizer adds, however it may have 1"
    ):
        as_tokenizer(words(wrapped=True)).encode(["to be or not", ""], 1)


def test_settings_of_the_librarys_own_do_not_cut_or_pad() -> None:
    tokenizer = words()
    tokenizer.enable_truncation(1)
    tokenizer.enable_padding(length=5)
    assert lists(as_tokenizer(tokenizer).encode(["to be or", "not"], None)[0]) == [[3, 4, 5], [6]]
    assert lists(as_tokenizer(tokenizer).encode(["to be or", "not"], 4)[0]) == [[3, 4, 5], [6]]


def test_numbers_of_tokens_may_have_gaps() -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "to": 3, "be": 9}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    vocabulary = Vocabulary.of(as_tokenizer(tokenizer), 0)
    assert (vocabulary.size, vocabulary.pad, vocabulary.start, vocabulary.end) == (13, 10, 11, 12)
    assert lists(vocabulary.encode(["to be"], None)[0]) == [[3, 9]]


def test_fast_tokenizer_of_transformers_is_taken_by_what_is_in_it() -> None:
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words(wrapped=True), unk_token="[UNK]")
    found = as_tokenizer(fast)
    assert isinstance(found, HuggingFace)
    assert lists(found.encode(["to be"], 9)[0]) == [[1, 3, 4, 2]]


# -- functions --------------------------------------------------------------------------------------------------


def letters(text: str) -> list[int]:
    return [ord(letter) - ord("a") for letter in text]


def test_function_is_called_for_each_text() -> None:
    tokenizer = as_tokenizer(letters, 26)
    assert isinstance(tokenizer, Function)
    assert lists(tokenizer.encode(["ab", "", "z"], None)[0]) == [[0, 1], [], [25]]
    tokens, cut = tokenizer.encode(["abc", "z"], 2)
    assert (lists(tokens), cut) == ([[0, 1], [25]], 1)


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        ("a{", 26, "from 0 to 25, however the tokenizer returned 26; give vocab_size="),
        ("aZ", 26, "from 0 to 25, however the tokenizer returned -7"),
        ("aZ", None, "from 0 to any number, however the tokenizer returned -7"),
    ],
)
def test_token_that_a_function_should_not_return_is_refused(text: str, size: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_tokenizer(letters, size).encode(["b", text], None)


@pytest.mark.parametrize(
    "function",
    [str.split, lambda text: [0.5], lambda text: None, lambda text: 3, lambda text: [2**40], lambda text: [[1]]],
    ids=["words", "fractions", "nothing", "a number", "too large", "nested"],
)
def test_function_that_does_not_return_whole_numbers_is_refused(function: Any) -> None:
    with pytest.raises(DataError, match="must return whole numbers for a text, however"):
        as_tokenizer(function).encode(["some words"], None)


@pytest.mark.parametrize("kind", [np.array, tuple, lambda tokens: np.array(tokens, dtype=np.uint8)])
def test_function_may_return_any_sequence(kind: Any) -> None:
    assert lists(as_tokenizer(lambda text: kind([1, 2])).encode(["x"], None)[0]) == [[1, 2]]


def test_function_writes_if_it_can() -> None:
    class Letters:
        def __call__(self, text: str) -> Sequence[int]:
            return letters(text)

        def decode(self, tokens: Sequence[int]) -> str:
            return "".join(chr(token + ord("a")) for token in tokens)

    assert as_tokenizer(Letters()).decode([1, 0]) == "ba"
    with pytest.raises(BadInput, match=r"must have decode\(tokens\) to write texts"):
        as_tokenizer(letters).decode([1, 0])


@pytest.mark.parametrize("wrong", ["bpe", 3, ["to", "be"]])
def test_what_is_no_tokenizer_is_refused(wrong: Any) -> None:
    with pytest.raises(BadInput, match=r"must be 'bytes', a tokenizers\.Tokenizer or a function"):
        as_tokenizer(wrong)


# -- vocabularies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "size", "specials"),
    [
        ([], 8, [7, 1, 2]),  # [CLS] and [SEP] begin and end; padding is added
        (["[PAD]", "<s>", "</s>"], 10, [7, 8, 9]),  # better names are taken before those
        (["[PAD]", "[EOS]"], 9, [7, 1, 8]),
    ],
)
def test_special_tokens_are_the_tokenizers_own_or_added(more: list[str], size: int, specials: list[int]) -> None:
    vocabulary = Vocabulary.of(as_tokenizer(words(*more)), 0)
    assert [vocabulary.pad, vocabulary.start, vocabulary.end] == specials
    assert vocabulary.size == size


@pytest.mark.parametrize(("tokenizer", "size"), [(Bytes(), 256), (Function(letters, 26), 26), (Function(letters), 8)])
def test_special_tokens_follow_those_of_others(tokenizer: Any, size: int) -> None:
    vocabulary = Vocabulary.of(tokenizer, 7)
    assert (vocabulary.pad, vocabulary.start, vocabulary.end) == (size, size + 1, size + 2)
    assert vocabulary.size == size + 3


def test_empty_text_is_an_end_unless_it_is_part_of_a_stream() -> None:
    vocabulary = Vocabulary.of(Bytes(), 0)
    assert lists(vocabulary.encode(["", "a"], 5)[0]) == [[258], [97]]
    assert lists(vocabulary.encode(["", "a"], None)[0]) == [[], [97]]


@given(st.text(), st.text())
def test_decoding_stops_at_the_end_and_leaves_special_tokens_out(text: str, behind: str) -> None:
    vocabulary = Vocabulary.of(Bytes(), 0)
    row = [vocabulary.start, *text.encode(), vocabulary.pad, vocabulary.end, *behind.encode()]
    assert vocabulary.decode(row) == text


def test_token_that_training_did_not_have_is_refused() -> None:
    vocabulary = Vocabulary.of(as_tokenizer(letters), 3)
    with pytest.raises(DataError, match="below 7, as in training, however the tokenizer returned 25"):
        vocabulary.encode(["z"], None)


@pytest.mark.parametrize("tokenizer", [Bytes(), as_tokenizer(words()), Function(letters, 26)])
def test_vocabulary_comes_back_from_json(tokenizer: Any) -> None:
    vocabulary = Vocabulary.of(tokenizer, 0)
    back = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
    assert back.to_json() == vocabulary.to_json()
    if not isinstance(tokenizer, Function):
        assert back == vocabulary


def test_function_does_not_come_back_and_says_so() -> None:
    back = tokenizer_from_json(json.loads(json.dumps(as_tokenizer(letters, 26).to_json())))
    assert back.size == 26
    for use in (lambda: back.encode(["a"], None), lambda: back.decode([1])):
        with pytest.raises(BadInput, match="however that of a saved model, 'letters', is a function"):
            use()


def test_small_vocabularies_are_kept_in_two_bytes() -> None:
    assert [Vocabulary(Bytes(), size, 0, 0, 0).dtype for size in (32_767, 32_768)] == [np.int16, np.int32]


# -- byte-pair encoding -----------------------------------------------------------------------------------------


def librarys(texts: Sequence[str], size: int, specials: Sequence[str]) -> dict[str, Any]:
    """Train as the library does, and return what of its JSON matters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
        ),
    )
    return learnt(tokenizer)


def learnt(tokenizer: Tokenizer) -> dict[str, Any]:
    model = json.loads(tokenizer.to_str())["model"]
    return {name: model[name] for name in ("vocab", "merges")}


some_texts = st.lists(st.text("ab ä\n") | st.sampled_from(["aaaa", "abab ab", "banana bandana"]), min_size=1)


@few
@given(some_texts.filter(any), st.integers(257, 300), st.sampled_from([("<|endoftext|>",), (), ("[PAD]", "</s>")]))
def test_bpe_is_what_the_library_learns(texts: list[str], size: int, specials: tuple[str, ...]) -> None:
    size += len(specials)
    found = dt.text.train_bpe(texts, size, specials=specials)
    assert learnt(found) == librarys(texts, size, specials)


def test_bpe_of_a_real_text_is_what_the_library_learns() -> None:
    lines = Path(json.decoder.__file__).read_text().splitlines(keepends=True)
    found = learnt(dt.text.train_bpe(db.from_sequence(lines, npartitions=5), 1000))
    assert found == librarys(lines, 1000, ["<|endoftext|>"])
    assert len(found["vocab"]) == 1000


@few
@given(some_texts.filter(any), st.integers(1, 40))
def test_bpe_is_the_same_for_any_partitioning(texts: list[str], partitions: int) -> None:
    one = dt.text.train_bpe(db.from_sequence(texts, npartitions=1), 280)
    other = dt.text.train_bpe(db.from_sequence(texts, npartitions=partitions), 280)
    assert one.to_str() == other.to_str()


@given(st.lists(st.text(), min_size=1))
def test_text_comes_back_from_bpe(texts: list[str]) -> None:
    tokenizer = as_tokenizer(BPE)
    tokens, _ = tokenizer.encode(texts, None)
    assert [tokenizer.decode(row) for row in lists(tokens)] == texts


BPE = dt.text.train_bpe(["to be or not to be, that is the question"], 280)


def test_bpe_ends_documents_with_its_special_token() -> None:
    vocabulary = Vocabulary.of(as_tokenizer(BPE), 0)
    assert (vocabulary.end, vocabulary.pad, vocabulary.start) == (0, 280, 281)


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        (["to be"], 256, "size must be at least 257, the bytes and the special tokens, however it is 256"),
        (["", ""], 300, "must be texts to train a tokenizer on, however all of them are empty"),
        ([], 300, "must be texts to train a tokenizer on"),
        (["to be", None], 300, "must be a string, however 1 of 1 in partition 1"),
        ([b"\xff"], 300, "must be UTF-8, however in partition 0"),
    ],
)
def test_bpe_of_what_is_no_text_is_refused(texts: list[Any], size: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        dt.text.train_bpe(texts, size)
