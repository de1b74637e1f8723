"""What all parsers of tool calls have in common; a format adds its own syntax, and nothing else.

A format's parser says where a call may begin (`openings`), and reads it (`call`), as a generator that is
written as if all of the text were there: the steps below wait for more of it by themselves.

    class SquareParser(CallParser):                  # [[name {"a": 1}]]
        openings = ("[[",)

        def call(self, opening: str) -> Steps[None]:
            yield from self.name(" ")                # until the space; what is too long for one is no call
            self.begin()                             # from here on it is a call, and told as it is written
            yield from self.object("]]")             # its arguments, handed out as they come
            yield from self.accept("]]")             # a missing end is forgiven
            self.end()

What is read before `begin` is kept. It comes out as the text that it is when a step or the format raises
`NoCall`, or when `call` returns without having begun one; so does what was read since the last `end` when
`NoCall` is raised in a section of several calls. When the text is over in the middle of something, a step
raises `Unfinished`, which a format lets pass, unless it can tell what is missing.
"""

from __future__ import annotations

import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Sequence
from functools import lru_cache
from typing import ClassVar, Literal, TypeVar

import msgspec

from ipc.messages import MAX_NAME, Tool, ToolCall, ToolCallDelta
from neuron.text.formats.json_scan import JsonScan, object_in
from neuron.text.tags import SPACE, TOKEN

Part = tuple[Literal["text", "reasoning"], str] | tuple[Literal["tool"], ToolCallDelta]
T = TypeVar("T")
Steps = Generator[None, None, T]


class NoCall(Exception):
    """What began as a call is none."""


class Unfinished(Exception):
    """The text is over, and what stands there is not."""


class _Over(Exception):
    """There were as many calls as there may be."""


