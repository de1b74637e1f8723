"""`cortex bench`: how fast a gateway answers, as its clients see it."""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from statistics import quantiles
from typing import Any
from urllib.parse import quote

from rich.table import Table

from gateway.commands import remote, tables

WORDS = ("river", "stone", "lamp", "garden", "winter", "signal", "paper", "copper", "island", "thread")


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """One streamed answer. Times are seconds."""

    first_token: float  # from the request
    total: float
    prompt_tokens: int
    tokens: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked.

    Attributes:
        words: of each prompt, which are drawn anew, so that no cache helps.
    """

    model: str
    requests: int
    concurrency: int
    words: int
    max_tokens: int


def run(endpoint: str, load: Load, seed: int = 0) -> tuple[list[TimedAnswer], float]:
    """Ask, and the seconds that all of it took, once the model is loaded.

    Raises:
        Unreachable: no gateway is there, or the very first request, which is not measured, fails.
    """
    draw = random.Random(seed)
    prompts = [" ".join(draw.choices(WORDS, k=load.words)) for _ in range(load.requests)]
    model = json.loads(remote.fetch(endpoint, f"/v1/models/{quote(load.model)}"))
    ask = _chat if "chat" in model.get("capabilities", ("chat",)) else _complete
    first = _measure(endpoint, *ask("Hello"), replace(load, max_tokens=1))
    if first.error:
        raise remote.Unreachable(first.error)
    began = time.monotonic()
    with ThreadPoolExecutor(load.concurrency) as pool:
        answers = list(pool.map(lambda prompt: _measure(endpoint, *ask(prompt), load), prompts))
    return answers, time.monotonic() - began


def table(answers: list[TimedAnswer]) -> Table:
    """How long clients waited."""
    good = [answer for answer in answers if not answer.error]
    rows = tables.table("", "median", "95 %", "worst")
    firsts = [answer.first_token for answer in good]
    gaps = [
        1000 * (answer.total - answer.first_token) / (answer.tokens - 1)
        for answer in good
        if answer.tokens > 1
    ]
    totals = [answer.total for answer in good]
    for name, values, digits in (
        ("first token, s", firsts, 3),
        ("between tokens, ms", gaps, 2),
        ("whole answer, s", totals, 3),
    ):
        if values:
            _, *cuts = quantiles([*values, *values], n=20)  # a single one has quantiles, too
            rows.add_row(name, *(f"{value:.{digits}f}" for value in (cuts[8], cuts[17], max(values))))
    return rows


def total(answers: list[TimedAnswer], seconds: float) -> str:
    """What all requests together came to, in one line."""
    good = [answer for answer in answers if not answer.error]
    tokens, prompts = sum(answer.tokens for answer in good), sum(answer.prompt_tokens for answer in good)
    return (
        f"{len(good)} of {len(answers)} answered in {seconds:.1f} s: "
        f"{tokens / seconds:.1f} tokens/s of answers, {prompts / seconds:.1f} tokens/s of prompts"
    )


def summary(answers: list[TimedAnswer], seconds: float) -> dict[str, object]:
    """The same for programs: each answer, and the seconds of all."""
    fields = TimedAnswer.__dataclass_fields__
    return {
        "seconds": seconds,
        "answers": [{name: getattr(answer, name) for name in fields} for answer in answers],
    }


def _chat(prompt: str) -> tuple[str, dict[str, object]]:
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}]}


def _complete(prompt: str) -> tuple[str, dict[str, object]]:
    """For a model without a chat template."""
    return "/v1/completions", {"prompt": prompt}


def _measure(endpoint: str, path: str, asked: dict[str, object], load: Load) -> TimedAnswer:
    body = asked | {
        "model": load.model,
        "max_tokens": load.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    began, first, usage = time.monotonic(), 0.0, {}
    try:
        for event in remote.events(endpoint, path, body):
            if "error" in event:
                return TimedAnswer(0.0, 0.0, 0, 0, event["error"]["message"])
            if not first and any(map(_says, event["choices"])):
                first = time.monotonic() - began
            usage = event.get("usage") or usage
    except (remote.Unreachable, json.JSONDecodeError, KeyError) as error:
        return TimedAnswer(0.0, 0.0, 0, 0, str(error))
    total = time.monotonic() - began
    return TimedAnswer(
        first or total, total, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
    )


def _says(choice: dict[str, Any]) -> bool:
    """Whether a choice in a chunk brings something of the answer."""
    said = choice.get("delta", choice)
    return any(said.get(key) for key in ("content", "reasoning_content", "tool_calls", "text"))
