"""Which format of tool calls is chosen for a model, by its chat template."""

from __future__ import annotations

import pytest

from neuron.text.formats.registry import BY_NAME, tool_format
from tests.neuron.tool_samples import SAMPLES, TEMPLATES

# Templates of published models, and what each has its model write.
CHOSEN = {
    "Apriel-1.6-15b-Thinker-fixed": "apriel",
    "ByteDance-Seed-OSS": "seed_oss",
    "CohereForAI-c4ai-command-r-plus-tool_use": "command_r",
    "GLM-4.6": "glm",
    "GigaChat3-10B-A1.8B": "gigachat",
    "Kimi-K2-Thinking": "kimi",
    "LFM2-8B-A1B": "lfm2",
    "LFM2.5-Instruct": "lfm2",
    "MiniMax-M1": "minimax_m1",
    "MiniMax-M3": "minimax_m3",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "qwen3_coder",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "hermes",
    "Qwen-QwQ-32B": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "Qwen3.5-4B": "qwen3_coder",
    "Reka-Edge": "hermes",
    "StepFun3.5-Flash": "qwen3_coder",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "deepseek_v3",
    "deepseek-ai-DeepSeek-V3.2": "deepseek_v32",
    "deepseek-ai-DeepSeek-V4": "deepseek_v4",
    "google-gemma-4-31B-it": "gemma4",
    "ibm-granite-granite-4.0": "hermes",
    "inclusionai-ling-3.0-flash": "glm",
    "meetkai-functionary-medium-v3.2": "functionary",
    "meta-llama-Llama-3.2-3B-Instruct": "llama3_json",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral",
    "muse-glimmer": "muse",
    "openbmb-MiniCPM5-1B": "minicpm5",
    "poolside-Laguna-XS-2.1": "glm",
    "tencent-Hy3": "hy3",
    "unsloth-mistral-Devstral-Small-2507": "mistral_args",
    # They speak of no tools, so any format is as good as another.
    "HuggingFaceTB-SmolLM3-3B": "hermes",
    "google-gemma-2-2b-it": "hermes",
    "llama-cpp-rwkv-world": "hermes",
    "microsoft-Phi-3.5-mini-instruct": "hermes",
}
# They show tools and results to the model, and never a call.
WITHOUT_CALLS = {"LFM2-8B-A1B", "LFM2.5-Instruct", "HuggingFaceTB-SmolLM3-3B", "google-gemma-2-2b-it"}
WITHOUT_CALLS |= {"llama-cpp-rwkv-world", "microsoft-Phi-3.5-mini-instruct"}

# What says it in the templates of models, in the words of nobody's.
EXCERPTS = {
    "apertus": "{{ '<|tools_prefix|>' + calls | tojson }}",
    "apriel": "Write <tool_calls>[{...}]</tool_calls>.",
    "command_a": '{{ \'<|START_ACTION|>[{"tool_call_id": "0", "tool_name": \' + name }}',
    "command_r": 'Write Action: and {"tool_name": title}.',
    "deepseek_v3": "<｜tool▁call▁begin｜>function<｜tool▁sep｜>name\n```json",
    "falcon_h1": "Write <tool_call>\n[\n{...},\n{...}\n]\n</tool_call>.",
    "functionary": "{{ '>>>all\\n' + content }}",
    "gemma4": "{{ '<|tool_call>call:' + name }}",
    "gigachat": "{{ 'function call<|role_sep|>' + call + '<|message_sep|>' }}",
    "glm": "<tool_call>name <arg_key>key</arg_key> <arg_value>value</arg_value></tool_call>",
    "granite": "{{ '<|tool_call|>' + calls | tojson }}",
    "harmony": "{{ '<|channel|>commentary to=functions.' + name + '<|call|>' }}",
    "hermes": "Write <tool_call>{...}</tool_call>.",
    "hunyuan": "{{ '<tool_calls><tool_call>' + name + '\n```json\n' + arguments }}",
    "hy3": "{{ '<tool_sep{}>'.format(mark) + '<arg_key{}>'.format(mark) }}",
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>f<|tool_call_argument_begin|>",
    "lfm2": "List of tools: <|tool_list_start|>[",
    "llama3_json": '{"name": function name, "parameters": dictionary of argument name and its value}',
    "minicpm5": '<function name="f"><param name="a">value</param></function>',
    "mistral": "{{ '[TOOL_CALLS] [' + calls + ']' }}",
    "mistral_args": "{{ '[TOOL_CALLS]' + name + '[ARGS]' + arguments }}",
    "muse": '<atem:function_calls><atem:invoke name="f">',
    "nemotron": "Write <TOOLCALL>[{...}]</TOOLCALL>.",
    "olmo3": "{{ '<function_calls>' + calls + '</function_calls>' }}",
    "phi4": "<|tool|>{{ tools }}<|/tool|>",
    "pythonic": "Write [func_name1(params_name1=params_value1), func_name2()].",
    "qwen3_coder": "<tool_call><function=f><parameter=a>value</parameter></function></tool_call>",
    "solar_open": "{{ '<|tool_call:begin|>' + id + '<|tool_call:name|>' + name + '<|tool_call:args|>' }}",
    "seed_oss": "<seed:tool_call><function=f><parameter=a>value</parameter></function></seed:tool_call>",
}


@pytest.mark.parametrize("name", EXCERPTS)
def test_a_format_is_known_by_its_signs(name):
    assert tool_format([EXCERPTS[name]]) is BY_NAME[name]
    assert tool_format(["{{ messages }}", EXCERPTS[name]]) is BY_NAME[name]


@pytest.mark.parametrize("name", CHOSEN)
def test_the_format_of_a_published_template_is_chosen(name):
    file = TEMPLATES / f"{name}.jinja"
    if not file.exists():
        pytest.skip("there are no templates here")
    assert tool_format([file.read_text()]).name == CHOSEN[name]


def test_every_published_template_is_in_the_table_and_what_it_writes_is_read():
    if not TEMPLATES.is_dir():
        pytest.skip("there are no templates here")
    assert {file.stem for file in TEMPLATES.glob("*.jinja")} <= {*CHOSEN}
    read = {file.removesuffix(".jinja") for sample in SAMPLES for file in sample.templates}
    assert {*CHOSEN} - read == WITHOUT_CALLS
