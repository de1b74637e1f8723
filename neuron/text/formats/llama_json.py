"""Tool calls as Llama 3 writes them: `{"name": ..., "parameters": {...}}`, without any tag or behind one."""

from __future__ import annotations

from neuron.text.formats.call_parser import NoCall, Steps, Unfinished
from neuron.text.formats.json_list import JsonListFormat, JsonListParser

PYTHON_TAG = "<|python_tag|>"
PYTHON_START, PYTHON_END = "<|python_start|>", "<|python_end|>"  # of Llama 4


class LlamaJsonParser(JsonListParser):
    """Reads JSON objects, several of them with semicolons between them or in a list.

    Without the tag, an answer that is JSON looks like a call: it is one where it begins the answer, names a
    tool that was offered, and has arguments.
    """

    openings = (PYTHON_TAG, PYTHON_START)
    ends = (PYTHON_END,)
    starts = ("{", "[")

    def call(self, opening: str) -> Steps[None]:
        self.needs_arguments = opening in self.starts
        if not self._is_bare:
            yield from self.space()
            opening = yield from self.expect("{", "[")
        try:
            if opening == "[":
                yield from self.space()
                yield from self.rest_of_list()
            else:
                yield from self.member()
                while (yield from self._is_next()):
                    yield from self.member()
        except Unfinished:
            if self._is_bare and not self.in_call and not self.may_be_known:
                raise NoCall from None
            raise
        yield from self.space()
        yield from self.accept(*self.ends)

    def _is_next(self) -> Steps[bool]:
        """Whether another call follows."""
        yield from self.space()
        if not (yield from self.accept(";")):
            return False
        yield from self.space()
        if not (yield from self.peek()):
            return False
        yield from self.expect("{")
        return True

    def named(self, name: str) -> None:
        super().named(name)
        if self._is_bare and not self.is_known:
            raise NoCall

    @property
    def _is_bare(self) -> bool:
        """There is no tag before what is read."""
        return self.needs_arguments


class LlamaJson(JsonListFormat):
    """What Llama 3.1, 3.2 and 3.3 write."""

    name = "llama3_json"
    parser = LlamaJsonParser
    markers = (PYTHON_TAG, PYTHON_START, PYTHON_END)
    keys = ("name", "parameters")
    between = "; "

    def is_of(self, template: str) -> bool:
        return PYTHON_TAG in template or '"parameters": dictionary of argument name' in template


LLAMA3_JSON = LlamaJson()
