"""What formats have in common that write arguments as literals of a programming language, and not as JSON.

    class ArrowParser(LiteralParser):                # -> name {'a': [1, None]}
        openings = ("->",)

        def call(self, opening: str) -> Steps[None]:
            yield from self.name("{")
            self.open()                              # what is read now is kept
            yield from self.members()                # to the brace; it begins the call with the first string
            self.close()

Values become JSON as they come. A string is handed out letter by letter. What comes before the first one is
kept until then, so that what turns out to be no literal is text.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Callable
from typing import ClassVar

import msgspec

from neuron.text.formats.call_parser import CallParser, NoCall, Steps, Unfinished
from neuron.text.formats.json_scan import end_of, escaped

MAX_CHARACTER = 0x10FFFF
MAX_WORD = 1024  # characters of a number, or of a word such as True
WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_CLOSES = {"[": "]", "{": "}"}
_WORD = re.compile(r"[\w.+\-]*")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_FLOAT = re.compile(r"[+-]?(?=[\d_]*[.eE])[\d_]*\.?[\d_]*([eE][+-]?[\d_]+)?", re.ASCII)
_ESCAPES = {"n": "\\n", "t": "\\t", "r": "\\r", "b": "\\b", "f": "\\f", "a": "\\u0007", "v": "\\u000b"}
_SAME = {"\\": "\\\\", '"': '\\"', "'": "'", "\n": ""}  # what an escape stands for that is itself
_DIGITS = {"x": 2, "u": 4, "U": 8}  # that come behind it


class LiteralParser(CallParser):
    """Adds to the steps of a `CallParser` those for literals, as Python writes them.

    Attributes:
        quotes: around strings, the longest first.
        escapes: there are escapes in strings.
    """

    quotes: ClassVar[tuple[str, ...]] = ('"""', "'''", '"', "'")
    escapes: ClassVar[bool] = True

    _held: list[str]  # JSON of a call that has not begun
    _count: int  # arguments that came

    def open(self) -> None:
        """The arguments of a call begin, whose name was read."""
        self._held, self._count = ["{"], 0

    def close(self) -> None:
        """They are over, and so is the call."""
        self.out("}")
        self.start()
        self.end()

    def start(self) -> None:
        """The call is sure to be one."""
        if not self.in_call:
            self.begin("".join(self._held))

    def out(self, written: str) -> None:
        """Hand out JSON, or keep it until the call begins."""
        if self.in_call:
            self.add(written)
        else:
            self._held.append(written)

    def argument(self, key: str) -> None:
        """Another argument comes."""
        if self._count:
            self.out(", ")
        self.out(f"{msgspec.json.encode(key).decode()}: ")
        self._count += 1

    # --- the steps -----------------------------------------------------------------------------------------

    def members(self) -> Steps[None]:
        """Take arguments that are written as an object, of which the brace was read, up to its end."""
        yield from self._values(["}"])

    def literal(self) -> Steps[None]:
        """Take a value.

        Raises:
            NoCall: it is none.
            Unfinished: the text is over, and more than brackets are missing.
        """
        yield from self._values([])

    def key(self) -> Steps[str]:
        """Take a key of an object, and what stands between it and the value."""
        quote = yield from self.expect(*self.quotes)
        said: list[str] = []
        yield from self._string(quote, said.append)
        yield from self.space()
        yield from self.expect(":")
        try:
            return msgspec.json.decode(f'"{"".join(said)}"', type=str)
        except msgspec.MsgspecError:  # half of a character
            raise NoCall from None

    def is_over(self) -> Steps[bool]:
        """Whether the answer is over, to its own end."""
        return not (yield from self.peek()) and not self.cut

    def _values(self, closers: list[str]) -> Steps[None]:
        """Take one value, or with `closers` what is within the arguments' brace.

        Args:
            closers: of the brackets that are open, the innermost last.
        """
        arguments, fresh = len(closers), True
        while True:
            yield from self.space()
            if closers and ((yield from self.accept(closers[-1])) or (yield from self.is_over())):
                self._close(closers, arguments)
            else:
                if closers and closers[-1] == "}":
                    key = yield from self.key()
                    yield from self.space()
                    if len(closers) == arguments:
                        self.argument(key)
                    else:
                        self.out(f"{'' if fresh else ', '}{msgspec.json.encode(key).decode()}: ")
                elif not fresh:
                    self.out(", ")
                if bracket := (yield from self.accept(*_CLOSES)):
                    self.out(bracket)
                    closers.append(_CLOSES[bracket])
                    fresh = True
                    continue
                yield from self._scalar()
            fresh = False
            while closers:
                yield from self.space()
                if (yield from self.is_over()):
                    self._close(closers, arguments)
                elif (yield from self.expect(",", closers[-1])) == ",":
                    break
                else:
                    self._close(closers, arguments)
            else:
                return

    def _close(self, closers: list[str], arguments: int) -> None:
        closer = closers.pop()
        if len(closers) >= arguments:
            self.out(closer)

    def _scalar(self) -> Steps[None]:
        if quote := (yield from self.accept(*self.quotes)):
            self.start()
            self.out('"')
            while quote:
                yield from self._string(quote, self.out)
                yield from self.space()
                # where one follows the other, they are one string
                quote = (yield from self.accept(*self.quotes)) if self.escapes else None
            self.out('"')
            return
        word = yield from self._word()
        if word in WORDS:
            self.out(WORDS[word])
        elif word == "":
            raise NoCall if (yield from self.peek()) else Unfinished
        else:
            self.out(number(word))

    def _word(self) -> Steps[str]:
        """Take a number or a word."""
        while True:
            end = end_of(_WORD, self._text, self._at)
            if end - self._at > MAX_WORD:
                raise NoCall
            if end < len(self._text) or not (yield from self.more()):
                break
        word = self._text[self._at : end]
        self._take(end)
        if end == len(self._text) and (self.cut or not (word in WORDS or _NUMBER.fullmatch(word))):
            raise Unfinished
        return word

    def _string(self, quote: str, hand_out: Callable[[str], None]) -> Steps[None]:
        """Hand out what is between the quotes, as JSON."""
        ends = ((quote, ()), ("\\", ())) if self.escapes else ((quote, ()),)

        def say(text: str) -> None:
            hand_out(msgspec.json.encode(text)[1:-1].decode())

        while (mark := (yield from self.text_until(ends, say))) == "\\":
            hand_out((yield from self._escape()))
        if not mark:
            raise Unfinished

    def _escape(self) -> Steps[str]:
        """What stands behind a backslash, as JSON."""
        character = yield from self.peek()
        if character == "":
            raise Unfinished
        if character in "01234567":
            digits = yield from self._digits("[0-7]{1,3}", 3)
            return escaped(chr(int(digits, 8)))
        self._take(self._at + 1)
        if character not in _DIGITS:
            return _ESCAPES.get(character) or _SAME.get(character, "\\\\" + escaped(character))
        count = _DIGITS[character]
        digits = yield from self._digits(f"[0-9a-fA-F]{{{count}}}", count)
        if not digits or int(digits, 16) > MAX_CHARACTER:
            return "\\\\" + character + digits
        return f"\\u{digits:0>4}" if count <= 4 else json.dumps(chr(int(digits, 16)))[1:-1]

    def _digits(self, pattern: str, most: int) -> Steps[str]:
        """Take what matches `pattern`, which has no more than `most` characters."""
        while len(self._text) - self._at < most:
            if not (yield from self.more()):
                if self.cut or all(digit in string.hexdigits for digit in self._text[self._at :]):
                    self._take(len(self._text))
                    raise Unfinished
                break
        found = re.compile(pattern).match(self._text, self._at)
        if found is None:
            return ""
        self._take(found.end())
        return found[0]


def number(word: str) -> str:
    """The JSON for a number as Python writes it.

    Raises:
        NoCall: it is none, or one that JSON does not have.
    """
    if _NUMBER.fullmatch(word):
        return word
    try:
        value: int | float = float(word) if _FLOAT.fullmatch(word) else int(word, 0)
    except ValueError:
        raise NoCall from None
    if isinstance(value, float) and not math.isfinite(value):
        raise NoCall
    return json.dumps(value)
