"""How long the dearest request of each kind holds up a gateway process, as another client sees it.

python -m benchmarks.bodies [--repeat N] [--json FILE] [KIND ...]

Another process posts the body; this one asks for `/version` all the while, and takes the longest wait for an
answer. On a machine that is busy with other things some of that is theirs: the least of several runs is shown
beside the worst, and the line for nothing says what a machine does to it. Little of the CPU time is theirs
that the loop had at most in one go (`held`), and that the process had meanwhile, whose threads may keep the
loop from going on (`process`).
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.beside import longest_wait, prepared
from benchmarks.gateway import process, wait_for_answer
from tests.held import Held
from tests.neuron.harness import HELD
from tests.ports import free_ports

SECONDS = 60.0  # for one request
MODEL = "simulated"

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
COMPLETIONS = "/v1/completions"


def chat(messages: list[Any], **more: Any) -> tuple[str, Any]:
    return CHAT, {"model": MODEL, "max_tokens": 1, "messages": messages} | more


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def texts(count: int, text: str) -> list[Any]:
    return [{"type": "text", "text": text}] * count


def answered(**more: Any) -> tuple[str, Any]:
    """By a model that computes."""
    return COMPLETIONS, {"model": "demo", "max_tokens": 1} | more


def numbered(count: int, **more: Any) -> tuple[str, Any]:
    """A prompt of so many token ids."""
    return COMPLETIONS, {"model": MODEL, "max_tokens": 1, "prompt": [300] * count} | more


def spelled(**more: Any) -> tuple[str, Any]:
    """A long answer by the model that computes, with all that may be told of its tokens."""
    form = {"type": "json_schema", "name": "long", "schema": {"const": "zq" * 700}}
    asked = {"model": "demo", "input": "Hi", "top_logprobs": 20, "text": {"format": form}, "store": True}
    return RESPONSES, asked | more


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


WORDS = "word " * 6_000_000  # 30 MB
IMAGE = "data:image/png;base64," + base64.b64encode(bytes(22_000_000)).decode()
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {}}},
}


def wide(count: int) -> dict[str, Any]:
    properties = {f"p{number}": {"type": "string"} for number in range(count)}
    return {"type": "function", "function": {"name": "f", "parameters": {"properties": properties}}}


KINDS: dict[str, Callable[[], tuple[str, Any]]] = {
    "nothing": lambda: chat([user("Hello")]),
    "a text of 30 MB": lambda: chat([user(WORDS)]),
    "a text of 30 MB, escaped": lambda: chat([user("é\n" * 4_000_000)]),
    "600,000 messages": lambda: chat([user("")] * 600_000),
    "10,000 messages of 3,000": lambda: chat([user("word " * 600)] * 10_000),
    "600,000 parts": lambda: chat([user(texts(600_000, "a"))]),
    "100 messages of 6,000 parts": lambda: chat([user(texts(6000, "a"))] * 100),
    "an image of 22 MB": lambda: chat([user([{"type": "image_url", "image_url": {"url": IMAGE}}])]),
    "a tool of 600,000 properties": lambda: chat([user("")], tools=[wide(600_000)]),
    "300,000 tools": lambda: chat([user("")], tools=[TOOL] * 300_000),
    "1,000 tools of 700 properties": lambda: chat([user("")], tools=[wide(700)] * 1000),
    "an unknown field of 5,000,000 numbers": lambda: chat([user("")], unknown=[1] * 5_000_000),
    "5,000,000 stop tokens": lambda: chat([user("")], stop_token_ids=[1] * 5_000_000),
    "template arguments of 5,000,000": lambda: chat([user("")], chat_template_kwargs={"a": [1] * 5_000_000}),
    "a prompt of 5,000,000 tokens": lambda: (
        "/v1/completions",
        {"model": MODEL, "max_tokens": 1, "prompt": [1] * 5_000_000},
    ),
    "300,000 prompts": lambda: (
        "/v1/completions",
        {"model": MODEL, "max_tokens": 1, "prompt": ["word " * 10] * 300_000},
    ),
    "1,000,000 texts to embed": lambda: (
        "/v1/embeddings",
        {"model": MODEL, "input": ["word word"] * 1_000_000},
    ),
    "600,000 messages, Anthropic": lambda: (
        MESSAGES,
        {"model": MODEL, "max_tokens": 1, "messages": [user("a")] * 600_000},
    ),
    "100 messages of 6,000 parts, Anthropic": lambda: (
        MESSAGES,
        {"model": MODEL, "max_tokens": 1, "messages": [user(texts(6000, "a"))] * 100},
    ),
    "counting 30 MB, Anthropic": lambda: (
        "/v1/messages/count_tokens",
        {"model": MODEL, "messages": [user(WORDS)]},
    ),
    "10,000 items of 2,500, Responses": lambda: (
        RESPONSES,
        {"model": MODEL, "max_output_tokens": 16, "input": [user("word " * 500)] * 10_000},
    ),
    "600,000 items, Responses": lambda: (RESPONSES, {"model": MODEL, "input": [user("")] * 600_000}),
    "400,000 token ids": lambda: numbered(390_000),
    "262,144 token ids told back": lambda: numbered(1 << 18, return_token_ids=True),
    "1,000,000 tokens to read": lambda: ("/detokenize", {"model": MODEL, "tokens": [300] * 1_000_000}),
    "a text of 4 MB": lambda: chat([user("word " * 800_000)]),
    "a text of 4 MB, Responses": lambda: (
        RESPONSES,
        {"model": MODEL, "max_output_tokens": 16, "input": [user("word " * 800_000)]},
    ),
    "counting 4 MB, Anthropic": lambda: (
        "/v1/messages/count_tokens",
        {"model": MODEL, "messages": [user("word " * 750_000)]},
    ),
    "a conversation of 4 MB": lambda: ("/v1/conversations", {"items": [user("word " * 40_000)] * 20}),
    "2,048 vectors": lambda: ("/v1/embeddings", {"model": "demo", "input": ["word " * 10] * 2048}),
    "log-probabilities of 64 answers": lambda: answered(
        prompt=["word"] * 64, max_tokens=300, logprobs=20, ignore_eos=True
    ),
    "log-probabilities of prompts": lambda: answered(prompt=[[300] * 2000] * 18, prompt_logprobs=20),
    "log-probabilities of prompts, streamed": lambda: answered(
        prompt=[[300] * 2000] * 18, prompt_logprobs=20, stream=True
    ),
    "log-probabilities, Responses": spelled,
    "log-probabilities, Responses, streamed": lambda: spelled(stream=True),
    "128 answers, streamed": lambda: answered(
        prompt=["word"] * 128, max_tokens=100, ignore_eos=True, stream=True
    ),
    "the OpenAPI document": lambda: ("/openapi.json", None),
    "no JSON": lambda: (CHAT, [[[1] * 1000] * 10_000]),
}


def send(kind: str, port: int) -> None:
    """The other process: prepare, wait for a line, post, say what became of it."""
    path, fields = KINDS[kind]()
    body = b"" if fields is None else json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    connection.connect()
    prepared(len(body))
    connection.request("POST" if body else "GET", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read().decode()
    error = json.loads(text).get("error") if answer.status != 200 else None
    print(answer.status, (error or {}).get("message", "")[:70], flush=True)


def measure(kind: str, port: int) -> tuple[int, float, float, str]:
    """Bytes of the body, the longest wait for `/version`, seconds until the body was answered, and how."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)

    def ask() -> None:
        connection.request("GET", "/version")
        connection.getresponse().read()

    size, *rest = longest_wait("benchmarks.bodies", kind, port, ask)
    return int(size), *rest


