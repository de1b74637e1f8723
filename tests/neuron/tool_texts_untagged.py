"""How formats write calls that have all of them in one list, in JSON or Python, or few tags or none."""

from __future__ import annotations

import json
import re
from typing import Any

from neuron.text.formats.apertus import APERTUS
from neuron.text.formats.apriel import APRIEL
from neuron.text.formats.command_a import COMMAND_A
from neuron.text.formats.command_r import COMMAND_R
from neuron.text.formats.falcon_h1 import FALCON_H1
from neuron.text.formats.functionary import FUNCTIONARY
from neuron.text.formats.gemma4 import GEMMA4
from neuron.text.formats.gigachat import GIGACHAT
from neuron.text.formats.granite import GRANITE
from neuron.text.formats.harmony import HARMONY
from neuron.text.formats.llama_json import LLAMA3_JSON
from neuron.text.formats.mistral import MISTRAL, MISTRAL_ARGS
from neuron.text.formats.nemotron import NEMOTRON
from neuron.text.formats.olmo3 import OLMO3
from neuron.text.formats.phi4 import PHI4
from neuron.text.formats.pythonic import LFM2, PYTHONIC
from neuron.text.formats.solar_open import SOLAR_OPEN
from tests.neuron.tool_texts import Call, Sample


def objects(calls: list[Call], between: str = ", ", arguments: str = "arguments") -> str:
    return between.join(json.dumps({"name": name, arguments: given}) for name, given in calls)


def mistral(calls: list[Call]) -> str:
    written = [
        {"name": name, "arguments": given, "id": f"id{number:07}"}
        for number, (name, given) in enumerate(calls)
    ]
    return f"[TOOL_CALLS]{json.dumps(written)}"


def mistral_args(calls: list[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(given)}" for name, given in calls)


def apertus(calls: list[Call]) -> str:
    written = [{name: given} for name, given in calls]
    return f"<|tools_prefix|>{json.dumps(written)}<|tools_suffix|>"


def command_a(calls: list[Call]) -> str:
    written = [
        {"tool_call_id": str(number), "tool_name": name, "parameters": given}
        for number, (name, given) in enumerate(calls)
    ]
    return f"<|START_ACTION|>{json.dumps(written, indent=4)}<|END_ACTION|>"


def command_r(calls: list[Call]) -> str:
    written = [{"tool_name": name, "parameters": given} for name, given in calls]
    return f"Action:\n```json\n{json.dumps(written, indent=4)}```"


def functions(calls: list[Call]) -> list[str]:
    return [
        f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        for name, arguments in calls
    ]


def python(calls: list[Call]) -> str:
    return f"[{', '.join(functions(calls))}]"


def is_key(key: str, value: object) -> bool:
    return re.fullmatch(r"[\w.\-]+", key) is not None


def gemma4(calls: list[Call]) -> str:
    return "".join(f"<|tool_call>call:{name}{in_gemma(given)}<tool_call|>" for name, given in calls)


def in_gemma(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{in_gemma(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(in_gemma, value)) + "]"
    return f'<|"|>{value}<|"|>' if isinstance(value, str) else str(value)


def fits_gemma(key: str, value: Any) -> bool:
    if isinstance(value, dict):
        return is_bare(key) and all(fits_gemma(*each) for each in value.items())
    if isinstance(value, list):
        return is_bare(key) and all(fits_gemma("a", each) for each in value)
    return is_bare(key) and not (isinstance(value, str) and '<|"|>' in value)


def is_bare(key: str) -> bool:
    return re.fullmatch(r"[\w./&-]+", key) is not None


def solar_open(calls: list[Call]) -> str:
    written = "".join(
        f"<|tool_call:begin|>{number}<|tool_call:name|>{name}"
        f"<|tool_call:args|>{json.dumps(arguments)}<|tool_call:end|>"
        for number, (name, arguments) in enumerate(calls)
    )
    return f"<|tool_calls|>{written}"


def harmony(calls: list[Call]) -> str:
    return "<|start|>assistant".join(
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{json.dumps(given)}<|call|>"
        for name, given in calls
    )


def functionary(calls: list[Call]) -> str:
    return ">>>".join(f"{name}\n{json.dumps(given)}" for name, given in calls)


def gigachat(calls: list[Call]) -> str:
    objects = [json.dumps({"name": name, "arguments": given}) for name, given in calls]
    return "".join(f"<|message_sep|>\n\nfunction call<|role_sep|>\n{each}" for each in objects)


SAMPLES = (
    Sample(HARMONY, harmony),
    Sample(SOLAR_OPEN, solar_open),
    Sample(FUNCTIONARY, functionary, ("meetkai-functionary-medium-v3.2.jinja",)),
    Sample(GIGACHAT, gigachat, ("GigaChat3-10B-A1.8B.jinja",), parallel=False),
    Sample(GEMMA4, gemma4, ("google-gemma-4-31B-it.jinja",), carries=fits_gemma),
    Sample(PYTHONIC, python, carries=is_key),
    Sample(LFM2, lambda calls: f"<|tool_call_start|>{python(calls)}<|tool_call_end|>", carries=is_key),
    Sample(
        OLMO3,
        lambda calls: "<function_calls>" + "\n".join(functions(calls)) + "</function_calls>",
        carries=is_key,
    ),
    Sample(NEMOTRON, lambda calls: f"<TOOLCALL>[{objects(calls)}]</TOOLCALL>"),
    Sample(FALCON_H1, lambda calls: f"<tool_call>\n[\n{objects(calls)}\n]\n</tool_call>"),
    Sample(MISTRAL, mistral, ("mistralai-Mistral-Nemo-Instruct-2407.jinja",)),
    Sample(MISTRAL_ARGS, mistral_args, ("unsloth-mistral-Devstral-Small-2507.jinja",)),
    Sample(GRANITE, lambda calls: f"<|tool_call|>[{objects(calls)}]"),
    Sample(PHI4, lambda calls: f"<|tool_call|>[{objects(calls)}]<|/tool_call|>"),
    Sample(APERTUS, apertus),
    Sample(
        APRIEL,
        lambda calls: f"<tool_calls>[{objects(calls)}]</tool_calls>",
        ("Apriel-1.6-15b-Thinker-fixed.jinja",),
    ),
    Sample(COMMAND_A, command_a),
    Sample(COMMAND_R, command_r, ("CohereForAI-c4ai-command-r-plus-tool_use.jinja",)),
    Sample(
        LLAMA3_JSON,
        lambda calls: objects(calls, "; ", "parameters"),
        ("meta-llama-Llama-3.2-3B-Instruct.jinja",),
        parallel=False,
    ),
)
