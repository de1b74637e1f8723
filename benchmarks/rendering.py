"""What it costs to write a token of a stream, by dialect: `python -m benchmarks.rendering [--json PATH]`.

Microseconds of one core an event, the best of several rounds, beside what the bare bytes cost: the same text
between two strings that are there already.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gateway.dialects import RequestContext
from gateway.dialects.anthropic import messages
from gateway.dialects.openai import chat, completions
from gateway.dialects.openai.responses import request as responses
from ipc.messages.answers import ToolCallDelta
from ipc.messages.replies import Delta, Started

EVENTS, ROUNDS = 5_000, 20
USER = [{"role": "user", "content": "Hello!"}]
CONTEXT = RequestContext("benchmark")
Write = Callable[[Delta], bytes]


def write_bare(delta: Delta) -> bytes:
    """As little as can be done for an event."""
    return b"".join((b"data: ", (delta.text or delta.reasoning).encode(), b"\n\n"))


def writers() -> dict[str, Callable[[], Write]]:
    """By dialect: makes what writes the deltas of one answer."""
    tools = [{"type": "function", "function": {"name": "f"}}]

    def of(parse: Callable[..., object], **fields: object) -> Callable[[], Write]:
        body = json.dumps({"model": "m", "stream": True} | fields).encode()

        def make() -> Write:
            _, answer = asyncio.run(parse(body, CONTEXT))
            answer.started(Started(id=1, prompt_tokens=9))
            return answer.delta

        return make

    def of_response() -> Write:
        body = json.dumps({"model": "m", "stream": True, "store": False, "input": "Hello!"}).encode()
        return asyncio.run(responses.read(body, CONTEXT, None)).output.take

    obfuscated = {"stream_options": {"include_obfuscation": True}}
    return {
        "bare bytes": lambda: write_bare,
        "chat completions": of(chat.parse, messages=USER, tools=tools),
        "chat completions, obfuscated": of(chat.parse, messages=USER, tools=tools, **obfuscated),
        "completions": of(completions.parse, prompt="Hello!"),
        "responses": lambda: of_response(),
        "messages": of(messages.parse, messages=USER, max_tokens=99),
    }


def deltas(kind: str) -> list[Delta]:
    """The deltas of one answer, a token each."""
    if kind == "text":
        return [Delta(id=1, tokens=1, text=" token")] * EVENTS
    if kind == "reasoning":
        return [Delta(id=1, tokens=1, reasoning=" token")] * EVENTS
    begin = Delta(id=1, tokens=1, tool_calls=[ToolCallDelta(index=0, call_id="call_1", name="f")])
    piece = Delta(id=1, tokens=1, tool_calls=[ToolCallDelta(index=0, arguments=' "a')])
    return [begin, *[piece] * (EVENTS - 1)]


def measure(make: Callable[[], Write], pieces: list[Delta]) -> float:
    """Microseconds an event."""
    best = float("inf")
    for _ in range(ROUNDS):
        write = make()
        started = time.perf_counter()
        for piece in pieces:
            write(piece)
        best = min(best, time.perf_counter() - started)
    return best / len(pieces) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the numbers there, too")
    arguments = parser.parse_args()
    kinds = ("text", "reasoning", "arguments")
    table = Table("µs a token event", *kinds)
    results: dict[str, dict[str, float]] = {}
    for name, make in writers().items():
        told = kinds[: 1 if name == "completions" else len(kinds)]  # which have text alone
        results[name] = {kind: round(measure(make, deltas(kind)), 2) for kind in told}
        table.add_row(name, *(f"{results[name][kind]:.2f}" if kind in told else "" for kind in kinds))
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
