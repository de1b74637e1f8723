"""What takes long of preparing requests, done by text processes: no template, text or request, whoever wrote
it, holds up the event loop of a neuron."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import replace

from ipc.errors import Code, CortexError
from ipc.messages.replies import Text, TokenCount, Tokens
from ipc.messages.requests import CountTokens, Detokenize, Embed, Generate, Tokenize
from ipc.server import Encoded
from ipc.unread import Unread
from neuron.description import ModelDescription
from neuron.memory.devices import CpuProbe
from neuron.preparation.facts import ModelFacts
from neuron.preparation.jobs import Job
from neuron.preparation.pool import JOB_SECONDS, OURS, ProcessPool
from neuron.preparation.prepared import Prepared
from neuron.preparation.prepared_inputs import PreparedInputs
from neuron.preparation.process import TextProcess
from neuron.preparation.prompt import has_grammar, is_quick
from neuron.preparation.readers import Readers
from neuron.text.answers import AnswerFacts, AnswerText
from neuron.text.budget import QUICK_SECONDS
from neuron.text.frontend import ModelText, TextFiles, TextFrontEnd
from neuron.text.template import TriedTemplate

MEMORY = 4 << 30  # bytes of a process: a million tokens of text take a fifth of that
MOST_PROCESSES = 8  # of a pool; more do not help one host
REPLIES = {"count_tokens": TokenCount, "tokenize": Tokens, "detokenize": Text}

Asked = Generate | Embed | CountTokens | Tokenize | Detokenize | Unread


class Preparation:
    """Hands requests to text processes.

    Args:
        log_level: of what they write to the neuron's log.
        memory: bytes that each of them may have.
        seconds: that one request may take.
    """

    def __init__(self, log_level: str, memory: int = MEMORY, seconds: float = JOB_SECONDS) -> None:
        start = partial(TextProcess, memory, log_level)
        size = max(2, min(CpuProbe().cores(), MOST_PROCESSES))
        self._texts = ProcessPool(start, size, seconds)
        self._counts = ProcessPool(start, 2, seconds)  # editors ask for dozens at once, beside an answer
        self._grammars = ProcessPool(start, size, seconds)  # minutes of these hold up no text
        self._small = Readers(start, seconds)
        self._pools = (self._texts, self._counts, self._grammars, self._small)

    async def read_text(self, files: TextFiles) -> AnswerText:
        """A model's text path, with which answers can be read here; and requests, where its tokenizer is
        little. Templates of others, which may be up to anything, are tried elsewhere, and a large tokenizer
        is read where requests are, too.

        Raises:
            CortexError: MODEL_LOAD_FAILED.
        """
        if files.ours:
            return await asyncio.to_thread(lambda: TextFrontEnd.read(ModelText(files, files.try_templates())))
        with _unloadable(f"the chat template in {files.template_file} cannot be tried"):
            tried = await self._texts.run(OURS, Job(verb="try"), msgspec.msgpack.encode(files))
        model = ModelText(files, msgspec.msgpack.decode(tried, type=dict[str, TriedTemplate]))
        if files.is_little:
            return await asyncio.to_thread(TextFrontEnd.read, model)
        encoded = msgspec.msgpack.encode(model)
        self._small.keep(encoded)
        try:
            with _unloadable(f"the tokenizer in {files.tokenizer} cannot be read"):
                facts = await self._small.run(OURS, Job(verb="read", text=encoded), b"")
            return AnswerText(msgspec.msgpack.decode(facts, type=AnswerFacts), encoded)
        except BaseException:
            self._small.forget(encoded)
            raise

    def forget_text(self, text: AnswerText) -> None:
        """A model has this text path, of `read_text`, no more: nobody will ask by it."""
        if not isinstance(text, TextFrontEnd):  # which no process of its own has read
            self._small.forget(text.encoded)

    async def prepare(
        self,
        request: Generate | Embed | Unread,
        text: AnswerText,
        model: ModelDescription,
        context_length: int,
    ) -> Prepared | PreparedInputs:
        """What `neuron.preparation.prepared` makes of a request. CortexError: what is wrong with it."""
        verb = _verb(request)
        kind = Prepared if verb == "generate" else PreparedInputs
        usual = self._grammars if _has_grammar(request) else self._texts
        result = await self._run(usual, verb, request, text, model, context_length)
        return msgspec.msgpack.decode(result, type=kind)

    async def answer(
        self,
        request: CountTokens | Tokenize | Detokenize | Unread,
        text: AnswerText,
        model: ModelDescription,
        context_length: int,
    ) -> Encoded:
        """The reply to a request that needs no worker. CortexError: what is wrong with it."""
        verb = _verb(request)
        usual = self._counts if verb == "count_tokens" else self._texts
        reply = await self._run(usual, verb, request, text, model, context_length)
        return Encoded(request.id, REPLIES[verb].__name__, reply)

    @property
    def memory(self) -> int:
        """Bytes of the host's memory that text processes hold now."""
        return sum(pool.memory for pool in self._pools)

    @property
    def spare_memory(self) -> int:
        """Bytes of those that have nothing to do."""
        return sum(pool.spare_memory for pool in self._pools)

    async def end_idle(self, size: int) -> int:
        """End idle ones, those that have read a large tokenizer last, until `size` bytes come free; how many
        do."""
        freed = 0
        for pool in self._pools:
            freed += await pool.end_idle(size - freed)
        return freed

    async def close(self) -> None:
        """End all processes."""
        await asyncio.gather(*(pool.close() for pool in self._pools))

    async def _run(
        self,
        usual: ProcessPool,
        verb: str,
        request: Asked,
        text: AnswerText,
        model: ModelDescription,
        context_length: int,
    ) -> bytes:
        """What the model's reader makes of a small request, if that is soon there; else what `usual` does."""
        unread, small = isinstance(request, Unread), _is_small(request, text)
        job = Job(
            verb=verb,
            text=text.encoded,
            model=ModelFacts.of(model),
            context_length=context_length,
            unread=request.id if unread else None,
            trace=request.trace,
            seconds=QUICK_SECONDS if small else None,
        )
        body = request.body if unread else msgspec.msgpack.encode(request)
        if small and (result := await self._small.run(request.account, job, body)):
            return result
        return await usual.run(request.account, replace(job, seconds=None), body)


def _verb(request: Asked) -> Any:
    return request.verb if isinstance(request, Unread) else request.__struct_config__.tag


def _is_small(request: Asked, text: AnswerText) -> bool:
    return text.is_quick_apart and isinstance(request, Generate | CountTokens) and is_quick(request)


@contextmanager
def _unloadable(what: str) -> Iterator[None]:
    """Whatever goes wrong with the text path of a model: MODEL_LOAD_FAILED."""
    try:
        yield
    except CortexError as error:
        if error.code == Code.MODEL_LOAD_FAILED:
            raise
        raise CortexError(Code.MODEL_LOAD_FAILED, f"{what}: {error.message}") from error


def _has_grammar(request: Asked) -> bool:
    return request.has_grammar if isinstance(request, Unread) else has_grammar(request)