def main() -> None:
    if sys.argv[1:2] == ["--send"]:
        send(sys.argv[2], int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--repeat", type=int, default=3, help="runs of each kind")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    options = parser.parse_args()
    results = {}
    api, metrics, endpoint = free_ports(3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "neuron.yaml").write_text(
            f"listen: tcp://127.0.0.1:{endpoint}\ndevices: [cpu]\n"
            "models:\n"
            "- {id: simulated, pin: true, simulated: {context_length: 1048576}}\n"
            "- {id: demo, pin: true}\n"
        )
        (folder / "cortex.yaml").write_text(
            f"gateway: {{listen: '127.0.0.1:{api}', metrics_listen: '127.0.0.1:{metrics}'}}\n"
            f"neurons: [{{name: local, endpoint: 'tcp://127.0.0.1:{endpoint}'}}]\n"
            f"store: {{path: '{folder}/store.db'}}\n"
        )
        neuron = process(folder / "neuron.log", "-m", "neuron", "serve", "--config", f"{folder}/neuron.yaml")
        held = Held(folder / "held")
        own = {"CORTEX_CONFIG": f"{folder}/cortex.yaml", HELD: f"{folder}/held"}
        app = "benchmarks.watched_gateway:app"
        gateway = process(folder / "gateway.log", "-m", "gunicorn", app, **own)
        with neuron, gateway as serving:
            wait_for_answer(serving, api)
            columns = f"{'held ms':>8} {'process':>8} {'stall ms: least':>15} {'worst':>7} {'answered s':>11}"
            print(f"{'request':42} {'MB':>5} {columns}")
            for kind in options.kinds:
                runs, helds = [], []
                for _ in range(options.repeat):
                    held.take()
                    runs.append(measure(kind, api))
                    helds.append(held.take())
                size, _, seconds, outcome = runs[-1]
                stalls = [stall for _, stall, _, _ in runs]
                results[kind] = {"held": helds, "stalls": stalls, "seconds": seconds, "outcome": outcome}
                results[kind]["bytes"] = size
                held_ms = " ".join(f"{min(each) * 1e3:8.1f}" for each in zip(*helds, strict=True))
                figures = f"{held_ms} {min(stalls) * 1e3:15.1f} {max(stalls) * 1e3:7.1f}"
                print(f"{kind:42} {size / 1e6:5.1f} {figures} {seconds:11.2f}  {outcome}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
