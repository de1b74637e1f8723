"""How long the dearest request of each kind holds up a neuron's event loop, as another client sees it.

python -m benchmarks.stalls [--repeat N] [--json FILE] [KIND ...]

Another process sends the request; this one says `hello` all the while, and takes the longest wait for an
answer. On a machine that is busy with other things some of that is theirs, and little of the CPU time that
the loop had at most between two looks, a millisecond apart: see the line for nothing. What requests do to a
gateway, `benchmarks.bodies` tells.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import zmq
from PIL import Image

from benchmarks.beside import longest_wait, prepared
from ipc.blocking_client import BlockingClient
from ipc.messages.catalogue import FleetCatalogue
from ipc.messages.conversation import ImagePart, Message, TextPart, Tool
from ipc.messages.framing import HEADER
from ipc.messages.replies import TERMINAL, AnyReply, Failed
from ipc.messages.requests import (
    CheckCatalogue,
    CountTokens,
    Detokenize,
    Embed,
    Generate,
    Hello,
    Request,
    Rerank,
    Tokenize,
)
from ipc.messages.sampling import Sampling, Structured
from ipc.model_settings import MAX_MODELS, ModelSettings
from neuron.catalogue.catalogue import DEMO_FOLDER
from tests.held import Held
from tests.neuron.demo_adapters import write_adapter
from tests.neuron.harness import HELD, Neuron, simulated
from tests.neuron.word_tokenizer import write_tokenizer
from tests.workers import encoders, seeing

SECONDS = 60.0  # for one request
MODEL = "sim"
SEES, RANKS, ADAPTED = "sees", "ranks", "adapted"
ID = 1


def chat(**changes: Any) -> Generate:
    values = {
        "messages": [Message(role="user", content="Hello")],
        "sampling": Sampling(max_tokens=1),
    } | changes
    return Generate(id=ID, model=MODEL, account="dear", **values)


def raw(**fields: Any) -> dict[str, Any]:
    """As somebody else may write it."""
    return {"verb": "generate", "id": ID, "model": MODEL, "account": "dear", **fields}


def users(count: int, content: str) -> list[Message]:
    return [Message(role="user", content=content)] * count


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        value = {"type": "object", "properties": {"a": value}}
    return value


def wide(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(count)}}


def tools(count: int, parameters: dict[str, Any]) -> list[Tool]:
    return [Tool.function(name=f"f{number}", parameters=parameters) for number in range(count)]


def drawn(**changes: Any) -> Generate:
    return chat(sampling=Sampling(**({"max_tokens": 1} | changes)))


def answered(**fields: Any) -> Generate:
    """For the model that computes."""
    sampling = {name: fields.pop(name) for name in list(fields) if name in Sampling.__struct_fields__}
    values = {"messages": None, "sampling": Sampling(**{"max_tokens": 1} | sampling)} | fields
    return Generate(id=ID, model="demo", account="dear", **values)


def formed(**structured: Any) -> Generate:
    return answered(prompt=None, messages=users(1, "Hi"), structured=Structured(**structured))


def rule(number: int) -> str:
    return f'r{number}: "w{number}" (r{(number + 1) % 300} | "x")\n'


def noise(size: int) -> bytes:
    """An image that no format makes small."""
    file = io.BytesIO()
    Image.frombytes("RGB", (size, size), random.Random(1).randbytes(3 * size * size)).save(file, "PNG")
    return file.getvalue()


def seen(*images: bytes) -> Generate:
    turn = Message(role="user", content=[ImagePart(data=image) for image in images])
    return Generate(id=ID, model=SEES, account="dear", messages=[turn], sampling=Sampling(max_tokens=1))


def made(folder: Path) -> list[dict[str, Any]]:
    """Models of which there is none in the package: little ones, with random weights."""
    for name in (SEES, RANKS):
        (folder / name).mkdir()
    seeing.write(folder / SEES)
    encoders.write("bert_classifier", folder / RANKS)
    write_tokenizer(folder / RANKS)
    write_adapter(folder / "a", 1)
    adapted = {"id": ADAPTED, "path": str(DEMO_FOLDER), "adapters": {"a": str(folder / "a")}, "pin": True}
    return [adapted, *({"id": name, "path": str(folder / name), "pin": True} for name in (SEES, RANKS))]


def catalogue() -> CheckCatalogue:
    """One as large as a gateway may have it."""
    models = [ModelSettings(id=f"model-{number}", path="/nowhere") for number in range(MAX_MODELS)]
    return CheckCatalogue(
        id=ID, catalogue=FleetCatalogue(version="1", origin="o", modified=1.0, models=models)
    )


PROMPTS = [[300] * 2000] * 128
WORDS = "word " * 6_000_000  # 30 MB
PARTS = [TextPart(text="a")] * 100_000
STOPS = ["T" * 990 + str(number) for number in range(16)]
CHOICES = [f"choice {number}" for number in range(10_000)]
DEAR: dict[str, Callable[[], Request | dict[str, Any]]] = {
    "nothing": lambda: drawn(max_tokens=500),
    "10,000 empty turns": lambda: chat(messages=users(10_000, "")),
    "600,000 empty turns": lambda: chat(messages=users(600_000, "")),
    "600,000 empty turns, written out": lambda: raw(messages=[{"role": "user", "content": ""}] * 600_000),
    "60,000,000 empty lists": lambda: raw(messages=[[]] * 60_000_000),
    "10,000 turns of 1,000 characters": lambda: chat(messages=users(10_000, "word " * 200)),
    "a turn of 100,000 parts": lambda: chat(messages=[Message(role="user", content=PARTS)]),
    "a text of 30 MB": lambda: chat(messages=users(1, WORDS)),
    "counting 30 MB": lambda: CountTokens(id=ID, model=MODEL, messages=users(1, WORDS), account="dear"),
    "a prompt of 1,000,000 tokens": lambda: chat(messages=None, prompt=[1] * 1_000_000),
    "1,024 tools": lambda: chat(tools=tools(1024, wide(20))),
    "a tool of 100,000 properties": lambda: chat(tools=tools(1, wide(100_000))),
    "a tool of 100 levels": lambda: chat(tools=tools(1, deep(100))),
    "16 stop strings of 1,000": lambda: drawn(max_tokens=500, stop=STOPS),
    "300 biases": lambda: drawn(logit_bias=dict.fromkeys(range(300), 1.0)),
    "128 bad words": lambda: drawn(bad_words=["word " * 40] * 128),
    "a schema of 100 KB": lambda: formed(json=wide(2_500)),
    "a schema of 500 properties": lambda: formed(json=wide(500)),
    "10,000 choices": lambda: formed(choice=CHOICES),
    "a regular expression of 50 KB": lambda: formed(regex="(a|[b-d]+)" * 5_000),
    "a grammar of 300 rules": lambda: formed(grammar="start: r0\n" + "".join(map(rule, range(300)))),
    "16 tools, one of which is called": lambda: answered(
        prompt=None,
        messages=users(1, "Hi"),
        tools=tools(16, wide(2)),
        must_call=[f"f{number}" for number in range(16)],
    ),
    "128 answers": lambda: drawn(max_tokens=20, n=128),
    "template arguments of 60 KB": lambda: chat(template_args={"a": [[]] * 60_000}),
    "template arguments of 9,000 keys": lambda: chat(template_args=dict.fromkeys(map(str, range(9_000)), 0)),
    "5,000 turns in 60 KB": lambda: raw(messages=[{"role": "user"}] * 5_000),
    "1,024 tools in 60 KB": lambda: chat(tools=[Tool.function(name="f")] * 1024),
    "16 chats in one message": lambda: [
        {**raw(prompt="word " * 300, sampling={"max_tokens": 1}), "id": ID + number} for number in range(16)
    ],
    "a hello of 1 MiB": lambda: raw(verb="hello", unknown=[0] * ((1 << 20) - 100)),
    "a catalogue of 2,000 models": catalogue,
    "131,072 tokens written": lambda: chat(messages=None, prompt="a", written=[[300] * 131_072], stream=True),
    "131,072 tokens written, a stop string": lambda: chat(
        messages=None,
        prompt="a",
        written=[[300] * 131_072],
        stream=True,
        sampling=Sampling(max_tokens=200_000, stop=["never"]),
    ),
    "131,072 tokens written, told by number": lambda: chat(
        messages=None,
        prompt="a",
        written=[[300] * 131_072],
        stream=True,
        resumable=True,
        sampling=Sampling(max_tokens=131_072),
    ),
    "131,072 tokens written, in small pieces": lambda: chat(
        messages=None, prompt="a", written=[[1000, 2] * 65_536], stream=True
    ),
    "ids of 262,144 tokens": lambda: chat(messages=None, prompt=[300] * (1 << 18), return_token_ids=True),
    "1,000,000 tokens to read": lambda: Detokenize(id=ID, model=MODEL, token_ids=[300] * 1_000_000),
    "a text to tokenise": lambda: Tokenize(id=ID, model=MODEL, prompt="word " * 500_000, return_bytes=True),
    "log-probabilities of prompts": lambda: answered(prompt=PROMPTS[:18], prompt_logprobs=20, in_pieces=True),
    "log-probabilities of 64 answers": lambda: answered(
        prompt=["word"] * 64, logprobs=20, max_tokens=600, ignore_eos=True, in_pieces=True
    ),
    "64 times 2,000 tokens written": lambda: answered(prompt=["a"] * 64, written=[[300] * 2000] * 64),
    "1,500 tokens written, with tools": lambda: answered(
        prompt=None, messages=users(1, ""), tools=tools(1, {}), written=[[300] * 1500]
    ),
    "128 answers, streamed": lambda: answered(
        prompt=["a"] * 128, max_tokens=50, ignore_eos=True, stream=True
    ),
    "log-probabilities, streamed": lambda: answered(
        prompt=["word"] * 64, logprobs=20, max_tokens=100, ignore_eos=True, stream=True
    ),
    "log-probabilities of prompts, streamed": lambda: answered(
        prompt=PROMPTS[:18], prompt_logprobs=20, stream=True
    ),
    "40 images": lambda: seen(*[noise(64)] * 40),
    "8 images of 3 MB": lambda: seen(*[noise(1000)] * 8),
    "2,048 documents to rank": lambda: Rerank(
        id=ID, model=RANKS, query="w1 w2", input=["w3 " * 40] * 2048, account="dear"
    ),
    "64 answers of an adapter": lambda: msgspec.structs.replace(
        answered(prompt=["word"] * 64, max_tokens=20, ignore_eos=True), model=f"{ADAPTED}:a"
    ),
    "2,048 texts to embed, in pieces": lambda: Embed(
        id=ID, model="demo", input=["word " * 10] * 2048, account="dear", in_pieces=True
    ),
    "2,048 texts to embed": lambda: Embed(id=ID, model="demo", input=["word " * 10] * 2048, account="dear"),
}


def send(kind: str, endpoint: str) -> None:
    """The other process: prepare, wait for a line, send, say what became of it."""
    message = HEADER + msgspec.msgpack.encode(DEAR[kind]())
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.rcvtimeo = round(SECONDS * 1000)
        client.connect(endpoint)
        client.send(HEADER + msgspec.msgpack.encode(Hello(id=ID)))
        client.recv()
        prepared(len(message))
        client.send(message)
        while not (outcome := ended(client.recv())):
            pass
        print(outcome, flush=True)


def ended(message: bytes) -> str:
    """How the request ended, where a message says that."""
    for reply in msgspec.msgpack.decode(message[len(HEADER) :], type=list[AnyReply]):
        if isinstance(reply, Failed):
            return f"{reply.code}: {reply.message[:60]}"
        if reply.id == ID and isinstance(reply, TERMINAL):
            return type(reply).__name__
    return ""


def measure(
    kind: str, neuron: Neuron, client: BlockingClient, held: Held, repeat: int
) -> dict[str, list[float] | float | str]:
    """Send it so many times, and say in a line how that went."""
    ask = partial(client.ask, Hello(id=0), SECONDS)
    helds, stalls = [], []
    for _ in range(repeat):
        held.take()
        run = longest_wait("benchmarks.stalls", kind, neuron.endpoint, ask)
        helds.append(held.take().loop)
        stalls.append(run.longest)
    figures = f"{int(run.said) / 1e6:5.1f} {min(helds) * 1e3:8.1f} {min(stalls) * 1e3:9.1f}"
    print(f"{kind:40} {figures} {run.seconds:11.2f}  {run.outcome}", flush=True)
    return {"held": helds, "stall": stalls, "seconds": run.seconds, "outcome": run.outcome}


def main() -> None:
    if sys.argv[1:2] == ["--send"]:
        send(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=list(DEAR))
    parser.add_argument("--repeat", type=int, default=3, help="runs of each kind")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = [simulated(MODEL, context_length=1 << 20), {"id": "demo", "pin": True}, *made(folder)]
        os.environ[HELD] = str(folder / "held")
        held = Held(folder / "held")
        with Neuron(folder, models) as neuron, neuron.client() as client:
            for model in ("demo", SEES, RANKS, ADAPTED):
                neuron.wait_for(model)
            client.ask(chat(), SECONDS)
            client.ask(answered(prompt="a"), SECONDS)
            print(f"{'request':40} {'MB':>5} {'held ms':>8} {'stall ms':>9} {'answered s':>11}")
            results = {kind: measure(kind, neuron, client, held, args.repeat) for kind in args.kinds}
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
