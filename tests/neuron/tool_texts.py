"""How each format writes calls, for tests of what all formats have in common: a line here for a new one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from neuron.text.formats.hermes import HERMES
from neuron.text.formats.tool_format import ToolFormat

Call = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Sample:
    """A format, and what its models write.

    Attributes:
        write: calls as a model writes them, the way that the templates do.
        templates: of models that write it, by file name.
        carries: whether it can write an argument, a key and its value, so that it can be read again.
    """

    format: ToolFormat
    write: Callable[[list[Call]], str]
    templates: tuple[str, ...] = ()
    carries: Callable[[str, Any], bool] = lambda key, value: True

    @property
    def name(self) -> str:
        return self.format.name


def hermes(calls: list[Call]) -> str:
    return "\n".join(
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
        for name, arguments in calls
    )


SAMPLES = (
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
