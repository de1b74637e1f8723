"""Token ids to text as they come, in whole characters."""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Mapping, Sequence
from typing import Protocol

from neuron.text.tags import TOKEN
from neuron.text.vocabulary import Vocabulary

BROKEN = "\ufffd"  # what a decoder makes of bytes that are no character, or not yet
CONTEXT = 4  # tokens of the prompt that decide whether the answer begins with a space
PATIENCE = 64  # tokens; a character has 4 bytes at most, so what is still broken by then stays so


class Detokenizer:
    """Turns the tokens of one answer into text: all pieces together are the decoded whole.

    Args:
        vocabulary: of the model; what it hides is no text.
        after: the prompt, where the answer continues its text.
        tags: tokens that are tags, and these as text. A `TOKEN` is put before each, so that it is told from
            text that merely looks like it.
    """

    __slots__ = ("_characters", "_tags")

    def __init__(
        self,
        vocabulary: Vocabulary,
        after: Sequence[int] = (),
        tags: Mapping[int, str] = {},
    ) -> None:
        self._characters: Characters = (Bytes if vocabulary.context_free else Window)(vocabulary)
        self._tags = tags
        if after:
            self._characters.begin(after[-CONTEXT:])

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that `token_ids` complete; a character that they begin waits for its end."""
        if self._tags and not self._tags.keys().isdisjoint(token_ids):
            return self._push_tags(token_ids)
        return self._characters.push(token_ids)

    def _push_tags(self, token_ids: Sequence[int]) -> str:
        """The same where some are tags: whatever was begun before one ends there."""
        pieces: list[str] = []
        start = 0
        for at, token in enumerate(token_ids):
            if (tag := self._tags.get(token)) is None:
                continue
            pieces += self._characters.push(token_ids[start:at]), self.finish(), TOKEN, tag
            start = at + 1
            self._characters.begin([token])
        pieces.append(self._characters.push(token_ids[start:]))
        return "".join(pieces)

    def finish(self) -> str:
        """What is left, bytes of an unfinished character included."""
        return self._characters.finish()


class Characters(Protocol):
    """Makes whole characters of tokens."""

    def begin(self, token_ids: Sequence[int]) -> None:
        """What comes next comes after these, which were written elsewhere."""
        ...

    def push(self, token_ids: Sequence[int]) -> str:
        """Those that are complete now."""
        ...

    def finish(self) -> str:
        """The rest."""
        ...


class Bytes:
    """Of tokens that are plain bytes, whatever stands before them."""

    __slots__ = ("_begun", "_vocabulary")

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._begun = b""  # bytes of a character

    def begin(self, token_ids: Sequence[int]) -> None:
        self._begun = b""
        self.push(token_ids)

    def push(self, token_ids: Sequence[int]) -> str:
        known = self._begun + self._vocabulary.written(token_ids)
        text, length = utf_8_decode(known, "replace", False)
        self._begun = known[length:]
        return text

    def finish(self) -> str:
        begun, self._begun = self._begun, b""
        return begun.decode(errors="replace")


class Window:
    """Of tokens that may mean something else behind others (the space in front of a word).

    So each step decodes the last piece and the new tokens together, and hands out what that has more than the
    last piece alone: the work per token does not grow with the answer.
    """

    __slots__ = ("_read", "_shown", "_vocabulary", "_window")

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._window: list[int] = []
        self._read = 0  # tokens in the window that are handed out
        self._shown = 0  # characters that they make

    def begin(self, token_ids: Sequence[int]) -> None:
        self._window = self._vocabulary.shown(token_ids)
        self._read = len(self._window)
        self._shown = len(self._decode().rstrip(BROKEN))

    def push(self, token_ids: Sequence[int]) -> str:
        new = self._vocabulary.shown(token_ids)
        if not new:
            return ""
        self._window += new
        text = self._decode()
        if text.endswith(BROKEN) and len(self._window) - self._read < PATIENCE:
            return ""
        piece = text[self._shown :]
        self._window = self._window[self._read :]
        self._read = len(self._window)
        self._shown = len(self._decode())
        return piece

    def finish(self) -> str:
        return self._decode()[self._shown :]

    def _decode(self) -> str:
        return self._vocabulary.decode(self._window) if self._window else ""
