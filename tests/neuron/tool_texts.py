"""How each format writes calls, for tests of what all formats have in common: a line here for a new one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from neuron.text.formats.hermes import HERMES
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
        carries: whether it can write an argument, a key and its value, so that it can be read again.
    """

    format: ToolFormat
    write: Callable[[list[Call]], str]
    templates: tuple[str, ...] = ()
    carries: Callable[[str, Any], bool] = lambda key, value: True
    parallel: bool = True

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


def fits_in_tag(key: str) -> bool:
    """Whether a tag can have this name in it."""
    return not re.search(r"[<>]", key)


SAMPLES = (
    Sample(
        QWEN3_CODER,
        qwen3_coder,
        ("Qwen3.5-4B.jinja", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16.jinja", "StepFun3.5-Flash.jinja"),
        lambda key, value: fits_in_tag(key) and not re.search(r"</(parameter|function)>\s*<", bare(value)),
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
