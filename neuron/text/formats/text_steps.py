"""Steps that read the text of an answer as it comes, written as if all of it were there: each waits for more.

What a step took is kept, until a call is sure to be one: see `call_parser.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator, Sequence
from functools import lru_cache
from typing import TypeVar

import msgspec

from neuron.text.formats.json_scan import JsonScan, end_of
from neuron.text.tags import SPACE, TOKEN

T = TypeVar("T")
Steps = Generator[None, None, T]


class NoCall(Exception):
    """What began as a call is none."""


class Unfinished(Exception):
    """The text is over, and what stands there is not."""


class TextSteps:
    """The steps for text and JSON. No character is looked at more than a few times, however the text was cut.

    Args:
        tokens: parts of tags that are tokens of their own, and count only as such: behind a `TOKEN`.
    """

    def __init__(self, tokens: Collection[str] = ()) -> None:
        self.cut = False  # the answer did not come to its own end
        self._tokens = tuple(tokens)
        self._text, self._at = "", 0  # what came, and how much of it was read
        self._finished = False
        self._kept: list[str] = []  # what was read and may turn out to be text
        self._in_call = False  # what is read is part of a call, and nothing is kept

    def more(self) -> Steps[bool]:
        """Wait for more text; False when none comes."""
        length = len(self._text) - self._at
        while not self._finished:
            yield
            if len(self._text) - self._at > length:
                return True
        return False

    def peek(self) -> Steps[str]:
        """The next character; nothing when the text is over."""
        while self._at == len(self._text):
            if not (yield from self.more()):
                return ""
        return self._text[self._at]

    def space(self) -> Steps[None]:
        """Skip space."""
        while (yield from self.peek()) in (*SPACE,):
            self._take(end_of(_SPACES, self._text, self._at))

    def accept(self, *marks: str) -> Steps[str | None]:
        """Take the first of `marks` that the text goes on with; None when it goes on otherwise.

        Raises:
            Unfinished: the text is over within one of them.
        """
        spelled = self._spelled(marks)
        while True:
            for mark, written in zip(marks, spelled, strict=True):
                if self._text.startswith(written, self._at):
                    self._take(self._at + len(written))
                    return mark
                if not self._finished and written.startswith(self._rest(written)):
                    break
            else:
                if self._at < len(self._text) and any(each.startswith(self._rest(each)) for each in spelled):
                    self._take(len(self._text))
                    raise Unfinished
                return None
            yield from self.more()

    def expect(self, *marks: str) -> Steps[str]:
        """The same, where nothing else may follow.

        Raises:
            NoCall: it does.
            Unfinished: the text is over.
        """
        mark = yield from self.accept(*marks)
        if mark is None:
            raise NoCall if (yield from self.peek()) else Unfinished
        return mark

    def until(self, *marks: str, limit: int | None = None) -> Steps[tuple[str, str]]:
        """Take the text up to the first of `marks`, none of which begins another, and this mark.

        Args:
            limit: characters that there may be before it.

        Raises:
            NoCall: there are more. Nothing was taken.
            Unfinished: none of the marks came; with the text that did.
        """
        if limit is not None:
            return (yield from self._within(limit, marks))
        said: list[str] = []
        while (mark := self._find(marks, said.append)) is None:
            if not (yield from self.more()):
                said.append(self._text[self._at :])
                self._take(len(self._text))
                raise Unfinished("".join(said))
        return "".join(said), mark

    def _within(self, limit: int, marks: tuple[str, ...]) -> Steps[tuple[str, str]]:
        """The same, of few characters: they are looked at as a whole."""
        spelled = self._spelled(marks)
        while True:
            end = self._at + limit + max(map(len, spelled))
            found = _any_of(spelled).search(self._text, self._at, end)
            if found is not None:
                said = self._text[self._at : found.start()]
                self._take(found.end())
                return said.replace(TOKEN, ""), marks[spelled.index(found[0])]
            if len(self._text) >= end:
                raise NoCall
            if not (yield from self.more()):
                said = self._text[self._at :]
                self._take(len(self._text))
                raise Unfinished(said)

    def ahead(self, *groups: tuple[str, ...]) -> Steps[bool]:
        """Whether the text goes on with a mark of each group in turn, with space between them. An empty group
        stands for the end of the text. Nothing is taken.

        A text that is over before the last group goes on with it, as far as anybody can tell.

        Raises:
            Unfinished: the answer was cut, so nobody can.
        """
        while True:
            place, sure = self._place(groups)
            if sure:
                return place
            if not (yield from self.more()):
                if self.cut:
                    raise Unfinished
                return True

    def _place(self, groups: tuple[tuple[str, ...], ...]) -> tuple[bool, bool]:
        """Whether they follow, and whether that is sure."""
        at = self._at
        for group in groups:
            at = end_of(_GAP, self._text, at)
            if at == len(self._text):
                return not group, False
            for mark in self._spelled(group):
                if self._text.startswith(mark, at):
                    at += len(mark)
                    break
                if mark.startswith(self._text[at : at + len(mark)]):
                    return True, False
            else:
                return False, True
        return True, True

    def text_until(
        self, ends: Sequence[tuple[str, tuple[tuple[str, ...], ...]]], hand_out: Callable[[str], None]
    ) -> Steps[str]:
        """Hand out text up to one of `ends`, which is taken and returned; nothing when the text is over. The
        beginning of an end that stands there then belongs to nobody.

        Args:
            ends: marks, and what has to come behind each so that it is one: see `ahead`. Where something else
                comes, it is text.

        Raises:
            Unfinished: the answer was cut.
        """
        behind = dict(ends)
        marks = (*behind,)
        while True:
            mark = self._find(marks, hand_out)
            if mark is None:
                if not (yield from self.more()):
                    if self.cut:
                        raise Unfinished
                    self._take(len(self._text))
                    return ""
            elif (yield from self.ahead(*behind[mark])):
                return mark
            else:
                hand_out(mark)

    # --- JSON ----------------------------------------------------------------------------------------------

    def value(
        self, *ends: str, opened: str = "", hand_out: Callable[[str], None] | None = None
    ) -> Steps[str]:
        """Take a JSON value, mended where it is sure how, else as it was written.

        Args:
            ends: marks at which it is over, complete or not, outside of strings; without any, it is over
                where something comes that is no JSON.
            opened: brackets of it that were read.
            hand_out: gets it as it comes.

        Raises:
            Unfinished: the answer was cut.
        """
        scan, said = JsonScan(opened), []
        while not scan.whole:
            piece, at = scan.read(self._text, self._at, self._finished)
            self._take(at)
            if piece := piece.replace(TOKEN, ""):
                said.append(piece)
                if hand_out is not None:
                    hand_out(piece)
            if scan.stuck and ends and (yield from self._goes_on(ends)) is None:
                scan.stuck = False
                scan.skip()
            elif scan.stuck or (not scan.whole and not (yield from self.more())):
                break
        if not scan.whole:
            if self.cut and not scan.stuck:
                raise Unfinished
            if missing := scan.ending(opened + "".join(said)):
                said.append(missing)
                if hand_out is not None:
                    hand_out(missing)
        return "".join(said)

    def string(self) -> Steps[str]:
        """Take a JSON string.

        Raises:
            NoCall: it is none.
            Unfinished: the text is over.
        """
        if (yield from self.peek()) not in ('"', ""):
            raise NoCall
        text = yield from self.value()
        try:
            return msgspec.json.decode(text, type=str)
        except msgspec.MsgspecError:
            raise (NoCall if (yield from self.peek()) else Unfinished) from None

    # --- where marks are ------------------------------------------------------------------------------------

    def _find(self, marks: tuple[str, ...], hand_out: Callable[[str], None]) -> str | None:
        """Take the text up to the first of `marks`, and this mark; or as far as none can begin."""
        spelled = self._spelled(marks)
        found = _any_of(spelled).search(self._text, self._at) if marks else None
        end = found.start() if found else _before(spelled, self._text, self._at)
        if end > self._at:
            hand_out(self._text[self._at : end].replace(TOKEN, ""))
            self._take(end)
        if found is None:
            return None
        self._take(found.end())
        return marks[spelled.index(found[0])]

    def _goes_on(self, marks: tuple[str, ...]) -> Steps[str | None]:
        """The one of `marks` that the text goes on with."""
        while True:
            for mark in self._spelled(marks):
                if self._text.startswith(mark, self._at):
                    return mark
                if not self._finished and mark.startswith(self._rest(mark)):
                    break
            else:
                return None
            yield from self.more()

    def _rest(self, mark: str) -> str:
        """As much of what was not read as there is in `mark`."""
        return self._text[self._at : self._at + len(mark)]

    def _spelled(self, marks: tuple[str, ...]) -> tuple[str, ...]:
        """Marks as they are in the text."""
        return _spelled(marks, self._tokens)

    def _take(self, end: int) -> None:
        """What comes before `end` in the text was read."""
        if not self._in_call and end > self._at:
            self._kept.append(self._text[self._at : end])
        self._at = end


_SPACES = re.compile(f"[{SPACE}]*")
_GAP = re.compile(f"[{SPACE}]{{0,64}}")  # between tags that belong together


@lru_cache(256)
def _spelled(marks: tuple[str, ...], tokens: tuple[str, ...]) -> tuple[str, ...]:
    if not tokens:
        return marks
    token = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))
    return tuple(token.sub(TOKEN + r"\g<0>", mark) for mark in marks)


@lru_cache(256)
def _any_of(marks: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, marks)))


@lru_cache(256)
def _first_of(marks: tuple[str, ...]) -> tuple[re.Pattern[str], int]:
    """What finds the first character of any of them, and the length of the longest."""
    return re.compile(f"[{re.escape(''.join({mark[0] for mark in marks}))}]"), max(map(len, marks))


def _before(marks: tuple[str, ...], text: str, at: int) -> int:
    """Where in `text`, which has none of `marks` from `at` on, the beginning of one may stand."""
    if not marks:
        return len(text)
    first, longest = _first_of(marks)
    for found in first.finditer(text, max(at, len(text) - longest + 1)):
        if any(mark.startswith(text[found.start() :]) for mark in marks):
            return found.start()
    return len(text)
