"""Tool calls as Command R7B and Command A write them: a JSON list between two tags."""

from __future__ import annotations

from neuron.text.formats.json_list import JsonListFormat, JsonListParser

ACTIONS, END_ACTIONS = "<|START_ACTION|>", "<|END_ACTION|>"


class CommandAParser(JsonListParser):
    """Reads a list of objects with `tool_name` and `parameters`, which have an id before."""

    openings = (ACTIONS,)
    ends = (END_ACTIONS,)
    names = ("tool_name",)


class CommandA(JsonListFormat):
    """What Command R7B and Command A write."""

    name = "command_a"
    parser = CommandAParser
    markers = (ACTIONS, END_ACTIONS)
    keys = ("tool_name", "parameters")
    before = ACTIONS + "[\n    "
    between = ",\n    "
    after = "\n]" + END_ACTIONS

    def is_of(self, template: str) -> bool:
        return ACTIONS in template and "tool_name" in template


COMMAND_A = CommandA()
