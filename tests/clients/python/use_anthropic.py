"""The `anthropic` package: messages, streamed by its helper and run by its own tool runner."""

from __future__ import annotations

import sys
from typing import Any

import anthropic
from notes import BASE_URL, FUNCTIONS, MODEL, MOST_TURNS, SCHEMAS, TASK, edit_file, read_file

client = anthropic.Anthropic(base_url=BASE_URL, api_key="none", max_retries=0)
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}


def messages() -> str | None:
    tools: Any = [
        {"name": name, "description": "A tool.", "input_schema": parameters}
        for name, parameters in SCHEMAS.items()
    ]
    turns: list[Any] = [{"role": "user", "content": TASK}]
    counted = client.messages.count_tokens(model=MODEL, messages=turns, tools=tools).input_tokens
    for number in range(MOST_TURNS):
        with client.messages.stream(
            model=MODEL, max_tokens=4096, messages=turns, tools=tools, thinking=THINKING
        ) as stream:
            kinds = {event.type for event in stream}
            answer = stream.get_final_message()
        assert {"message_start", "content_block_stop", "message_stop"} <= kinds, kinds
        usage = answer.usage
        if number == 0:
            assert answer.content[0].type == "thinking"
            assert usage.input_tokens + usage.cache_read_input_tokens == counted
        calls = [block for block in answer.content if block.type == "tool_use"]
        if not calls:
            return "".join(block.text for block in answer.content if block.type == "text")
        assert answer.stop_reason == "tool_use"
        turns.append({"role": "assistant", "content": answer.content})
        results = [
            {"type": "tool_result", "tool_use_id": call.id, "content": FUNCTIONS[call.name](**call.input)}
            for call in calls
        ]
        turns.append({"role": "user", "content": results})
    return None


def runner() -> str:
    tools: Any = [anthropic.beta_tool(read_file), anthropic.beta_tool(edit_file)]
    running = client.beta.messages.tool_runner(
        model=MODEL, max_tokens=4096, tools=tools, messages=[{"role": "user", "content": TASK}]
    )
    return "".join(block.text for block in running.until_done().content if block.type == "text")


print({"messages": messages, "runner": runner}[sys.argv[1]]())
