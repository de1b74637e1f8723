"""Clients of all kinds, and what each makes of its answer."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests import streams
from tests.chaos.fleet import MODELS

PATIENCE = 90.0  # seconds for one request, which all limits of the fleet together stay below
LENGTHS = (2, 40, 150)  # tokens of an answer
AWAY = 2.0  # seconds at most between two tries of one client while the gateway is away
LEAVES = 0.1  # of all streams: how many clients go away
QUESTION = [{"role": "user", "content": "Hello!"}]

# What a client may be told while parts of a fleet are away. Each of them says when to try again.
PASSING = {
    "neuron_lost",
    "worker_died",
    "step_deadline",
    "queue_full",
    "queue_timeout",
    "shutting_down",
    "insufficient_memory",
    "model_loading",
    "store_unavailable",
    "overloaded_error",  # in Anthropic's words
    "server_error",  # in those of responses; the gateway's log has the code itself
}


@dataclass(slots=True)
class Asked:
    """One request.

    Attributes:
        end: how it ended, in a word.
        wrong: what must not have happened to it; "": nothing.
    """

    number: int
    kind: str
    model: str
    tokens: int
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    end: str = ""
    wrong: str = ""

    @property
    def id(self) -> str:
        return f"chaos-{self.number}"


class Load:
    """Requests one after another, of so many clients at once.

    Args:
        texts: what each model answers with so many tokens.
        excused: whether a connection may have broken in a request, as its gateway was killed.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        texts: dict[int, str],
        excused: Callable[[float, float], bool],
        seed: int,
    ) -> None:
        self.asked: list[Asked] = []
        self._client, self._texts, self._excused = client, texts, excused
        self._chance = random.Random(seed)
        self._numbers = itertools.count()
        self._over = asyncio.Event()

    async def run(self, clients: int) -> None:
        """Until `stop`, and then until each request has ended."""
        await asyncio.gather(*(self._one_after_another() for _ in range(clients)))

    def stop(self) -> None:
        self._over.set()

    async def _one_after_another(self) -> None:
        while not self._over.is_set():
            kind = self._chance.choice(tuple(KINDS))
            asked = Asked(
                next(self._numbers), kind, self._chance.choice(MODELS), self._chance.choice(LENGTHS)
            )
            self.asked.append(asked)
            leaves = self._chance.uniform(0, 1) if self._chance.random() < LEAVES else None
            try:
                async with asyncio.timeout(PATIENCE if leaves is None else leaves):
                    await self._ask(asked)
            except TimeoutError:
                asked.end = "left"
                if leaves is None:
                    asked.wrong = f"it did not end in {PATIENCE:g} s"
            asked.ended = time.monotonic()
            pause = AWAY if asked.end == "broken" else 0.2
            await asyncio.sleep(self._chance.uniform(0, pause))

    async def _ask(self, asked: Asked) -> None:
        """Ask, and hold the answer against what may come."""
        kind = KINDS[asked.kind]
        body = bytearray()
        try:
            async with self._client.stream(
                "POST",
                kind.path,
                json={"model": asked.model, **kind.body(asked.tokens)},
                headers={"x-request-id": asked.id},
            ) as response:
                async for part in response.aiter_bytes():
                    body += part
        except httpx.TransportError as error:
            asked.end = "broken"
            if not self._excused(asked.began, time.monotonic()):
                asked.wrong = f"the connection broke, and no gateway was killed: {error!r}"
            elif kind.streamed:
                self._hold(asked, written(bytes(body)), whole=False)
            return
        if response.status_code != 200:
            self._refused(asked, response, bytes(body))
            return
        try:
            answer = kind.read(bytes(body))
        except streams.Failed as error:
            asked.end = _code(error.error)
            if asked.end not in PASSING:
                asked.wrong = f"the stream failed: {error.error}"
            self._hold(asked, written(bytes(body)), whole=False)
            return
        except (AssertionError, KeyError, ValueError) as error:
            asked.end, asked.wrong = "unsound", f"{error!r}: {bytes(body[-600:])!r}"
            return
        asked.end = "whole"
        for text in kind.texts(answer):
            self._hold(asked, text, whole=True)

    def _refused(self, asked: Asked, response: httpx.Response, body: bytes) -> None:
        asked.end = "refused"
        with suppress(ValueError, KeyError, TypeError):
            asked.end = _code(json.loads(body)["error"])
        if response.status_code not in (503, 529) or asked.end not in PASSING:
            asked.wrong = f"status {response.status_code}: {body[:300]!r}"
        elif int(response.headers.get("Retry-After", 0)) < 1:
            asked.wrong = f"there is no Retry-After: {body[:300]!r}"

    def _hold(self, asked: Asked, text: str, *, whole: bool) -> None:
        """Compare a text, or the beginning of one, with what the model says."""
        expected = self._texts[asked.tokens]
        if text != expected if whole else not expected.startswith(text):
            at = next((i for i, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b), None)
            asked.wrong = (
                f"it says {len(text)} characters of {len(expected)}, and others than the model from {at} on"
            )

    def ends(self) -> Counter[str]:
        return Counter(f"{asked.kind}: {asked.end}" for asked in self.asked)


