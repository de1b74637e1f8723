"""The `openai` package: chat completions and Responses, streamed through its helpers."""

from __future__ import annotations

import json
import sys
from typing import Any

import openai
from notes import BASE_URL, CHAT_TOOLS, FUNCTIONS, MODEL, MOST_TURNS, SCHEMAS, TASK

client = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key="none", max_retries=0)


def chat() -> str | None:
    messages: list[Any] = [{"role": "user", "content": TASK}]
    for _ in range(MOST_TURNS):
        options = {"include_usage": True}
        with client.chat.completions.stream(
            model=MODEL, messages=messages, tools=CHAT_TOOLS, stream_options=options
        ) as stream:
            kinds = {event.type for event in stream}
            answer = stream.get_final_completion()
        assert {"chunk", "content.delta"} <= kinds, kinds
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        message = answer.choices[0].message
        if not message.tool_calls:
            return message.content
        assert answer.choices[0].finish_reason == "tool_calls"
        messages.append(message.model_dump(exclude_none=True, exclude={"parsed": True}))
        for call in message.tool_calls:
            result = FUNCTIONS[call.function.name](**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return None


def responses(store: bool) -> str | None:
    tools = [
        {"type": "function", "name": name, "description": "A tool.", "parameters": parameters, "strict": True}
        for name, parameters in SCHEMAS.items()
    ]
    items: list[Any] = [{"role": "user", "content": TASK}]
    previous = None
    for _ in range(MOST_TURNS):
        more = {"previous_response_id": previous} if previous else {}
        include = {} if store else {"include": ["reasoning.encrypted_content"]}
        with client.responses.stream(
            model=MODEL, input=items, tools=tools, store=store, **more, **include
        ) as stream:
            kinds = {event.type for event in stream}
            answer = stream.get_final_response()
        assert {"response.created", "response.completed"} <= kinds, kinds
        assert answer.status == "completed"
        calls = [item for item in answer.output if item.type == "function_call"]
        if not calls:
            return answer.output_text
        if store:
            previous, items = answer.id, []
        else:
            items += [
                item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in answer.output
            ]
        for call in calls:
            result = FUNCTIONS[call.name](**json.loads(call.arguments))
            items.append({"type": "function_call_output", "call_id": call.call_id, "output": result})
    return None


SESSIONS = {"chat": chat, "responses": lambda: responses(False), "stored": lambda: responses(True)}
print(SESSIONS[sys.argv[1]]())
