"""Errors for requests that cannot be served as they are."""

from __future__ import annotations

from ipc.errors import Code, CortexError


def bad_request(param: str, message: str) -> CortexError:
    """The error for a field that is wrong."""
    return CortexError(Code.BAD_REQUEST, message, param=param)


def too_long(
    prompt_tokens: int, context_length: int, param: str, max_tokens: int | None, *, counted: bool = True
) -> CortexError:
    """The error for a prompt that leaves no room; one that was not `counted` has so many tokens at least."""
    details = {"prompt_tokens": prompt_tokens, "context_length": context_length}
    if max_tokens is not None:
        details["max_tokens"] = max_tokens
    return CortexError(
        Code.CONTEXT_LENGTH_EXCEEDED,
        f"This model's maximum context length is {context_length} tokens, and the prompt has "
        f"{'' if counted else 'at least '}{prompt_tokens}, which leaves no room for an answer. Shorten it, "
        "or choose a model with a longer context.",
        param=param,
        details=details,
    )


def replaced(model_id: str) -> CortexError:
    """For a request that another model of the same name cannot go on with."""
    return CortexError(
        Code.SHUTTING_DOWN, f"{model_id} was replaced while the request waited; ask again", retry_after=1.0
    )
