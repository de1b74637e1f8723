"""A neuron without workers: it speaks the protocol, and answers as the model's name says.

Models:
    echo            repeats the last message (or the prompt, or each of several), a word a token
    slow            the same, a token each 50 ms
    long            says one word of LONG characters
    stuck           starts and never says a token
    queued          says "queued" and never starts
    fails/<code>    refuses at once
    breaks/<code>   streams two tokens, and fails when `let_fail` is called
    late/<code>     is queued until then, and refuses
    cold            is loading, and stays so
    tools           reasons, speaks and calls a tool
Other ids are those of models that it has not.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field

import msgspec

from ipc.errors import Code
from ipc.messages.answers import Choice, Timings, ToolCallDelta, Usage
from ipc.messages.catalogue import Appraisal, FleetCatalogue
from ipc.messages.conversation import ContentPart, TextPart, ToolCall
from ipc.messages.replies import (
    Appraisals,
    Cancelled,
    CatalogueReply,
    Claimed,
    Delta,
    Done,
    Failed,
    Finished,
    HealthReply,
    HelloReply,
    Progress,
    Quoted,
    Ranked,
    Started,
    State,
    Text,
    TokenCount,
    Tokens,
)
from ipc.messages.requests import (
    AnyRequest,
    Cancel,
    CheckCatalogue,
    Claim,
    CountTokens,
    Detokenize,
    Drain,
    Eviction,
    Generate,
    Health,
    Hello,
    Load,
    Pin,
    Quote,
    Rerank,
    Resume,
    SetCatalogue,
    Tokenize,
    Unload,
    Watch,
)
from ipc.messages.state import Device, ModelState, RankState
from ipc.server import Peer, Server

MODELS = (
    "echo",
    "slow",
    "long",
    "stuck",
    "queued",
    "cold",
    "tools",
    "org/echo",
    *(
        f"{kind}/{code}"
        for kind in ("fails", "breaks", "late")
        for code in (
            Code.CONTEXT_LENGTH_EXCEEDED,
            Code.TEMPLATE_FAILED,
            Code.QUEUE_FULL,
            Code.WORKER_DIED,
            Code.TEMPLATE_FAILED,
            Code.MODEL_LOAD_FAILED,
            Code.SHUTTING_DOWN,
        )
    ),
)


LONG = 12_000_000
CUT_SHORT = Usage(prompt_tokens=3, completion_tokens=5)  # what comes of a request that is cancelled


@dataclass
class Work:
    """One open request."""

    peer: Peer
    request: Generate
    task: asyncio.Task[None] | None = None
    may_fail: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class FakeNeuron:
    """Listens on `endpoint` (port 0: a free one) once `start` was called, in the running loop."""

    endpoint: str = "tcp://127.0.0.1:0"
    name: str = "fake"
    models: tuple[str, ...] = MODELS
    eviction: Eviction | None = None  # as a gateway said it
    other_eviction: Eviction | None = None  # of another gateway, that counts
    status: dict[str, str] = field(default_factory=dict)  # of models that are not ready
    retired: set[str] = field(default_factory=set)  # models that are no longer served
    quotes: dict[str, Quoted | Failed | None] = field(default_factory=dict)  # None: no answer
    refuses: dict[str, str] = field(default_factory=dict)  # models, and with what code
    quoted: list[str] = field(default_factory=list)  # models that quotes were asked for
    catalogues: list[FleetCatalogue] = field(default_factory=list)  # that it was told
    checked: list[FleetCatalogue] = field(default_factory=list)  # the same, that it was to check
    appraisals: dict[str, Appraisal] = field(default_factory=dict)
    catalogue: str = ""  # the version of the one that counts
    refuses_catalogues: bool = False
    makes_of_catalogues: dict[str, object] = field(default_factory=dict)  # fields of its `CatalogueReply`
    ranks: dict[str, list[RankState]] = field(default_factory=dict)  # by model
    cancelled: int = 0
    served: list[Generate] = field(default_factory=list)
    instance: str = "1"
    claims: list[Claim] = field(default_factory=list)  # that it was asked to settle
    settles: str | None = None  # that a model is to be loaded there; None: it knows no claims
    counted: list[CountTokens] = field(default_factory=list)
    work: dict[tuple[bytes, int], Work] = field(default_factory=dict)
    watches: dict[tuple[bytes, int], Peer] = field(default_factory=dict)

    def start(self) -> None:
        self.server = Server(self.endpoint, self._on_request, self._on_gone)
        self.server.start()
        self.endpoint = self.server.endpoint

    def close(self) -> None:
        for work in self.work.values():
            work.task.cancel()
        self.work.clear()
        self.server.close()

    def let_fail(self) -> None:
        """What is open now, and shall fail in the midst of its answer, may.

        A gateway gives what fails before it has written anything a status, however much of it came before;
        so a test that is about the stream calls this when the answer's headers are there.
        """
        for work in self.work.values():
            work.may_fail.set()

    def state(self, request_id: int) -> State:
        device = Device(id="cpu", kind="cpu", name="fake", memory_total=1 << 30, memory_free=1 << 29)
        return State(
            id=request_id,
            neuron=self.name,
            instance=self.instance,
            draining=False,
            devices=[device],
            catalogue=self.catalogue,
            eviction=self.other_eviction,
            models=[
                ModelState(
                    id=model,
                    status=self.status.get(model, "loading" if model == "cold" else "ready"),
                    progress=0.25 if model == "cold" else None,
                    seconds_left=11.2 if model == "cold" else None,
                    context_length=4096,
                    cancelled=self.cancelled,
                    running=sum(work.request.model == model for work in self.work.values()),
                    pages_total=100,
                    pages_free=50,
                    created=1_700_000_000,
                    retired=model in self.retired,
                )
                for model in self.models
            ],
        )

    def _tell(self) -> None:
        for (_, request_id), peer in self.watches.items():
            peer.send(self.state(request_id))

    def _on_gone(self, peer: Peer) -> None:
        for key in [key for key in self.work if key[0] == peer.key]:
            self._cancel(key)
        for key in [key for key in self.watches if key[0] == peer.key]:
            del self.watches[key]

    def _cancel(self, key: tuple[bytes, int]) -> None:
        work = self.work.pop(key, None)
        if work is not None:
            self.cancelled += 1
            work.task.cancel()
            work.peer.send(Cancelled(id=key[1], usage=CUT_SHORT))
            self._tell()

    def _on_request(self, peer: Peer, request: AnyRequest) -> None:
        key = (peer.key, request.id)
        match request:
            case Hello():
                self.eviction = request.eviction
                who = {"neuron": self.name, "version": "0", "instance": self.instance}
                peer.send(HelloReply(id=request.id, eviction=self.other_eviction, **who))
            case SetCatalogue(catalogue=said):
                self.catalogues.append(said)
                reply = CatalogueReply(id=request.id, version=said.version, origin=said.origin)
                if self.refuses_catalogues:
                    why = "the disk is full"
                    peer.send(Failed(id=request.id, code=Code.INTERNAL, message=why))
                else:
                    peer.send(msgspec.structs.replace(reply, **self.makes_of_catalogues))
            case CheckCatalogue(catalogue=said):
                self.checked.append(said)
                names = [*(model.id for model in said.models), *said.elsewhere]
                peer.send(Appraisals(id=request.id, models=[self.appraisals[name] for name in names]))
            case Watch():
                self.watches[key] = peer
                peer.send(self.state(request.id))
            case Cancel():
                self._cancel(key)
            case Health():
                how = {"uptime": 1.0, "draining": False, "devices": [], "models": [], "ranks": self.ranks}
                peer.send(HealthReply(id=request.id, **how))
            case Quote():
                self.quoted.append(request.model)
                missing = Failed(id=0, code=Code.MODEL_NOT_FOUND, message="no such model")
                if (reply := self.quotes.get(request.model, missing)) is not None:
                    peer.send(msgspec.structs.replace(reply, id=request.id))
            case Claim() if self.settles is not None:
                self.claims.append(request)
                peer.send(Claimed(id=request.id, neuron=self.settles))
            case CountTokens() if type(request) is CountTokens:
                self.counted.append(request)
                words = sum(len(text_of(message.content).split()) for message in request.messages)
                peer.send(TokenCount(id=request.id, tokens=words + len(request.tools)))
            case Tokenize():
                words = text_of(request.prompt or request.messages[-1].content).encode().split()
                pieces = words if request.return_bytes else None
                peer.send(
                    Tokens(id=request.id, token_ids=list(range(len(words))), context_length=9, pieces=pieces)
                )
            case Detokenize():
                peer.send(Text(id=request.id, text=" ".join(map(str, request.token_ids))))
            case Rerank():
                scores = [float(len(each)) for each in request.input]
                peer.send(Ranked(id=request.id, scores=scores, prompt_tokens=len(scores)))
            case Generate():
                self.served.append(request)
                work = self.work[key] = Work(peer, request)
                work.task = asyncio.get_running_loop().create_task(self._generate(key, work))
            case Load() | Unload() | Pin() if request.model.startswith("fails/"):
                code = request.model.partition("/")[2]
                peer.send(Failed(id=request.id, code=code, message=f"not {request.model}"))
            case Load() | Unload() | Pin() | Drain() | Resume():
                peer.send(Done(id=request.id))  # and nothing comes of it
            case _:
                peer.send(Failed(id=request.id, code=Code.UNKNOWN_VERB, message="not in this play"))

    async def _generate(self, key: tuple[bytes, int], work: Work) -> None:
        request, send = work.request, work.peer.send
        kind, _, code = request.model.partition("/")
        texts = ["x" * LONG] if kind == "long" else prompts_of(request)
        prompts = [text if isinstance(text, list) else list(range(len(text.split()))) for text in texts]
        prompt_tokens = sum(map(len, prompts))
        failure = Failed(
            id=request.id, code=code, message=f"it {kind}", param="messages", details={"limit": 7}
        )
        if (code := self.refuses.get(request.model)) is not None:
            self.work.pop(key, None)
            send(Failed(id=request.id, code=code, message=f"{self.name} says so", retry_after=7.0))
            return
        if kind == "cold":
            send(
                Progress(id=request.id, stage="loading", message="weights", fraction=0.25, seconds_left=11.2)
            )
            await asyncio.sleep(3600)
        if kind in ("late", "queued"):
            send(Progress(id=request.id, stage="queued", message="behind 3 others", fraction=0.25))
            await (work.may_fail.wait() if kind == "late" else asyncio.sleep(3600))
        if kind in ("fails", "late"):
            self.work.pop(key, None)
            send(failure)
            return
        ids = prompts if request.return_token_ids else None
        send(Started(id=request.id, prompt_tokens=prompt_tokens, prompt_token_ids=ids))
        if kind == "stuck":
            await asyncio.sleep(3600)
        if kind == "tools":
            self._call_tool(key, work)
            return
        answers = [pieces_of(text) for text in texts]
        limit = request.sampling.max_tokens or max(map(len, answers))
        reasons = ["length" if limit < len(pieces) else "stop" for pieces in answers]
        answers = [pieces[:limit] for pieces in answers]
        if request.stream:
            for i, index in [(i, index) for i in range(limit) for index in range(len(answers))]:
                if kind == "breaks" and i == 2:
                    await work.may_fail.wait()
                    self.work.pop(key, None)
                    send(failure)
                    return
                if i < len(answers[index]):
                    token_ids = [i] if request.return_token_ids else None
                    text = answers[index][i]
                    send(Delta(id=request.id, tokens=1, index=index, text=text, token_ids=token_ids))
                await asyncio.sleep(0.05 if kind == "slow" else 0)
        elif kind == "slow":
            await asyncio.sleep(0.05 * limit)
        self.work.pop(key, None)
        completion_tokens = sum(map(len, answers))
        send(
            Finished(
                id=request.id,
                choices=[
                    Choice(
                        reason=reason,
                        index=index,
                        text="" if request.stream else "".join(pieces),
                        token_ids=list(range(len(pieces)))
                        if request.return_token_ids and not request.stream
                        else None,
                    )
                    for index, (pieces, reason) in enumerate(zip(answers, reasons, strict=True))
                ],
                usage=Usage(
                    prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cached_tokens=1
                ),
                timings=Timings(queue=0.001, first_token=0.002, total=0.01),
            )
        )

    def _call_tool(self, key: tuple[bytes, int], work: Work) -> None:
        request, send = work.request, work.peer.send
        self.work.pop(key, None)
        if request.stream:
            send(Delta(id=request.id, tokens=1, reasoning="hm"))
            send(Delta(id=request.id, tokens=1, text="so "))
            calls = [
                ToolCallDelta(index=0, call_id="call_1", name="add"),
                ToolCallDelta(index=0, arguments='{"a":1}'),
            ]
            send(Delta(id=request.id, tokens=2, tool_calls=calls))
        send(
            Finished(
                id=request.id,
                choices=[
                    Choice(reason="tool_calls")
                    if request.stream
                    else Choice(
                        reason="tool_calls",
                        text="so ",
                        reasoning="hm",
                        tool_calls=[ToolCall(id="call_1", name="add", arguments='{"a":1}')],
                    )
                ],
                usage=Usage(prompt_tokens=3, completion_tokens=4, reasoning_tokens=1),
                timings=Timings(),
            )
        )


def prompts_of(request: Generate) -> list[str | list[int]]:
    """What a request wants to have repeated."""
    if request.messages is not None:
        return [text_of(request.messages[-1].content)]
    several = isinstance(request.prompt, list) and not isinstance(request.prompt[0], int)
    return request.prompt if several else [request.prompt]


def text_of(content: str | list[ContentPart]) -> str:
    """What a message says, in words that stand for parts which are no text."""
    if isinstance(content, str):
        return content
    return " ".join(part.text if isinstance(part, TextPart) else type(part).__name__ for part in content)


def pieces_of(text: str | list[int]) -> list[str]:
    """The tokens of an answer that repeats `text`."""
    words = [f" {token}" for token in text] if isinstance(text, list) else text.split(" ")
    return [word if i == 0 else f" {word}" for i, word in enumerate(words)]


async def main(endpoint: str) -> None:
    """As a process of its own: prints its endpoint, serves until its standard input ends."""
    neuron = FakeNeuron(endpoint)
    neuron.start()
    print(neuron.endpoint, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:0"))
