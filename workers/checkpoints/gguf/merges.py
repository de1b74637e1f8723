"""The merges of sentencepiece's BPE, which files do not have: each pair of tokens that makes a token.

A vocabulary of 262,144 tokens has 1.2 million places where one can be cut, half a million of them between
two tokens. Asking a dict of each takes two seconds of the interpreter; so all are looked up at once, by a
hash of what is on either side, and only what is found is compared. Where texts are met that share a hash,
which somebody made so, the dict is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2 ** 64
INVERSE = pow(FACTOR, -1, 1 << 64)
PLACES = 20  # bits of a hash that say where in a table to look
MOST_TABLES = 16  # into the fourth come one or two of a million tokens
Hashes = np.ndarray  # [n] uint64


class SameHashError(Exception):
    """Two texts have the same hash."""


def every_merge(tokens: Sequence[str], scores: Sequence[float], made: Sequence[int]) -> list[tuple[str, str]]:
    """All pairs of tokens that make one of `made`, in the order in which they are to be tried.

    That is by the score of what they make, the best first; of equal ones the longest first, so that one run
    of a letter grows before the next begins; and of the same token the shortest left part first.

    Args:
        tokens: unlike one another, none of them empty.
        scores: of at least as many.
        made: numbers of tokens that have two characters or more.
    """
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    order = np.array(made, np.int64)
    order = order[np.lexsort((-lengths[order], -np.array(scores)[order]))]  # stable
    try:
        return _by_hashes(tokens, lengths, order)
    except SameHashError:
        return _one_by_one(tokens, order)


def _one_by_one(tokens: Sequence[str], order: np.ndarray) -> list[tuple[str, str]]:
    """All merges of the tokens of these numbers."""
    known, found = frozenset(tokens), []
    for whole in _texts(tokens, order):
        cuts = ((whole[:place], whole[place:]) for place in range(1, len(whole)))
        found += [cut for cut in cuts if known.issuperset(cut)]
    return found


def _by_hashes(tokens: Sequence[str], lengths: np.ndarray, order: np.ndarray) -> list[tuple[str, str]]:
    """The same, quickly.

    Raises:
        SameHashError: it cannot be told by hashes.
    """
    starts = np.concatenate(([0], np.cumsum(lengths)))
    letters = np.frombuffer("".join(tokens).encode("utf-32-le", "surrogatepass"), np.uint32)
    sums, back = _sums(letters)
    known = _Known((sums[starts[1:]] - sums[starts[:-1]]) * back[starts[:-1]])

    counts = lengths[order] - 1  # places at which each can be cut
    whole = np.repeat(order, counts)
    ends = np.cumsum(counts)
    cut = starts[whole] + np.arange(1, len(whole) + 1) - np.repeat(ends - counts, counts)
    left = known.find((sums[cut] - sums[starts[whole]]) * back[starts[whole]])
    whole, cut, left = (each[left >= 0] for each in (whole, cut, left))
    right = known.find((sums[starts[whole + 1]] - sums[cut]) * back[cut])
    whole, cut, left, right = (each[right >= 0] for each in (whole, cut, left, right))
    before, behind = cut - starts[whole], starts[whole + 1] - cut
    are_long = (lengths[left] == before).all() and (lengths[right] == behind).all()
    parts = ((starts[whole], starts[left], before), (cut, starts[right], behind))
    if not are_long or not all(_equal(letters, *part) for part in parts):
        raise SameHashError("a part of a token has that of another token")
    return list(zip(_texts(tokens, left), _texts(tokens, right), strict=True))


def _equal(letters: np.ndarray, ours: np.ndarray, theirs: np.ndarray, lengths: np.ndarray) -> bool:
    """Whether so many letters from each of our places on are those from their place on.

    All texts at once, a letter after the other: texts made of half a million parts take four times as long.
    """
    while len(ours):
        if (letters[ours] != letters[theirs]).any():
            return False
        more = lengths > 1
        ours, theirs, lengths = ours[more] + 1, theirs[more] + 1, lengths[more] - 1
    return True


def _texts(tokens: Sequence[str], numbers: np.ndarray) -> Iterator[str]:
    return map(tokens.__getitem__, numbers.tolist())


def _sums(letters: np.ndarray) -> tuple[Hashes, Hashes]:
    """Sums by which the hash of letters `a` to `b` is `(sums[b] - sums[a]) * back[a]`, modulo 2 ** 64."""
    powers, back = (_powers(factor, len(letters) + 1) for factor in (FACTOR, INVERSE))
    sums = np.zeros(len(letters) + 1, np.uint64)
    np.cumsum(_mixed(letters) * powers[:-1], out=sums[1:])
    return sums, back


def _powers(factor: int, count: int) -> Hashes:
    powers = np.full(count, factor, np.uint64)
    powers[0] = 1
    return np.cumprod(powers)


def _mixed(letters: np.ndarray) -> Hashes:
    """Letters as numbers without a pattern (the finaliser of splitmix64), so that sums rarely meet."""
    x = letters.astype(np.uint64) + np.uint64(FACTOR)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class _Known:
    """Tokens by their hashes: in a table, and in another one those whose place there is taken.

    Args:
        numbers: of the tokens whose hashes are given; None: all.

    Raises:
        SameHashError: two have the same one, of 2 ** 64.
    """

    def __init__(self, hashes: Hashes, numbers: np.ndarray | None = None, level: int = 0) -> None:
        self._hashes, self._factor = hashes, np.uint64(pow(FACTOR, level, 1 << 64))
        numbers = np.arange(len(hashes), dtype=np.int32) if numbers is None else numbers
        places = self._places(hashes[numbers])
        self._table = np.full(1 << PLACES, -1, np.int32)
        self._table[places] = numbers
        there = self._table[places]
        elsewhere = there != numbers
        if level == MOST_TABLES or (hashes[there[elsewhere]] == hashes[numbers[elsewhere]]).any():
            raise SameHashError("two tokens have it")
        self._are_shared = np.zeros(1 << PLACES, bool)
        self._are_shared[places[elsewhere]] = True
        self._others = _Known(hashes, numbers[elsewhere], level + 1) if elsewhere.any() else None

    def find(self, hashes: Hashes) -> np.ndarray:  # [n] int32
        """The number of the token that has each; -1 where none has."""
        places = self._places(hashes)
        found = self._table[places]
        is_another = self._hashes[found] != hashes  # of an empty place: whatever the last token's is
        if self._others is not None:
            left = np.flatnonzero(is_another & self._are_shared[places])
            found[is_another] = -1
            found[left] = self._others.find(hashes[left])
        else:
            found[is_another] = -1
        return found

    def _places(self, hashes: Hashes) -> np.ndarray:  # [n] int64
        return (hashes * self._factor >> np.uint64(64 - PLACES)).astype(np.int64)
