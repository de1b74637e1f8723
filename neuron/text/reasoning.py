"""Tells a model's reasoning, such as `<think>...</think>`, from its answer."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Literal, NamedTuple

from neuron.text.tags import SPACE, TOKEN, HeldSpace

Part = tuple[Literal["reasoning", "text"], str]
# Where a prompt leaves the model: no thought comes (or it is over), one is open, or one may begin.
Thought = Literal["none", "open", "possible"]

_TAG = re.compile(r"<[^<>]+>|\[[^\[\]]+\]|\u25c1[^\u25b7]+\u25b7")


class ThinkTags(NamedTuple):
    """What a model writes around its thoughts."""

    opening: str
    closing: str
    resumed: str = "\n\n"  # what stands behind a thought that is put into a prompt
    before: str = ""  # what stands around the answer itself, if anything
    behind: str = ""

    @property
    def pieces(self) -> tuple[str, ...]:
        """The parts of them that are tokens of their own in most vocabularies."""
        tags = (self.opening, self.closing, self.before, self.behind)
        return tuple(dict.fromkeys(piece for each in tags for piece in _TAG.findall(each)))

    def spelled(self, tokens: Collection[str]) -> ThinkTags:
        """The same as they come in the text of an answer whose model has `tokens`: see `Detokenizer`."""
        opening, closing, resumed, before, behind = self
        opening, closing, before, behind = (
            _TAG.sub(lambda tag: _marked(tag[0], tokens), each) for each in (opening, closing, before, behind)
        )
        return ThinkTags(opening, closing, resumed, before, behind)

    def state(self, prompt: str) -> Thought:
        """Where a prompt leaves the model."""
        end = prompt.rstrip(SPACE)
        if end.endswith((self.closing, self._empty.rstrip(SPACE))):
            return "none"
        return "open" if end.endswith(self.opening) else "possible"

    def without_thought(self, prompt: str) -> str:
        """The same prompt, with a thought at its end in which nothing stands."""
        state = self.state(prompt)
        if state == "none":
            return prompt
        if state == "open":
            return prompt.rstrip(SPACE) + self._empty.removeprefix(self.opening)
        return prompt + self._empty

    @property
    def _empty(self) -> str:
        """A thought in which nothing stands, and what follows it."""
        return f"{self.opening}\n\n{self.closing}{self.resumed}"


THINK = ThinkTags("<think>", "</think>")

BY_NAME = {  # as settings call them
    "think": THINK,
    "magistral": ThinkTags("[THINK]", "[/THINK]"),
    "seed_oss": ThinkTags("<seed:think>", "</seed:think>"),
    "minimax_m3": ThinkTags("<mm:think>", "</mm:think>"),
    "hunyuan": ThinkTags("<think>", "</think>", "\n", "<answer>", "</answer>"),
    "hy3": ThinkTags("<think:opensource>", "</think:opensource>"),  # Hunyuan 3
    "gemma4": ThinkTags("<|channel>thought", "<channel|>"),
    "command_a": ThinkTags(
        "<|START_THINKING|>", "<|END_THINKING|>", "", "<|START_RESPONSE|>", "<|END_RESPONSE|>"
    ),
    "north": ThinkTags("<|START_THINKING|>", "<|END_THINKING|>", "", "<|START_TEXT|>", "<|END_TEXT|>"),
    "ernie": ThinkTags("<think>", "</think>", "\n\n", "<response>", "</response>"),
    "apertus": ThinkTags("<|inner_prefix|>", "<|inner_suffix|>"),
    "kimi_vl": ThinkTags("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    "apriel": ThinkTags("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
}
KNOWN = tuple(BY_NAME.values())

# Where thoughts are messages. What ends them ends messages of any kind, in other models too.
HARMONY = ThinkTags("<|channel|>analysis<|message|>", "<|end|>", "<|start|>assistant")
MUSE = ThinkTags("to=self<|message|>", "<|eom|>", "<|start|>assistant")
SOLAR_OPEN = ThinkTags("<|think|>", "<|end|>", "<|begin|>assistant")


def think_tags(texts: Iterable[str], vocabulary: Collection[str] = ()) -> ThinkTags | None:
    """The tags of a model, or None where it is not known to think.

    Args:
        texts: its chat templates, and prompts that they made: some put their tags together.
        vocabulary: its added tokens, which say it where the templates do not.
    """
    texts = list(texts)
    for tags in (HARMONY, MUSE):
        if any(tags.opening in text for text in texts):
            return tags
    # Its tags, each by itself, are those of other models for something else.
    if any(SOLAR_OPEN.opening + SOLAR_OPEN.closing in text for text in texts):
        return SOLAR_OPEN
    # First those that say more: others may have the same tags around their thoughts.
    for tags in sorted(KNOWN, key=lambda tags: not tags.behind):
        if any(tags.closing in text and tags.behind in text for text in texts):
            return tags
    alike = [tags for tags in KNOWN if any(tags.closing in text for text in texts)]
    alike = alike or [tags for tags in KNOWN if tags.closing in vocabulary]
    # What stands around its answers need not be in a template: then its tokens tell.
    return next((tags for tags in alike if tags.behind in vocabulary), alike[0] if alike else None)


def _marked(tag: str, tokens: Collection[str]) -> str:
    return TOKEN + tag if tag in tokens else tag


class ReasoningSplitter:
    """Splits text as it streams into reasoning and the rest.

    Only the start of an answer is looked at: a model that later writes about the tag means the word. What
    some models write around the answer behind it is taken away, too.

    Args:
        state: where the prompt leaves the model.
        tags: as they come in the text.
    """

    def __init__(self, state: Thought, tags: ThinkTags = THINK) -> None:
        self._tags = tags
        self.in_reasoning = state == "open"
        # Space that comes now belongs to the tag.
        self._after_tag = self._started = state != "possible"  # started: the tag cannot come any more
        self._space = HeldSpace()  # before what is held, or before the tag that may come
        self._held = ""  # the beginning of a tag, perhaps
        self._frame = AnswerFrame(tags.before, tags.behind) if tags.before else None

    @property
    def is_decided(self) -> bool:
        """Whether it is known that a thought has begun, or that none will."""
        return self._started

    @property
    def is_over(self) -> bool:
        """Whether all that comes is text as it is: no thought is open or may come, nor space behind one."""
        split = self._started and not self.in_reasoning and not self._after_tag
        return split and (self._frame is None or self._frame.is_over)

    def push(self, text: str) -> list[Part]:
        """Take more text; the parts that are sure."""
        return self._unframed(self._split(text))

    def _unframed(self, parts: list[Part]) -> list[Part]:
        """The same without what stands around the answer."""
        if self._frame is None:
            return parts
        told = [(kind, self._frame.push(text) if kind == "text" else text) for kind, text in parts]
        return [(kind, text) for kind, text in told if text]

    def _split(self, text: str) -> list[Part]:
        text, self._held = self._held + text, ""
        opening, closing = self._tags.opening, self._tags.closing
        if not self._started:
            start = text.lstrip(SPACE)
            self._space.push(text[: len(text) - len(start)])
            if len(start) < len(opening) and opening.startswith(start):
                self._held = start
                return []
            self._started = True
            space = self._space.take()
            if start.startswith(opening):
                self.in_reasoning = self._after_tag = True
                text = start[len(opening) :]
            else:
                text = space + start
        if self._after_tag:
            text = text.lstrip(SPACE)
            self._after_tag = not text
        if not self.in_reasoning:
            return [("text", text)] if text else []
        thought, tag, rest = text.partition(closing)
        if not tag:
            sure = _before(closing, text)
            thought, self._held = text[:sure], text[sure:]
        thought = self._space.push(thought)
        parts: list[Part] = [("reasoning", thought)] if thought else []
        if tag:
            self._space.take()
            self.in_reasoning, self._after_tag = False, True
            parts += self._split(rest)
        return parts

    def finish(self) -> list[Part]:
        """What was held back, once it is known that nothing follows."""
        held, self._held = self._space.take() + self._held, ""
        parts = self._unframed([("reasoning" if self.in_reasoning else "text", held)] if held else [])
        if self._frame is not None and (rest := self._frame.finish()):
            parts.append(("text", rest))
        return parts


class AnswerFrame:
    """Takes away the tags that some models write around all of their answer, and the space beside them.

    Args:
        before: what such an answer begins with; one that does not stays as it is.
        behind: what ends it. In its middle it is text, unless it came as a token: then only calls follow it.
    """

    def __init__(self, before: str, behind: str) -> None:
        self._before, self._behind = before, behind
        self._begun = self._leading = self.is_over = False  # over: what comes stays as it is
        self._ended = False  # by a token, and what comes next is space or not
        self._held = ""  # what may belong to a tag
        self._space, self._last = HeldSpace(), HeldSpace()  # before that, and behind it

    def push(self, text: str) -> str:
        """Take more text; what is sure."""
        if self.is_over:
            return text
        if self._ended:
            text = text.lstrip(SPACE)
            self.is_over = bool(text)
            return text
        if self._held == self._behind and not text.strip(SPACE):
            self._last.push(text)
            return ""
        text, self._held = self._held + self._last.take() + text, ""
        if not self._begun:
            start = text.lstrip(SPACE)
            if len(start) < len(self._before) and self._before.startswith(start):
                self._held = text
                return ""
            if not start.startswith(self._before):
                self.is_over = True
                return text
            self._begun = self._leading = True
            text = start[len(self._before) :]
        if self._leading:
            text = text.lstrip(SPACE)
            self._leading = not text
        if self._behind.startswith(TOKEN):
            said, tag, rest = text.partition(self._behind)
            if tag:
                self._ended = True
                said = self._space.push(said)
                self._space.take()
                return said + self.push(rest)
        end = text.rstrip(SPACE)
        if end.endswith(self._behind):
            self._last.push(text[len(end) :])
            text, self._held = end.removesuffix(self._behind), self._behind
        else:
            sure = _before(self._behind, text)
            text, self._held = text[:sure], text[sure:]
        return self._space.push(text)

    def finish(self) -> str:
        """What was held back, once it is known that nothing follows."""
        space, held, self._held = self._space.take(), self._held, ""
        return "" if held == self._behind else space + held


def _before(tag: str, text: str) -> int:
    """Characters at the start of `text` that stay outside of `tag`, however the text goes on."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return len(text) - length
    return len(text)
