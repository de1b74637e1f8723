"""Tool calls as Command R writes them: `Action:` and a JSON list in a fence."""

from __future__ import annotations

from neuron.text.formats.call_parser import NoCall, Steps
from neuron.text.formats.json_list import JsonListFormat, JsonListParser

ACTION, FENCE = "Action:", "```"
ANSWER = "directly-answer"  # a tool of the prompt's own: to call none


class CommandRParser(JsonListParser):
    """Reads a JSON list in a fence, of objects with `tool_name` and `parameters`."""

    openings = (ACTION,)
    ends = (FENCE,)
    names = ("tool_name",)

    def call(self, opening: str) -> Steps[None]:
        yield from self.space()
        yield from self.accept(FENCE + "json", FENCE)
        yield from super().call(opening)

    def named(self, name: str) -> None:
        super().named(name)
        if name == ANSWER and name not in self.tools:
            raise NoCall


class CommandR(JsonListFormat):
    """What Command R and Command R+ write."""

    name = "command_r"
    parser = CommandRParser
    keys = ("tool_name", "parameters")
    before = f"{ACTION}\n{FENCE}json\n[\n    "
    between = ",\n    "
    after = f"\n]{FENCE}"

    def is_of(self, template: str) -> bool:
        return ACTION in template and '"tool_name"' in template


COMMAND_R = CommandR()
