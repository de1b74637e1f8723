"""Tells a model's reasoning, `<think>...</think>`, from its answer."""

from __future__ import annotations

from typing import Literal

from neuron.text.tags import END_THINK, SPACE, THINK, before

Part = tuple[Literal["reasoning", "text"], str]


class ReasoningSplitter:
    """Splits text as it streams into reasoning and the rest.

    Only the start of an answer is looked at: a model that later writes about the tag means the word.

    Args:
        prompt: the rendered prompt; templates of reasoning models may end it with the tag, opened or closed.
    """

    def __init__(self, prompt: str) -> None:
        self.in_reasoning = prompt.rstrip(SPACE).endswith(THINK)
        # Space that comes now belongs to the tag.
        self._after_tag = self.in_reasoning or prompt.endswith(END_THINK)
        self._started = self._after_tag  # whether the start, where the tag may be, is behind
        self._held = ""

    def push(self, text: str) -> list[Part]:
        """Take more text; the parts that are sure."""
        text = self._held + text
        self._held = ""
        if not self._started:
            start = text.lstrip(SPACE)
            if len(start) < len(THINK) and THINK.startswith(start):
                self._held = text
                return []
            self._started = True
            if start.startswith(THINK):
                self.in_reasoning = self._after_tag = True
                text = start[len(THINK) :]
        if self._after_tag:
            text = text.lstrip(SPACE)
            self._after_tag = not text
        if not self.in_reasoning:
            return [("text", text)] if text else []
        thought, tag, rest = text.partition(END_THINK)
        if tag:
            self.in_reasoning, self._after_tag = False, True
            thought = thought.rstrip(SPACE)
            return ([("reasoning", thought)] if thought else []) + self.push(rest)
        sure = before(END_THINK, text)
        self._held = text[sure:]
        return [("reasoning", text[:sure])] if sure else []

    def finish(self) -> list[Part]:
        """What was held back, once it is known that nothing follows."""
        held, self._held = self._held, ""
        return [("reasoning" if self.in_reasoning else "text", held)] if held else []
