"""One open request: from its messages to tokens, and from the worker's tokens to its replies."""

from __future__ import annotations

import logging
import random
import time
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from ipc.errors import Code, CortexError
from ipc.messages import (
    Cancelled,
    Choice,
    Delta,
    Failed,
    Finished,
    Generate,
    Progress,
    Reply,
    Started,
    Timings,
    ToolCallDelta,
    Usage,
)
from ipc.worker_messages import SamplingParams, SequenceReport, Submit
from neuron.blueprint import Blueprint
from neuron.prompt import bad_request, check_ids, encode_prompt
from neuron.text.frontend import TextFrontEnd
from neuron.text.stops import StopStrings

if TYPE_CHECKING:
    from neuron.lifecycle import ManagedModel

log = logging.getLogger("neuron.generation")


class Generation:
    """One `Generate` on its way: prepared, waiting, in the worker, ended.

    It ends exactly once, by `advance`, `cancel` or `fail`; whatever comes after that is ignored.

    Args:
        key: the request's id between supervisor and worker, unique in this neuron.
        request: what was asked; `validate` has seen it.
        send: takes each reply.
        on_end: told once, after the terminal reply was sent.
    """

    def __init__(
        self,
        key: int,
        request: Generate,
        send: Callable[[Reply], None],
        on_end: Callable[[Generation], None],
    ) -> None:
        self.key = key
        self.request = request
        self.attempts = 0  # times that a worker got it
        self.begun = False  # the worker has computed some of it: doing it again might give another answer
        self.outcome: str | None = None  # "finished", "cancelled" or "failed", once it ended
        self.model: ManagedModel | None = None  # that took it in
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._send = send
        self._on_end = on_end
        self._arrived = time.monotonic()
        self._handed_over: float | None = None
        self._first_token: float | None = None
        self._tokens_sent = 0  # tokens behind the deltas so far
        self._reasoning_tokens = 0
        self._token_ids: list[int] | None = [] if request.return_token_ids else None
        self._text: list[str] = []
        self._reasoning: list[str] = []

    # --- on the way down --------------------------------------------------------------------------------

    def prepare(self, text: TextFrontEnd, blueprint: Blueprint, context_length: int) -> None:
        """Render, tokenise and resolve. Touches nothing but this object, so that it may run in a thread.

        Raises:
            CortexError: BAD_REQUEST, TEMPLATE_FAILED or CONTEXT_LENGTH_EXCEEDED.
        """
        sampling, defaults = self.request.sampling, blueprint.defaults
        ids, self._parser = encode_prompt(text, self.request)
        if not ids:
            raise bad_request("prompt", "the prompt has no tokens")
        check_ids(sampling.stop_token_ids, text, "stop_token_ids")
        self._prompt_ids = ids
        self.prompt_tokens = len(ids)
        self.check_length(context_length)
        self._detokenizer = text.detokenizer(after=ids if self._parser is None else ())
        self._stops = StopStrings(sampling.stop) if sampling.stop else None
        temperature = _first(sampling.temperature, defaults.temperature, 1.0)
        self._submit = Submit(
            request_id=self.key,
            prompt=array("I", ids).tobytes(),
            max_tokens=0,  # known when the context is: see `submission`
            params=SamplingParams(
                temperature=temperature,
                top_k=_first(sampling.top_k, defaults.top_k, 0),
                top_p=_first(sampling.top_p, defaults.top_p, 1.0),
                seed=_first(sampling.seed, random.getrandbits(64)) & (1 << 64) - 1,
                stop_ids=sampling.stop_token_ids + ([] if sampling.ignore_eos else blueprint.eos_ids),
            ),
        )

    def check_length(self, context_length: int) -> None:
        """See that the prompt leaves room for one token at least.

        Raises:
            CortexError: CONTEXT_LENGTH_EXCEEDED with both counts.
        """
        if self.prompt_tokens < context_length:
            return
        details = {"prompt_tokens": self.prompt_tokens, "context_length": context_length}
        if self.request.sampling.max_tokens is not None:
            details["max_tokens"] = self.request.sampling.max_tokens
        raise CortexError(
            Code.CONTEXT_LENGTH_EXCEEDED,
            f"This model's maximum context length is {context_length} tokens, and the prompt has "
            f"{self.prompt_tokens}, which leaves no room for an answer. Shorten it, or choose a model with a "
            "longer context.",
            param="messages" if self.request.messages is not None else "prompt",
            details=details,
        )

    def submission(self, context_length: int) -> Submit:
        """The request as the worker takes it; says `Started` to its client."""
        self.attempts += 1
        self._handed_over = time.monotonic()
        room = context_length - self.prompt_tokens
        self._submit.max_tokens = min(self.request.sampling.max_tokens or room, room)
        if self.attempts == 1 and (self.request.stream or self._token_ids is not None):
            self._send(
                Started(
                    id=self.request.id,
                    prompt_tokens=self.prompt_tokens,
                    prompt_token_ids=self._prompt_ids if self._token_ids is not None else None,
                )
            )
        return self._submit

    def progress(self, stage: str, message: str, fraction: float | None = None) -> None:
        """Tell the client what it waits for."""
        if self.outcome is None:
            self._send(Progress(id=self.request.id, stage=stage, message=message, fraction=fraction))

    # --- on the way up ----------------------------------------------------------------------------------

    def advance(self, report: SequenceReport) -> None:
        """Take new tokens from the worker; a fault in the text path ends this request and no other."""
        token_ids, finish = report.token_ids, report.finish
        if self.outcome is not None:
            return
        self.begun = True
        if not token_ids and not finish:
            return
        try:
            taken = 0
            while taken < len(token_ids) - 1 and self._counts_tokens:
                self._advance(token_ids[taken : taken + 1], "", "")
                if self.outcome is not None:
                    return
                taken += 1
            self._advance(token_ids[taken:] if taken else token_ids, finish, report.message)
        except Exception as error:
            log.exception("output of a request cannot be turned into text id=%d", self.key)
            self.fail(CortexError(Code.INTERNAL, f"the output cannot be turned into text: {error!r}"))

    @property
    def _counts_tokens(self) -> bool:
        """Which token it is matters now, to end the answer there or to tell reasoning from text."""
        return self._stops is not None or (self._parser is not None and self._parser.in_reasoning)

    def _advance(self, token_ids: list[int], finish: str, message: str) -> None:
        if token_ids:
            if self._first_token is None:
                self._first_token = time.monotonic()
            self.completion_tokens += len(token_ids)
            if self._token_ids is not None:
                self._token_ids += token_ids
        # The token that stopped the answer is counted, and is not part of its text.
        text = self._detokenizer.push(token_ids[:-1] if finish == "stop" else token_ids)
        if finish:
            text += self._detokenizer.finish()
        hit = None
        if self._stops is not None:
            text, hit = self._stops.push(text)
            if finish and hit is None:
                text += self._stops.finish()
        ended = bool(finish) or hit is not None
        reasoning, tools = "", []
        if self._parser is not None:
            text, reasoning, tools = self._parse(text, len(token_ids), ended)
        if self.request.stream:
            self._stream(text, reasoning, tools, token_ids)
        else:
            if text:
                self._text.append(text)
            if reasoning:
                self._reasoning.append(reasoning)
        if finish == "error":
            self.fail(CortexError(Code.INTERNAL, message))
        elif finish == "aborted":
            self._end("cancelled", Cancelled(id=self.request.id, usage=self._usage()))
        elif ended:
            self._finish("length" if finish == "length" and hit is None else "stop", hit)

    def _parse(self, text: str, tokens: int, ended: bool) -> tuple[str, str, list[ToolCallDelta]]:
        """Tell text, reasoning and tool calls apart."""
        if self._parser.in_reasoning:
            self._reasoning_tokens += tokens
        pieces = self._parser.push(text)
        if ended:
            pieces += self._parser.finish()
        said, thought, tools = "", "", []
        for kind, piece in pieces:
            if kind == "text":
                said += piece
            elif kind == "reasoning":
                thought += piece
            else:
                tools.append(piece)
        return said, thought, tools

    def _stream(self, text: str, reasoning: str, tools: list[ToolCallDelta], token_ids: list[int]) -> None:
        """Send what is new. Tokens without text wait for the next delta, but the first one is news itself."""
        tokens = self.completion_tokens - self._tokens_sent
        if text or reasoning or tools or (tokens and not self._tokens_sent) or self._token_ids is not None:
            self._tokens_sent = self.completion_tokens
            self._send(
                Delta(
                    id=self.request.id,
                    tokens=tokens,
                    text=text,
                    reasoning=reasoning,
                    tool_calls=tools,
                    token_ids=token_ids if self._token_ids is not None else None,
                )
            )

    def _finish(self, reason: str, stop_sequence: str | None) -> None:
        calls = self._parser.tool_calls if self._parser is not None else []
        choice = Choice(
            reason="tool_calls" if calls and reason == "stop" else reason, stop_sequence=stop_sequence
        )
        if not self.request.stream:
            choice = msgspec.structs.replace(
                choice,
                text="".join(self._text),
                reasoning="".join(self._reasoning),
                tool_calls=calls,
                token_ids=self._token_ids,
            )
        now = time.monotonic()
        self._end(
            "finished",
            Finished(
                id=self.request.id,
                choices=[choice],
                usage=self._usage(),
                timings=Timings(
                    queue=self._handed_over - self._arrived,
                    first_token=(self._first_token or now) - self._arrived,
                    total=now - self._arrived,
                ),
            ),
        )

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            reasoning_tokens=self._reasoning_tokens,
        )

    # --- ends -------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """The client wants no more of it, or is gone."""
        if self.outcome is None:
            self._end("cancelled", Cancelled(id=self.request.id, usage=self._usage()))

    def fail(self, error: CortexError) -> None:
        """It cannot be served."""
        if self.outcome is None:
            self._end(
                "failed",
                msgspec.structs.replace(Failed.of(self.request.id, error), tokens_sent=self._tokens_sent),
            )

    def _end(self, outcome: str, reply: Reply) -> None:
        self.outcome = outcome
        self._send(reply)
        log.info(
            "request %s id=%d model=%s reason=%s prompt_tokens=%d completion_tokens=%d seconds=%.3f",
            outcome,
            self.key,
            self.request.model,
            reply.choices[0].reason if isinstance(reply, Finished) else getattr(reply, "code", outcome),
            self.prompt_tokens,
            self.completion_tokens,
            time.monotonic() - self._arrived,
        )
        self._on_end(self)


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
