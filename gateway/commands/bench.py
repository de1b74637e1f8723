"""`cortex bench`: how fast a gateway answers, as its clients see it."""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import quantiles

from rich.table import Table

from gateway.commands import remote

WORDS = ("river", "stone", "lamp", "garden", "winter", "signal", "paper", "copper", "island", "thread")


@dataclass(frozen=True, slots=True)
class Answer:
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


def run(endpoint: str, load: Load, seed: int = 0) -> tuple[list[Answer], float]:
    """Ask, and the seconds that all of it took. Unreachable when the very first request finds no gateway."""
    draw = random.Random(seed)
    prompts = [" ".join(draw.choices(WORDS, k=load.words)) for _ in range(load.requests)]
    remote.fetch(endpoint, "/v1/models")
    began = time.monotonic()
    with ThreadPoolExecutor(load.concurrency) as pool:
        answers = list(pool.map(lambda prompt: _ask(endpoint, load, prompt), prompts))
    return answers, time.monotonic() - began


def table(answers: list[Answer], seconds: float) -> Table:
    """What came of it."""
    good = [answer for answer in answers if not answer.error]
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "median", "95 %", "worst"):
        rows.add_column(column)
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
    tokens, prompts = sum(answer.tokens for answer in good), sum(answer.prompt_tokens for answer in good)
    rows.caption = (
        f"{len(good)} of {len(answers)} answered in {seconds:.1f} s: "
        f"{tokens / seconds:.1f} tokens/s of answers, {prompts / seconds:.1f} tokens/s of prompts"
    )
    rows.caption_justify = "left"
    return rows


def summary(answers: list[Answer], seconds: float) -> dict[str, object]:
    """The same for programs: each answer, and the seconds of all."""
    fields = Answer.__dataclass_fields__
    return {
        "seconds": seconds,
        "answers": [{name: getattr(answer, name) for name in fields} for answer in answers],
    }


def _ask(endpoint: str, load: Load, prompt: str) -> Answer:
    body = {
        "model": load.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": load.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    began, first, usage = time.monotonic(), 0.0, {}
    try:
        for event in remote.events(endpoint, "/v1/chat/completions", body):
            if "error" in event:
                return Answer(0.0, 0.0, 0, 0, event["error"]["message"])
            if not first and any(choice["delta"].get(key) for choice in event["choices"] for key in _SAID):
                first = time.monotonic() - began
            usage = event.get("usage") or usage
    except (remote.Unreachable, json.JSONDecodeError, KeyError) as error:
        return Answer(0.0, 0.0, 0, 0, str(error))
    total = time.monotonic() - began
    return Answer(first or total, total, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))


_SAID = ("content", "reasoning_content", "tool_calls")
