"""Errors of a neuron in the words that Anthropic's clients know."""

from __future__ import annotations

from gateway.dialects.fields import renamed
from ipc.errors import Code, CortexError


def in_client_words(error: CortexError, names: dict[str, str]) -> CortexError:
    """The same error, with the client's names for fields, by the neuron's.

    Agents look for Anthropic's own sentence about a prompt that is too long, and make it shorter.
    """
    error = renamed(error, names)
    tokens, most = (error.details.get(name) for name in ("prompt_tokens", "context_length"))
    if error.code == Code.CONTEXT_LENGTH_EXCEEDED and tokens is not None and most is not None:
        error.message = f"prompt is too long: {tokens} tokens > {most} maximum"
    return error