@dataclass(slots=True, frozen=True)
class Kind:
    """A way to ask."""

    path: str
    body: Callable[[int], dict[str, Any]]
    read: Callable[[bytes], Any]
    texts: Callable[[Any], list[str]]
    streamed: bool


def _chat(**more: Any) -> Callable[[int], dict[str, Any]]:
    return lambda tokens: {"messages": QUESTION, "max_tokens": tokens, **more}


def _choices(answer: Any) -> list[str]:
    assert len(answer["choices"]) in (1, 2)
    assert all(choice["finish_reason"] == "length" for choice in answer["choices"]), answer
    return [choice["message"]["content"] for choice in answer["choices"]]


def _blocks(answer: Any) -> list[str]:
    assert answer["stop_reason"] == "max_tokens", answer
    return ["".join(block["text"] for block in answer["content"])]


def _output(answer: Any) -> list[str]:
    assert answer["status"] == "incomplete", answer
    return ["".join(part["text"] for item in answer["output"] for part in item["content"])]


def _response(**more: Any) -> Callable[[int], dict[str, Any]]:
    return lambda tokens: {"input": "Hello!", "max_output_tokens": tokens, **more}


CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
KINDS = {
    "chat": Kind(CHAT, _chat(), json.loads, _choices, False),
    "chat stream": Kind(CHAT, _chat(stream=True), streams.chat, _choices, True),
    "two choices": Kind(CHAT, _chat(stream=True, n=2), lambda body: streams.chat(body, n=2), _choices, True),
    "messages": Kind(MESSAGES, _chat(), json.loads, _blocks, False),
    "messages stream": Kind(MESSAGES, _chat(stream=True), streams.anthropic, _blocks, True),
    "response": Kind(RESPONSES, _response(), json.loads, _output, False),
    "response stream": Kind(RESPONSES, _response(stream=True), streams.responses, _output, True),
}


def written(body: bytes) -> str:
    """The text of the first choice, as far as a stream came."""
    text = ""
    for line in body.split(b"\n"):
        with suppress(ValueError):  # the last line may be cut off
            event = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: {") else {}
            for choice in event.get("choices") or ():
                text += (choice["delta"].get("content") or "") if choice["index"] == 0 else ""
            delta = event.get("delta")
            if event.get("type") == "response.output_text.delta":
                text += delta
            elif isinstance(delta, dict):
                text += delta.get("text", "")
    return text


def _code(error: dict[str, Any]) -> str:
    """What an error is called, in any dialect."""
    return error.get("code") or error["type"]


async def learn(client: httpx.AsyncClient) -> dict[int, str]:
    """What the simulated engine says with each number of tokens."""
    texts = {}
    for tokens in LENGTHS:
        answer = await client.post(CHAT, json={"model": "first", **_chat()(tokens)})
        [texts[tokens]] = _choices(answer.json())
    return texts
