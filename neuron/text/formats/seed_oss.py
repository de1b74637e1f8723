"""Tool calls as Seed-OSS writes them: those of Qwen3-Coder, with tags of its own and bare values."""

from __future__ import annotations

from neuron.text.formats.qwen3_coder import FUNCTION, Qwen3Coder, Qwen3CoderParser

CALL, END_CALL = "<seed:tool_call>", "</seed:tool_call>"


class SeedOssParser(Qwen3CoderParser):
    """Reads the same between other tags; a value is all that stands between its own."""

    openings = (CALL, FUNCTION)
    outer = (CALL, END_CALL)
    padding = ""


class SeedOss(Qwen3Coder):
    """What Seed-OSS writes."""

    name = "seed_oss"
    parser = SeedOssParser
    markers = (CALL, END_CALL)

    def is_of(self, template: str) -> bool:
        return CALL in template


SEED_OSS = SeedOss()
