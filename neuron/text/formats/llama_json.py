"""Tool calls as Llama 3 writes them: `{"name": ..., "parameters": {...}}`, without any tag or behind one."""

from __future__ import annotations

from neuron.text.formats.bare import BareParser
from neuron.text.formats.call_parser import Steps
from neuron.text.formats.json_list import JsonListFormat, JsonListParser

PYTHON_TAG = "<|python_tag|>"
PYTHON_START, PYTHON_END = "<|python_start|>", "<|python_end|>"  # of Llama 4


class LlamaJsonParser(BareParser, JsonListParser):
    """Reads JSON objects, several of them with semicolons between them or in a list.

    Without the tag, an answer that is JSON is a call only where it has arguments, too.
    """

    openings = (PYTHON_TAG, PYTHON_START)
    ends = (PYTHON_END,)
    starts = ("{", "[")

    def calls_behind(self, opening: str) -> Steps[None]:
        self.needs_arguments = self.is_bare
        if not self.is_bare:
            yield from self.space()
            opening = yield from self.expect("{", "[")
        if opening == "[":
            yield from self.space()
            yield from self.rest_of_list()
        else:
            yield from self.member()
            while (yield from self._is_next()):
                yield from self.member()

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
