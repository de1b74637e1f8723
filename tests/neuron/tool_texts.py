"""How each format writes calls, for tests of what all formats have in common: a line here for a new one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from neuron.text.formats.deepseek import DEEPSEEK_V3, DEEPSEEK_V31
from neuron.text.formats.glm import GLM
from neuron.text.formats.hermes import HERMES
from neuron.text.formats.hunyuan import HUNYUAN
from neuron.text.formats.invoke import DEEPSEEK_V4, DEEPSEEK_V32, MINIMAX_M2
from neuron.text.formats.kimi import KIMI
from neuron.text.formats.minimax_m1 import MINIMAX_M1
from neuron.text.formats.minimax_m3 import MINIMAX_M3
from neuron.text.formats.qwen3_coder import QWEN3_CODER
from neuron.text.formats.tool_format import ToolFormat

Call = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Sample:
    """A format, and what its models write.

    Attributes:
        write: calls as a model writes them, the way that the templates do.
        templates: of models that write it, by file name.
        parallel: whether these templates take several calls in a turn.
        reads: what is read of arguments that a template wrote.
        carries: whether it can write an argument, a key and its value, so that it can be read again.
    """

    format: ToolFormat
    write: Callable[[list[Call]], str]
    templates: tuple[str, ...] = ()
    carries: Callable[[str, Any], bool] = lambda key, value: True
    parallel: bool = True
    reads: Callable[[dict[str, Any]], dict[str, Any]] = lambda arguments: arguments

    @property
    def name(self) -> str:
        return self.format.name


def hermes(calls: list[Call]) -> str:
    return "\n".join(
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
        for name, arguments in calls
    )


def bare(value: Any) -> str:
    """A value as formats write it that have a tag for each argument."""
    return value if isinstance(value, str) else json.dumps(value)


def qwen3_coder(calls: list[Call]) -> str:
    return "\n".join(
        f"<tool_call>\n<function={name}>\n"
        + "".join(f"<parameter={key}>\n{bare(value)}\n</parameter>\n" for key, value in arguments.items())
        + "</function>\n</tool_call>"
        for name, arguments in calls
    )


def glm(calls: list[Call]) -> str:
    return "\n".join(
        f"<tool_call>{name}\n"
        + "".join(
            f"<arg_key>{key}</arg_key>\n<arg_value>{bare(value)}</arg_value>\n"
            for key, value in arguments.items()
        )
        + "</tool_call>"
        for name, arguments in calls
    )


def minimax_m2(calls: list[Call]) -> str:
    written = "".join(
        f'<invoke name="{name}">\n'
        + "".join(f'<parameter name="{key}">{bare(value)}</parameter>\n' for key, value in arguments.items())
        + "</invoke>\n"
        for name, arguments in calls
    )
    return f"<minimax:tool_call>\n{written}</minimax:tool_call>"


def dsml(section: str) -> Callable[[list[Call]], str]:
    def write(calls: list[Call]) -> str:
        written = "".join(
            f'<｜DSML｜invoke name="{name}">\n'
            + "".join(
                f'<｜DSML｜parameter name="{key}" string="{"true" if isinstance(value, str) else "false"}">'
                f"{bare(value)}</｜DSML｜parameter>\n"
                for key, value in arguments.items()
            )
            + "</｜DSML｜invoke>\n"
            for name, arguments in calls
        )
        return f"<｜DSML｜{section}>\n{written}</｜DSML｜{section}>"

    return write


def deepseek_v3(calls: list[Call]) -> str:
    written = "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{json.dumps(arguments)}\n```<｜tool▁call▁end｜>"
        for name, arguments in calls
    )
    return f"<｜tool▁calls▁begin｜>{written}<｜tool▁calls▁end｜>"


def deepseek_v31(calls: list[Call]) -> str:
    written = "".join(
        f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{json.dumps(arguments)}<｜tool▁call▁end｜>"
        for name, arguments in calls
    )
    return f"<｜tool▁calls▁begin｜>{written}<｜tool▁calls▁end｜>"


def hunyuan(calls: list[Call]) -> str:
    written = "\n".join(
        f"<tool_call>{name}\n```json\n{json.dumps(arguments)}\n```</tool_call>" for name, arguments in calls
    )
    return f"<tool_calls>{written}</tool_calls>"


def kimi(calls: list[Call]) -> str:
    written = "".join(
        f"<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>"
        f"{json.dumps(arguments)}<|tool_call_end|>"
        for number, (name, arguments) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{written}<|tool_calls_section_end|>"


def json_object(call: Call) -> str:
    return json.dumps({"name": call[0], "arguments": call[1]})


def minimax_m1(calls: list[Call]) -> str:
    return "<tool_calls>\n" + "".join(json_object(call) + "\n" for call in calls) + "</tool_calls>"


def minimax_m3(calls: list[Call]) -> str:
    mark = "]<]minimax[>["

    def value(of: Any) -> str:
        if isinstance(of, dict):
            return "".join(f"{mark}<{key}>{value(each)}{mark}</{key}>" for key, each in of.items())
        if isinstance(of, list):
            return "".join(f"{mark}<item>{value(each)}{mark}</item>" for each in of)
        return bare(of)

    written = "".join(f'{mark}<invoke name="{name}">{value(given)}{mark}</invoke>\n' for name, given in calls)
    return f"{mark}<tool_call>\n{written}{mark}</tool_call>"


def without_null(value: Any) -> Any:
    """A value as MiniMax M3's template writes it: members that are null are left out, elements are empty."""
    if isinstance(value, dict):
        return {key: without_null(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return ["" if each is None else without_null(each) for each in value]
    return value


def fits_in_elements(key: str, value: Any, inner: bool = False) -> bool:
    """Whether MiniMax M3 can write a value so that it is read as the same: inside of others, types are not
    told by the tests' schemas, so a text must not look like something else, and nothing be empty."""
    if not fits_in_tag(key) or not key or key == "item" or key[0] == "/" or value is None:
        return False
    if isinstance(value, dict):
        return (not inner or bool(value)) and all(fits_in_elements(*each, True) for each in value.items())
    if isinstance(value, list):
        return (not inner or bool(value)) and all(fits_in_elements("a", each, True) for each in value)
    if isinstance(value, str):
        is_told_by_itself = value == "" or (value.isalpha() and value not in ("true", "false", "null"))
        return "]<]minimax[>[<" not in value and (not inner or is_told_by_itself)
    return True


def fits_in_tag(key: str) -> bool:
    """Whether a tag can have this name in it."""
    return not re.search(r'[<>"]', key)


def without(ends: str) -> Callable[[str, Any], bool]:
    """What can be carried where a value ends at `ends`."""
    return lambda key, value: fits_in_tag(key) and not re.search(ends, bare(value))


SAMPLES = (
    Sample(MINIMAX_M3, minimax_m3, ("MiniMax-M3.jinja",), fits_in_elements, reads=without_null),
    Sample(
        GLM,
        glm,
        ("GLM-4.6.jinja", "inclusionai-ling-3.0-flash.jinja", "poolside-Laguna-XS-2.1.jinja"),
        without(r"</arg_value>\s*<|</tool_call>"),
    ),
    Sample(MINIMAX_M2, minimax_m2, (), without(r"</(parameter|invoke)>\s*<")),
    Sample(
        DEEPSEEK_V32,
        dsml("function_calls"),
        ("deepseek-ai-DeepSeek-V3.2.jinja",),
        without(r"</｜DSML｜(parameter|invoke)>\s*<"),
    ),
    Sample(
        DEEPSEEK_V4,
        dsml("tool_calls"),
        ("deepseek-ai-DeepSeek-V4.jinja",),
        without(r"</｜DSML｜(parameter|invoke)>\s*<"),
    ),
    Sample(DEEPSEEK_V3, deepseek_v3, ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja",)),
    Sample(DEEPSEEK_V31, deepseek_v31),
    Sample(HUNYUAN, hunyuan),
    Sample(KIMI, kimi, ("Kimi-K2-Thinking.jinja",)),
    Sample(MINIMAX_M1, minimax_m1, ("MiniMax-M1.jinja",)),
    Sample(
        QWEN3_CODER,
        qwen3_coder,
        ("Qwen3.5-4B.jinja", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16.jinja", "StepFun3.5-Flash.jinja"),
        without(r"</(parameter|function)>\s*<"),
    ),
    Sample(
        HERMES,
        hermes,
        (
            "Qwen-Qwen3-0.6B.jinja",
            "Qwen-QwQ-32B.jinja",
            "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja",
            "Reka-Edge.jinja",
            "ibm-granite-granite-4.0.jinja",
        ),
    ),
)
