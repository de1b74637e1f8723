"""`langchain-openai`: chat completions and Responses, streamed."""

from __future__ import annotations

import sys
from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from notes import BASE_URL, FUNCTIONS, MODEL, MOST_TURNS, TASK, edit_file, read_file


def session(use_responses_api: bool) -> str | None:
    model = ChatOpenAI(
        model=MODEL,
        base_url=f"{BASE_URL}/v1",
        api_key="none",
        max_retries=0,
        stream_usage=True,
        use_responses_api=use_responses_api,
    ).bind_tools([read_file, edit_file])
    messages: list[Any] = [HumanMessage(TASK)]
    for _ in range(MOST_TURNS):
        answer: Any = None
        for chunk in model.stream(messages):
            answer = chunk if answer is None else answer + chunk
        assert answer.usage_metadata["total_tokens"] > 0
        if not answer.tool_calls:
            return answer.text
        messages.append(answer)
        for call in answer.tool_calls:
            result = FUNCTIONS[call["name"]](**call["args"])
            messages.append(ToolMessage(result, tool_call_id=call["id"]))
    return None


print(session(sys.argv[1] == "responses"))
