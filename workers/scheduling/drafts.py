"""Guesses at how a sequence goes on, several tokens of which the next step checks at once.

Much of what is written stands in the text already: code that is edited, a document that is quoted, a name
that comes again. Where the last tokens stood before, what followed them there is the guess (prompt lookup,
https://arxiv.org/abs/2304.08487). A step computes a few rows in about the time of one, for reading weights is
what takes it, so a guess that is wrong costs little; and no answer changes: a token is kept where it is the
one that is chosen at its place anyway, with the draw that belongs to that place.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Protocol

from ipc.worker_messages import FREE_ROWS, Speculation
from workers.step.plan import MOST_AHEAD, UNKNOWN

FIRST_LENGTH = 4  # of a guess, before anything is known
TRIAL = 16  # tokens that are guessed before it is judged how that goes
WORTH = 1 / 3  # of them were right at least, or no more are guessed for a while
FIRST_REST, LONGEST_REST = 32, 1024  # tokens; each rest without a good trial before it is twice as long

TAKEN_IN = 4096  # tokens that one look at a text takes in: about a millisecond
PLACES = 8  # that are compared, the newest ones
LONGEST_MATCH = 16  # tokens; no place can be a better one


class Drafter(Protocol):
    """Guesses for one sequence."""

    def draft(self, token_ids: array[int], most: int) -> list[int]:
        """At most so many tokens that may come next.

        Args:
            token_ids: of the sequence so far: at each call the ones from before, and more.
        """
        ...


class PromptLookup:
    """What followed the longest of the last places in the sequence that read as its end does.

    Places are found by two tokens, so a token takes the same small time whatever the text is.
    """

    def __init__(self) -> None:
        self._newest: dict[int, int] = {}  # two tokens -> the place behind them, where they stood last
        self._before = array("i", (-1, -1))  # of each place, the one before it behind the same two tokens

    def draft(self, token_ids: array[int], most: int) -> list[int]:
        """See `Drafter`. Of a long text the first calls take in a part each, and say nothing."""
        length = len(token_ids)
        self._take_in(token_ids, min(length, len(self._before) + TAKEN_IN))
        if len(self._before) < length or length < 2:
            return []
        place = self._newest.get(_pair(token_ids, length), -1)
        best, longest = -1, 0
        for _ in range(PLACES):
            if place < 0:
                break
            if (match := _match(token_ids, place)) > longest:
                best, longest = place, match
            if longest == LONGEST_MATCH:
                break
            place = self._before[place]
        if best < 0:
            return []
        drafts = token_ids[best : best + most].tolist()
        period = length - best  # what runs into its own end goes round
        while len(drafts) < most:
            drafts.append(drafts[len(drafts) - period])
        return drafts

    def _take_in(self, token_ids: array[int], end: int) -> None:
        """Remember the places up to `end`, that one not included: it is the end of the text."""
        newest, before = self._newest, self._before
        for place in range(len(before), end):
            pair = _pair(token_ids, place)
            before.append(newest.get(pair, -1))
            newest[pair] = place


def _pair(token_ids: array[int], place: int) -> int:
    """A number for the two tokens before a place."""
    return token_ids[place - 2] << 32 | token_ids[place - 1]


def _match(token_ids: array[int], place: int) -> int:
    """How many tokens before a place are those at the end."""
    most = min(place, LONGEST_MATCH)
    length = len(token_ids)
    return next((n for n in range(most) if token_ids[place - 1 - n] != token_ids[length - 1 - n]), most)


class MtpHeads:
    """What a head of the model says, which is known when the step that checks it has begun: how many."""

    def draft(self, token_ids: array[int], most: int) -> list[int]:
        """See `Drafter`."""
        return [UNKNOWN] * min(most, MOST_AHEAD)


class Guessing:
    """How much is guessed for one sequence, by how well that went."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._length = FIRST_LENGTH
        self._guessed = self._right = 0  # tokens of this trial
        self._rest = FIRST_REST
        self._rests_until = 0  # tokens of the sequence
        self._vain = 0  # times in a row that nothing was found to guess

    def rests(self, num_tokens: int) -> bool:
        """Whether nothing is guessed, now that it has so many tokens."""
        return num_tokens < self._rests_until

    def draft(self, token_ids: array[int], most: int) -> list[int]:
        """At most `most` tokens that may come next."""
        if self.rests(len(token_ids)):
            return []
        found = self._drafter.draft(token_ids, min(most, self._length))
        self._vain = 0 if found else self._vain + 1
        if self._vain == TRIAL:  # nothing is as it was before: whoever could go ahead is not held up for it
            self._vain, self._rests_until = 0, len(token_ids) + TRIAL
        return found

    def judge(self, guessed: int, right: int, num_tokens: int) -> None:
        """Take in how many of the tokens guessed last were right; it has `num_tokens` now."""
        self._length = min(2 * self._length, FREE_ROWS) if right == guessed else right + 1
        self._guessed += guessed
        self._right += right
        if self._guessed < TRIAL:
            return
        if self._right < WORTH * self._guessed:
            self._rests_until, self._length = num_tokens + self._rest, 1
            self._rest = min(2 * self._rest, LONGEST_REST)
        else:
            self._rest = FIRST_REST
        self._guessed = self._right = 0


DRAFTERS: dict[Speculation, Callable[[], Drafter]] = {"ngram": PromptLookup, "mtp": MtpHeads}
