"""Byte-pair encoding learnt from counts of words, which add up across partitions as texts do not."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import pairwise

Pair = tuple[int, int]


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Count words as GPT-2 splits texts, each byte of them as the letter that stands for it."""
    from tokenizers.pre_tokenizers import ByteLevel  # an extra

    split = ByteLevel(add_prefix_space=False).pre_tokenize_str
    return Counter(word for text in texts for word, _ in split(text))


def merge_pairs(counts: Counter[str], vocabulary: dict[str, int], size: int) -> list[tuple[str, str]]:
    """Merge the most frequent pair of neighbouring tokens until there are `size`; the same as `tokenizers` would.

    Of pairs that are as frequent the one with the smallest numbers is merged first. Added to `vocabulary`.

    Returns
    -------
    list of (str, str)
        The merges, in their order.
    """
    learner = _Learner(counts, vocabulary)
    merges = []
    while len(vocabulary) < size and (pair := learner.most_frequent()) is not None:
        left, right = (learner.names[token] for token in pair)
        merges.append((left, right))
        learner.merge(pair)
    return merges


class _Learner:
    """Words as lists of tokens, and how often each pair of neighbours occurs."""

    def __init__(self, counts: Counter[str], vocabulary: dict[str, int]) -> None:
        self._vocabulary = vocabulary
        self.names = {number: name for name, number in vocabulary.items()}
        self._words = [[vocabulary[letter] for letter in word] for word in counts]
        self._times = list(counts.values())
        self._frequency: Counter[Pair] = Counter()
        self._where: defaultdict[Pair, set[int]] = defaultdict(set)
        for number, word in enumerate(self._words):
            self._change(number, word, 1)
        self._heap = [(-times, pair) for pair, times in self._frequency.items()]
        heapify(self._heap)

    def _change(self, number: int, word: list[int], sign: int) -> set[Pair]:
        """Count the pairs of a word in, or out."""
        pairs = list(pairwise(word))
        for pair in pairs:
            self._frequency[pair] += sign * self._times[number]
            if sign > 0:
                self._where[pair].add(number)
        return set(pairs)

    def most_frequent(self) -> Pair | None:
        """Return the pair to merge next, None if there is none left."""
        while self._heap:
            negative, pair = heappop(self._heap)
            frequency = self._frequency[pair]
            if frequency == -negative and frequency > 0:
                return pair
            if 0 < frequency < -negative:
                heappush(self._heap, (-frequency, pair))  # it has become rarer since it was pushed
        return None

    def merge(self, pair: Pair) -> None:
        """Make one token of a pair wherever it occurs."""
        name = self.names[pair[0]] + self.names[pair[1]]
        token = self._vocabulary.setdefault(name, len(self._vocabulary))
        self.names[token] = name
        touched: set[Pair] = set()
        for number in sorted(self._where.pop(pair)):
            before = self._words[number]
            after = _merged(before, pair, token)
            if len(after) < len(before):
                self._change(number, before, -1)
                touched |= self._change(number, after, 1)
                self._words[number] = after
        for changed in touched:
            heappush(self._heap, (-self._frequency[changed], changed))


def _merged(word: list[int], pair: Pair, token: int) -> list[int]:
    out: list[int] = []
    place = 0
    while place < len(word):
        if tuple(word[place : place + 2]) == pair:
            out.append(token)
            place += 2
        else:
            out.append(word[place])
            place += 1
    return out
