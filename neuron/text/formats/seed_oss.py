"""Tool calls as Seed-OSS writes them: those of Qwen3-Coder, with tags of its own and bare values."""

from __future__ import annotations

from neuron.text.formats.lark import Lark
from neuron.text.formats.parameter_grammar import Tags, parameters
from neuron.text.formats.qwen3_coder import END_FUNCTION, END_PARAMETER, FUNCTION, PARAMETER, Qwen3CoderParser
from neuron.text.formats.tool_format import Schema, ToolFormat

CALL, END_CALL = "<seed:tool_call>", "</seed:tool_call>"


class SeedOssParser(Qwen3CoderParser):
    """Reads the same between other tags; a value is all that stands between its own."""

    openings = (CALL, FUNCTION)
    outer = (CALL, END_CALL)
    padding = ""


class SeedOss(ToolFormat):
    """What Seed-OSS writes."""

    name = "seed_oss"
    parser = SeedOssParser
    markers = (CALL, END_CALL)

    def is_of(self, template: str) -> bool:
        return CALL in template

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        head = lark.text(f"{CALL}\n{FUNCTION}{name}>\n")
        tags = Tags(PARAMETER, ">", f"{END_PARAMETER}\n", END_PARAMETER)
        end = lark.text(f"{END_FUNCTION}\n{END_CALL}")
        return f"{head} {parameters(schema, tags, lark)} {end}"


SEED_OSS = SeedOss()
