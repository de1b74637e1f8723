"""`litellm`, streamed, by way of its OpenAI and its Anthropic provider."""

from __future__ import annotations

import json
import sys
from typing import Any

import litellm
from notes import BASE_URL, CHAT_TOOLS, FUNCTIONS, MODEL, MOST_TURNS, TASK

litellm.suppress_debug_info = True
PROVIDERS = {
    "openai": {"model": f"openai/{MODEL}", "api_base": f"{BASE_URL}/v1"},
    "anthropic": {"model": f"anthropic/{MODEL}", "api_base": BASE_URL},
}


def session(provider: dict[str, str]) -> str | None:
    messages: list[Any] = [{"role": "user", "content": TASK}]
    for _ in range(MOST_TURNS):
        chunks = list(
            litellm.completion(
                **provider,
                api_key="none",
                messages=messages,
                tools=CHAT_TOOLS,
                max_tokens=4096,
                stream=True,
                stream_options={"include_usage": True},
                num_retries=0,
            )
        )
        answer: Any = litellm.stream_chunk_builder(chunks, messages=messages)
        message = answer.choices[0].message
        if not message.tool_calls:
            return message.content
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            result = FUNCTIONS[call.function.name](**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return None


print(session(PROVIDERS[sys.argv[1]]))
