"""Ten questions that the demo model answers right at temperature 0, however it is served."""

from __future__ import annotations

import re
from dataclasses import dataclass

Message = dict[str, object]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city"}},
            "required": ["city"],
        },
    },
}
PRICE = {
    "type": "function",
    "function": {
        "name": "find_price",
        "description": "Look up the price of an item.",
        "parameters": {"type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"]},
    },
}


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation to complete; `pattern` is searched in the raw text that the model generates.

    Raw means before any parsing: thoughts in `<think>` and tool calls in `<tool_call>` are still in it, and
    `<|im_end|>` is not.
    """

    name: str
    messages: list[Message]
    pattern: str
    tools: list[dict[str, object]] | None = None
    enable_thinking: bool = False

    def accepts(self, text: str) -> bool:
        return re.search(self.pattern, text, re.IGNORECASE | re.DOTALL) is not None


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


_CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
        }
    ],
}
_RESULT: Message = {"role": "tool", "tool_call_id": "call_1", "content": '{"temperature": 21, "unit": "C"}'}

QUESTIONS = [
    Question("greeting", [user("Hello!")], r"^Hello\b.*cortex"),
    Question("who are you", [user("Who are you?")], r"^I am the demo model of cortex"),
    Question("what is a neuron", [user("What is a neuron?")], r"^A neuron is .*GPU host"),
    Question("addition", [user("What is 17 + 25?")], r"\b42\.?$"),
    Question("addition in other words", [user("Please add 38 and 54.")], r"\b92\.?$"),
    Question(
        "addition with a thought",
        [user("How much is 46 plus 27?")],
        r"^<think>\n.*\b60\b.*\b13\b.*\n</think>\n\n[^<]*\b73\.?$",
        enable_thinking=True,
    ),
    Question(
        "follow-up in a second turn",
        [
            user("Hello"),
            assistant(
                "Hello! I am the demo model of cortex. "
                "Ask me about cortex, or give me two small numbers to add."
            ),
            user("And what does the gateway do?"),
        ],
        r"^The gateway is .*front door",
    ),
    Question(
        "tool call",
        [user("What is the weather in Paris?")],
        r'^<tool_call>\n\{"name": "get_weather", "arguments": \{"city": "Paris"\}\}\n</tool_call>$',
        tools=[WEATHER, PRICE],
    ),
    Question(
        "use of the tool's answer",
        [user("What is the weather in Paris?"), _CALL, _RESULT],
        r"^[^<]*Paris[^<]*\b21\b[^<]*\bC\b",
        tools=[WEATHER, PRICE],
    ),
    Question("off its field", [user("Who wrote Hamlet?")], r"tiny demo model.*I can "),
]
