"""Tool calls as Mistral's models write them: a JSON list behind a tag, or names and arguments behind tags."""

from __future__ import annotations

import secrets
import string

from neuron.text.formats.call_parser import NoCall, Steps
from neuron.text.formats.json_list import JsonListFormat, JsonListParser
from neuron.text.formats.lark import Lark
from neuron.text.formats.tool_format import Schema, ToolFormat

CALLS, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
ID_LENGTH = 9  # letters and digits; their templates take no other id
_ID_CHARACTERS = string.ascii_letters + string.digits


class MistralParser(JsonListParser):
    """Reads both: `[TOOL_CALLS] [{"name": ..., "arguments": {...}}]` and `[TOOL_CALLS]name[ARGS]{...}`."""

    openings = (CALLS,)
    _id = ""  # that the model gave the call

    def call(self, opening: str) -> Steps[None]:
        yield from self.space()
        if (yield from self.peek()) in ("[", "{"):
            yield from super().call(opening)
            return
        mark = yield from self.name(CALL_ID, ARGS, "{")
        if mark == CALL_ID:
            said, mark = yield from self.until(ARGS, "{", limit=64)
            self._id = said.strip()
        if mark == ARGS:
            yield from self.space()
            if (yield from self.peek()) not in ("{", ""):
                raise NoCall
            self.begin()
            yield from self.object(CALLS)
        else:
            self.begin("{")
            yield from self.value(CALLS, opened="{", hand_out=self.add)
        self.end()

    def named(self, name: str) -> None:
        super().named(name)
        if " " in name and not self.is_known:  # the tag was the word for it
            raise NoCall

    def new_id(self) -> str:
        given, self._id = self._id, ""
        if len(given) == ID_LENGTH and given.isalnum() and given.isascii():
            return given
        return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(ID_LENGTH))


class Mistral(JsonListFormat):
    """What Mistral 7B v0.3, Nemo, Large 2407 and Mixtral write."""

    name = "mistral"
    parser = MistralParser
    markers = (CALLS, ARGS, CALL_ID)
    before = CALLS + "["
    after = "]"

    def is_of(self, template: str) -> bool:
        return CALLS in template


class MistralArgs(ToolFormat):
    """What their models write since 2025: Small 3.2, Devstral, Magistral, Ministral 3."""

    name = "mistral_args"
    parser = MistralParser
    markers = Mistral.markers
    between = ""

    def is_of(self, template: str) -> bool:
        return CALLS in template and ARGS in template

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        return f"{lark.text(CALLS + name + ARGS)} {lark.json(schema)}"


MISTRAL = Mistral()
MISTRAL_ARGS = MistralArgs()
