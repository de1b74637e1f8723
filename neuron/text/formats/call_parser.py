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
from collections.abc import Collection, Sequence
from typing import ClassVar, Literal

from ipc.messages.answers import ToolCallDelta
from ipc.messages.conversation import Tool, ToolCall
from ipc.messages.values import MAX_NAME
from neuron.text.formats.json_scan import object_in
from neuron.text.formats.text_steps import NoCall, Steps, TextSteps, Unfinished
from neuron.text.tags import SPACE, TOKEN

__all__ = ["CallParser", "NoCall", "Part", "Steps", "Unfinished"]

Part = tuple[Literal["text", "reasoning"], str] | tuple[Literal["tool"], ToolCallDelta]


class _Over(Exception):
    """There were as many calls as there may be."""


class CallParser(TextSteps, ABC):
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
        name_pattern: what the name of a call looks like where no tool is called so; None: anything.
    """

    openings: ClassVar[tuple[str, ...]]
    starts: ClassVar[tuple[str, ...]] = ()
    name_pattern: ClassVar[re.Pattern[str] | None] = None

    def __init__(
        self,
        tools: Sequence[Tool] = (),
        most: int | None = None,
        *,
        only: bool = False,
        first: bool = False,
        tokens: Collection[str] = (),
    ) -> None:
        super().__init__(tokens)
        self.tools = {tool.name: tool for tool in tools}
        self._most, self._only, self._first = most, only, first
        self._ended = 0  # calls
        self._begun: list[tuple[ToolCallDelta, list[str]]] = []  # the first of each call, and all arguments
        self._is_frame = False  # what was read last is no text
        self._name: str | None = None  # of the call that is not sure to be one yet
        self._name_is_whole = False
        self._parts: list[Part] = []  # to be handed out
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
        if text:  # else whoever waits goes on waiting, and knows where things stand in what there is
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

    # --- steps of its own: the name ------------------------------------------------------------------------

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
        if self.name_pattern is not None and not self.is_known and not self.name_pattern.fullmatch(name):
            raise NoCall

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

    def _say(self, text: str) -> None:
        if text := text.replace(TOKEN, ""):
            self._parts.append(("text", text))

    def _say_kept(self) -> None:
        self._say("".join(self._kept))
        self._kept = []

    def _forget(self) -> None:
        self._kept = []
        self.forget_name()
