"""From what was asked to token ids: the checks that need no worker, and the tokenizer's part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ipc.messages import CountTokens, Embed, Generate
from neuron.sampling import bad_request, check, check_ids
from neuron.text.tags import END_THINK, SPACE, THINK

if TYPE_CHECKING:
    from neuron.text.frontend import TextFrontEnd


INLINE_CHARACTERS = 2000  # up to here tokenising takes less than half a millisecond


def validate(request: Generate) -> None:
    """Check what can be checked without knowing the model.

    Raises:
        CortexError: BAD_REQUEST naming the field.
    """
    validate_prompt(request)
    if request.echo and request.messages is not None:
        raise bad_request("echo", "echo needs a prompt: the template's text around messages is not shown")
    if request.structured is not None and request.tools:
        raise bad_request("structured", "an answer cannot follow a grammar and call tools as well")
    check(request.sampling, echo=request.echo)


def validate_prompt(request: Generate | CountTokens) -> None:
    """The part of `validate` that counting tokens shares."""
    if (request.messages is None) == (request.prompt is None):
        raise bad_request("messages", "a request has either messages or a prompt")
    if request.messages is not None and not request.messages:
        raise bad_request("messages", "messages is empty")
    if request.prompt is not None and not request.prompt:
        raise bad_request("prompt", "the prompt is empty")
    if request.prompt is not None and request.tools:
        raise bad_request("tools", "tools need messages: a prompt is taken as it is")


def is_quick(request: Generate | Embed) -> bool:
    """Whether preparing it takes so little time that the event loop can do it itself."""
    if isinstance(request, Embed) or request.structured is not None or request.sampling.bad_words:
        return False
    if request.messages is not None:
        size = sum(len(message.content) for message in request.messages) + 1000 * len(request.tools)
    else:
        size = len(request.prompt)
    return size * request.sampling.n <= INLINE_CHARACTERS


def encode_prompt(text: TextFrontEnd, request: Generate | CountTokens) -> tuple[list[int], str | None]:
    """Token ids, and for messages the text that the template made of them.

    Raises:
        CortexError: TEMPLATE_FAILED, or BAD_REQUEST for ids that the model does not have.
    """
    if request.messages is not None:
        rendered = text.render(request.messages, request.tools, request.template_args)
        return text.encode(rendered, special=False), rendered
    ids = text.encode(request.prompt, special=True) if isinstance(request.prompt, str) else request.prompt
    check_ids(ids, text, "prompt")
    return ids, None


def thought_after(rendered: str | None, reasoning: bool) -> Literal["none", "open", "possible"]:
    """Where a prompt leaves the model: see `neuron.structured`.

    Args:
        rendered: as `encode_prompt` gives it.
        reasoning: whether the model thinks at all.
    """
    if rendered is None or not reasoning:
        return "none"
    end = rendered.rstrip(SPACE)
    return "open" if end.endswith(THINK) else "none" if end.endswith(END_THINK) else "possible"