class CallParser(ABC):
    """Finds tool calls in the text of one answer as it streams.

    A call is handed out as it is written, from where it is known to be one; all its deltas together are its
    arguments, as JSON. However the text was cut, what comes out is the same, and the time is linear in it.

    Args:
        tools: that may be called. Their names complete the name in a call that was cut, and where a format
            writes values without their types, the schemas tell these.
        most: calls to take; what follows them is no part of the answer.
        only: the answer consists of calls and nothing else.
        first: calls come before any text, or are text.
        tokens: parts of tags that are tokens of their own, and count only as such: behind a `TOKEN`.

    Attributes:
        openings: a call, or a section of calls, may begin with one of these anywhere in the text.
        starts: it may begin with one of these too, where nothing but calls came before.
    """

    openings: ClassVar[tuple[str, ...]]
    starts: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        tools: Sequence[Tool] = (),
        most: int | None = None,
        *,
        only: bool = False,
        first: bool = False,
        tokens: Collection[str] = (),
    ) -> None:
        self.tools = {tool.name: tool for tool in tools}
        self.cut = False  # the answer did not come to its own end
        self._most, self._only, self._first = most, only, first
        self._tokens = tuple(tokens)
        self._ended = 0  # calls
        self._begun: list[tuple[ToolCallDelta, list[str]]] = []  # the first of each call, and all arguments
        self._in_call = False  # between `begin` and `end`
        self._is_frame = False  # what was read last is no text
        self._name: str | None = None  # of the call that is not sure to be one yet
        self._name_is_whole = False
        self._parts: list[Part] = []  # to be handed out
        self._kept: list[str] = []  # what was read and may turn out to be text
        self._text, self._at = "", 0  # what came, and how much of it was read
        self._finished = False
        self._steps = self._read()

    @abstractmethod
    def call(self, opening: str) -> Steps[None]:
        """Read a call or a section of calls, of which `opening` was read."""

    def new_id(self) -> str:
        """An id for the next call; formats whose models know no others have their own."""
        return f"call_{secrets.token_hex(12)}"

    # --- what is asked of it ------------------------------------------------------------------------------

    @property
    def calls(self) -> list[ToolCall]:
        """The calls so far; the last one may be incomplete."""
        return [
            ToolCall(id=first.call_id, name=first.name, arguments="".join(arguments))
            for first, arguments in self._begun
        ]

    @property
    def over(self) -> bool:
        """Whether there were as many calls as there may be."""
        return self._ended == self._most

    @property
    def limited(self) -> bool:
        """Whether a call may end the answer."""
        return self._most is not None

    def push(self, text: str) -> list[Part]:
        """Take more text; the parts that are sure."""
        self._text, self._at = self._text[self._at :] + text, 0
        return self._go()

    def finish(self, cut: bool = False) -> list[Part]:
        """What was held back, once it is known that nothing follows.

        Args:
            cut: the answer did not come to its own end, so what began as a call would have become one.
        """
        self._finished, self.cut = True, cut
        return self._go()

    def _go(self) -> list[Part]:
        next(self._steps, None)
        parts, self._parts = self._parts, []
        return parts

    # --- the steps that a format is made of: text ----------------------------------------------------------

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
            self._take(_SPACES.match(self._text, self._at).end())  # type: ignore[union-attr]

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
            at = _GAP.match(self._text, at).end()  # type: ignore[union-attr]
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

    def name(self, *ends: str) -> Steps[str]:
        """Take the name of the call up to the first of `ends`, and that: it is returned.

        Raises:
            NoCall: it is none: too long, of several lines, or with a tag in it.
            Unfinished: none of the ends came.
        """
        kept = len(self._kept)
        try:
            name, end = yield from self.until(*ends, limit=MAX_NAME)
        except Unfinished as unfinished:
            self._name = str(unfinished).strip(SPACE)
            raise
        name = name.strip(SPACE)
        if "<" in name or "\n" in name:
            # What looks like its end may be the end of something else, which is still to be read.
            self._at -= len("".join(self._kept[kept:]))
            del self._kept[kept:]
            raise NoCall
        self.named(name)
        return end

    def named(self, name: str) -> None:
        """The call's name is known, however it was read.

        Raises:
            NoCall: it is none.
        """
        if not 0 < len(name) <= MAX_NAME:
            raise NoCall
        self._name, self._name_is_whole = name, True

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

    def name_string(self) -> Steps[None]:
        """Take the name of the call, a JSON string.

        Raises:
            NoCall: it is none.
        """
        kept = len(self._kept)
        try:
            self.named((yield from self.string()))
        except Unfinished:
            self._name = "".join(self._kept[kept:]).removeprefix('"')
            raise

    # --- the call itself ------------------------------------------------------------------------------------

    @property
    def is_named(self) -> bool:
        """Whether the name of the call is known that has not begun yet."""
        return self._name_is_whole

    @property
    def named_so_far(self) -> str:
        """The name of the call that has not begun yet, or as much of it as there is."""
        return self._name or ""

    def forget_name(self) -> None:
        """What was read was not the name."""
        self._name, self._name_is_whole = None, False

    @property
    def is_known(self) -> bool:
        """Whether there is a tool of that name."""
        return self._name in self.tools

    @property
    def may_be_known(self) -> bool:
        """Whether what was read of the name begins that of a tool."""
        return bool(self._name) and any(known.startswith(self._name) for known in self.tools)

    @property
    def in_call(self) -> bool:
        """Whether a call has begun and not ended."""
        return self._in_call

    def begin(self, arguments: str = "") -> None:
        """The call is sure to be one: it has the name that was read."""
        first = ToolCallDelta(
            index=len(self._begun), call_id=self.new_id(), name=self._name, arguments=arguments
        )
        self._begun.append((first, [arguments]))
        self._parts.append(("tool", first))
        self._in_call = True
        self._forget()

    def add(self, arguments: str) -> None:
        """Hand out more of its arguments."""
        if arguments:
            self._begun[-1][1].append(arguments)
            self._parts.append(("tool", ToolCallDelta(index=len(self._begun) - 1, arguments=arguments)))

    def object(self, *ends: str) -> Steps[None]:
        """Take the arguments of a call that has begun, a JSON object; see `value`."""
        yield from self.space()
        if (yield from self.peek()) == "{":
            yield from self.value(*ends, hand_out=self.add)
            return
        said = yield from self.value(*ends)
        if not said and self.cut:
            raise Unfinished
        self.add(object_in(said) or said)

    def forget(self) -> None:
        """What was read of it is no call, and no text either: tags around something else."""
        self._forget()
        self._is_frame = True

    def think(self, text: str) -> None:
        """Hand out a thought."""
        if text:
            self._parts.append(("reasoning", text))

    def end(self) -> None:
        """The call is whole. Another one may follow in the same section."""
        self._ended += 1
        self._in_call = False
        if self.over:
            raise _Over

    # --- between calls --------------------------------------------------------------------------------------

    def _read(self) -> Steps[None]:
        """All of the answer."""
        fresh = self._first or bool(self.starts)  # nothing but calls came so far, and that matters
        try:
            while True:
                if fresh:
                    opening = yield from self._start()
                else:
                    opening = yield from self._say_until(self.openings)
                if opening is not None:
                    is_call = yield from self._try(opening)
                    fresh = fresh and is_call
                elif fresh and (yield from self.peek()):
                    fresh = False
                    self._say_kept()
                else:
                    break
                if not fresh and self._first:
                    yield from self._say_until(())
                    break
        except _Over:
            return
        if not (self.cut and self._only):
            self._say_kept()
            self._say(self._text[self._at :])

    def _start(self) -> Steps[str | None]:
        """What the answer begins with, or goes on with after calls, if that may be a call."""
        yield from self.space()
        try:
            return (yield from self.accept(*self.openings, *self.starts))
        except Unfinished:
            return None

    def _try(self, opening: str) -> Steps[bool]:
        """Read what may be a call; whether it is no text."""
        begun, self._is_frame = len(self._begun), False
        try:
            yield from self.call(opening)
            is_text = len(self._begun) == begun and not self._is_frame
        except NoCall:
            is_text = True
        except Unfinished:
            is_text = not self.cut and not self._in_call
            if self.cut and not self._in_call:
                self._tell_cut()
        if self._in_call:
            self.end()
        if is_text:
            self._say_kept()
            self._forget()
            return False
        yield from self.space()  # it belongs to the tag
        self._forget()
        return True

    def _tell_cut(self) -> None:
        """A call of which the rest is missing: told as far as its name is known."""
        if self._name is not None and not self._name_is_whole:
            meant = [known for known in self.tools if known.startswith(self._name)]
            self._name = meant[0] if len(meant) == 1 else None
        if self._name is not None:
            self.begin()

    def _say_until(self, marks: tuple[str, ...]) -> Steps[str | None]:
        """Hand out text up to the first of `marks`, which is taken; None when none of them comes."""
        while (mark := self._find(marks, self._say)) is None:
            self._kept.clear()
            if not (yield from self.more()):
                return None
        self._kept[:] = self._kept[-1:]
        return mark

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

    def _say(self, text: str) -> None:
        if text := text.replace(TOKEN, ""):
            self._parts.append(("text", text))

    def _say_kept(self) -> None:
        self._say("".join(self._kept))
        self._kept = []

    def _forget(self) -> None:
        self._kept = []
        self.forget_name()


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
