"""Strict readers of streamed answers, one a dialect, written from the providers' specifications.

Each takes the bytes of a whole stream, holds every event in it against what may come at that place, and gives
back the answer that the events add up to, in the shape of the unstreamed one. A stream that breaks a rule is
an `AssertionError` that says where; one that is sound and ends in an error event is `Failed`.
"""

from tests.streams.anthropic_events import anthropic
from tests.streams.openai_chunks import chat, completion
from tests.streams.responses_events import responses
from tests.streams.sse import Failed, read

__all__ = ["Failed", "anthropic", "chat", "completion", "read", "responses"]
