"""How more formats write calls that have a tag for each argument."""

from __future__ import annotations

import re
from typing import Any

from neuron.text.formats.hy3 import HY3
from neuron.text.formats.minicpm5 import MINICPM5
from neuron.text.formats.muse import MUSE
from neuron.text.formats.seed_oss import SEED_OSS
from tests.neuron.tool_texts import Call, Sample, bare, without


def seed_oss(calls: list[Call]) -> str:
    return "\n".join(
        f"<seed:tool_call>\n<function={name}>\n"
        + "".join(f"<parameter={key}>{bare(value)}</parameter>\n" for key, value in arguments.items())
        + "</function>\n</seed:tool_call>"
        for name, arguments in calls
    )


def hy3(calls: list[Call]) -> str:
    def tag(name: str) -> str:
        return f"<{name}:opensource>"

    written = "\n".join(
        f"{tag('tool_call')}{name}{tag('tool_sep')}\n"
        + "".join(
            f"{tag('arg_key')}{key}{tag('/arg_key')}\n{tag('arg_value')}{bare(value)}{tag('/arg_value')}\n"
            for key, value in arguments.items()
        )
        + tag("/tool_call")
        for name, arguments in calls
    )
    return f"{tag('tool_calls')}\n{written}\n{tag('/tool_calls')}"


def minicpm5(calls: list[Call]) -> str:
    def value_of(value: Any) -> str:
        text = bare(value)
        in_cdata = isinstance(value, str) and re.search(r"[<&\n]", text)
        return f"<![CDATA[{text}]]>" if in_cdata else text

    return "\n".join(
        f'<function name="{name}">'
        + "".join(f'<param name="{key}">{value_of(value)}</param>' for key, value in arguments.items())
        + "</function>"
        for name, arguments in calls
    )


def muse(calls: list[Call]) -> str:
    return "<|eom|><|start|>assistant".join(
        f' to={name}<|message|><atem:function_calls>\n<atem:invoke name="{name}">\n'
        + "".join(
            f'<atem:parameter name="{key}">{bare(value)}</atem:parameter>\n'
            for key, value in arguments.items()
        )
        + "</atem:invoke>\n</atem:function_calls>"
        for name, arguments in calls
    )


SAMPLES = (
    Sample(MUSE, muse, ("muse-glimmer.jinja",), without(r"</atem:(parameter|invoke)>\s*<")),
    Sample(SEED_OSS, seed_oss, ("ByteDance-Seed-OSS.jinja",), without(r"</(parameter|function)>\s*<")),
    Sample(HY3, hy3, ("tencent-Hy3.jinja",), without(r"</arg_value:opensource>\s*<|</tool_call:opensource>")),
    Sample(
        MINICPM5, minicpm5, ("openbmb-MiniCPM5-1B.jinja",), without(r"</(param|function)>|]]>|<!\[CDATA\[")
    ),
)
