"""`POST /v1/responses/compact`: a conversation in fewer tokens.

What users said stays as it was. The model sums up the rest in one item, which stands for it from then on, and
which other providers cannot read.
"""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec

from gateway.dialects import Parse, RequestContext
from gateway.dialects.event_streams import comment
from gateway.dialects.fields import decode, renamed
from gateway.dialects.openai.envelope import envelope
from gateway.dialects.openai.responses import context
from gateway.dialects.openai.responses.fields import ContextFields
from gateway.dialects.openai.responses.kept import kept
from gateway.dialects.openai.responses.request import NAMES
from gateway.dialects.openai.responses.response import usage_out
from gateway.dialects.summaries import ASK, HEAD
from gateway.dialects.thoughts import seal
from gateway.dialects.writing import encode
from gateway.refusals import Refusal
from gateway.store.response_store import ResponseStore
from ipc.errors import CortexError
from ipc.messages.conversation import Message
from ipc.messages.replies import Delta, Finished, Progress, Started
from ipc.messages.requests import Generate

_decoder = msgspec.json.Decoder(ContextFields)


def parse_for(store: ResponseStore | None) -> Parse:
    """How requests are read that may continue what is in `store`."""

    async def parse(body: bytes, asker: RequestContext) -> tuple[Generate, CompactRenderer]:
        fields = decode(_decoder, body)
        known = await context.read(fields, store, asker.account)
        messages = [*known.messages, Message(role="user", content=ASK)]
        said = [entry for entry in known.entries if entry.item.get("role") == "user"]
        return Generate(id=0, model=fields.model, messages=messages), CompactRenderer(kept(said))

    return parse


class CompactRenderer:
    """Writes the compacted conversation. Requests are never streamed."""

    def __init__(self, said: list[dict[str, Any]]) -> None:
        self._said = said

    def whole(self, started: Started, finished: Finished) -> bytes:
        stamp = os.urandom(20).hex()
        summary = {
            "type": "compaction",
            "id": f"cmp_{stamp}",
            "encrypted_content": seal(HEAD + finished.choices[0].text),
        }
        return encode(
            {
                "id": f"resp_{stamp}",
                "object": "response.compaction",
                "created_at": int(time.time()),
                "output": [*self._said, summary],
                "usage": usage_out(finished.usage),
            }
        )

    def waiting(self, progress: Progress | None) -> bytes:
        return comment(progress)

    def started(self, started: Started) -> bytes:
        return b""

    def delta(self, delta: Delta) -> bytes:
        return b""

    def finished(self, finished: Finished) -> bytes:
        return b""

    def in_client_words(self, error: CortexError) -> CortexError:
        return renamed(error, NAMES)

    def failed(self, error: CortexError) -> bytes:
        return envelope(Refusal.of(error))
