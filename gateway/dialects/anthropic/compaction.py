"""A request with `compaction`: for no answer, but for a summary, which its client sends from then on in place
of the conversation."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from gateway.dialects.anthropic.renderer import PING, STOP, MessageRenderer, event, usage_out
from gateway.dialects.summaries import ASK
from gateway.dialects.writing import encode
from ipc.messages.conversation import Message
from ipc.messages.replies import Delta, Finished, Started
from ipc.messages.requests import Generate
from ipc.messages.sampling import Thinking


class CompactionField(Struct):
    type: Literal["summarize"]
    instructions: str | None = None


def compacting(generate: Generate, compaction: CompactionField) -> Generate:
    """The request for a summary of what `generate` would have gone on with: no call, no form, no thought."""
    ask = (compaction.instructions or "").strip() or ASK
    return replace(
        generate,
        messages=[*generate.messages, Message(role="user", content=ask)],
        tools=[],
        must_call=[],
        structured=None,
        thinking=Thinking(enabled=False),
        sampling=replace(generate.sampling, stop=[]),
        continue_final_message=False,
    )


class CompactionRenderer(MessageRenderer):
    """Writes a message that is one block, the summary. Its content is null where it was cut: a piece of one
    stands for nothing."""

    def whole(self, started: Started, finished: Finished) -> bytes:
        block = {"type": "compaction", "content": _summary(finished, finished.choices[0].text)}
        return encode(self._message([block], _ENDED, usage_out(finished.usage)))

    _said = ""

    def delta(self, delta: Delta) -> bytes:
        """Clients take a summary in one piece."""
        self._said += delta.text
        return PING

    def finished(self, finished: Finished) -> bytes:
        summary = {"type": "compaction_delta", "content": _summary(finished, self._said)}
        return b"".join(
            (
                event("content_block_start", index=0, content_block={"type": "compaction", "content": None}),
                event("content_block_delta", index=0, delta=summary),
                event("content_block_stop", index=0),
                event("message_delta", delta=_ENDED, usage=usage_out(finished.usage)),
                STOP,
            )
        )


_ENDED: dict[str, Any] = {"stop_reason": "compaction", "stop_sequence": None}


def _summary(finished: Finished, text: str) -> str | None:
    return text.strip() or None if finished.choices[0].reason == "stop" else None
