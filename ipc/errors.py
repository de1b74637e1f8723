"""Typed errors: one exception class, one closed list of codes, for every process of cortex."""

from __future__ import annotations

from typing import Any


class Code:
    """Every error code that may cross a process boundary (`Failed.code`). The gateway maps them to HTTP."""

    BAD_REQUEST = "bad_request"  # a field is wrong; `param` names it
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    TEMPLATE_FAILED = "template_failed"  # the chat template refused these messages
    NOT_SUPPORTED = "not_supported"  # understood, and this neuron or model cannot do it
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_LOAD_FAILED = "model_load_failed"
    MODEL_TOO_LARGE = "model_too_large"  # it fits nowhere here, whoever leaves
    INSUFFICIENT_MEMORY = "insufficient_memory"  # it would fit another day, not now
    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"
    WORKER_DIED = "worker_died"
    STEP_DEADLINE = "step_deadline"  # a step outlived its deadline; its group was killed
    DRAINING = "draining"
    SHUTTING_DOWN = "shutting_down"
    NEURON_LOST = "neuron_lost"  # said by clients: the neuron stopped answering
    MODEL_LOADING = "model_loading"  # said by gateways: longer than they let a request wait without a word
    UNKNOWN_VERB = "unknown_verb"
    BAD_FRAME = "bad_frame"
    PROTOCOL_MISMATCH = "protocol_mismatch"
    DUPLICATE_ID = "duplicate_id"
    INTERNAL = "internal"


class CortexError(Exception):
    """A failure with a code, a sentence for people, and where it applies the field that caused it.

    Args:
        code: one of `Code`.
        message: says what is wrong and, where possible, what to do next.
        param: dotted path of the offending field, for `bad_request`.
        retry_after: seconds after which trying again makes sense, or None.
        tokens_sent: tokens that the client had already received.
        details: plain extra facts (numbers, names) that a client may show.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        tokens_sent: int = 0,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.tokens_sent = tokens_sent
        self.details = details or {}

    def __repr__(self) -> str:
        return f"CortexError({self.code}: {self.message})"
