"""From what was asked to token ids: the checks that need no worker, and the tokenizer's part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipc.errors import Code, CortexError
from ipc.messages import CountTokens, Generate

if TYPE_CHECKING:
    from neuron.text.frontend import AnswerParser, TextFrontEnd

MAX_STOP_STRINGS = 16


def bad_request(param: str, message: str) -> CortexError:
    """The error for a field that is wrong."""
    return CortexError(Code.BAD_REQUEST, message, param=param)


def validate(request: Generate) -> None:
    """Check what can be checked without knowing the model.

    Raises:
        CortexError: BAD_REQUEST naming the field.
    """
    sampling = request.sampling
    validate_prompt(request)
    if sampling.temperature is not None and not 0 <= sampling.temperature <= 2:
        raise bad_request("temperature", f"temperature is {sampling.temperature}, not between 0 and 2")
    if sampling.top_p is not None and not 0 < sampling.top_p <= 1:
        raise bad_request("top_p", f"top_p is {sampling.top_p}, not above 0 and at most 1")
    if sampling.top_k is not None and sampling.top_k < 0:
        raise bad_request("top_k", f"top_k is {sampling.top_k}, not 0 (off) or more")
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise bad_request("max_tokens", f"max_tokens is {sampling.max_tokens}, not 1 or more")
    if len(sampling.stop) > MAX_STOP_STRINGS:
        raise bad_request("stop", f"{len(sampling.stop)} stop strings are more than {MAX_STOP_STRINGS}")
    if not all(sampling.stop):
        raise bad_request("stop", "a stop string is empty")


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


def size_of(request: Generate) -> int:
    """Characters, about, that tokenising the prompt has to look at."""
    if request.messages is not None:
        return sum(len(message.content) for message in request.messages) + 1000 * len(request.tools)
    return len(request.prompt) if isinstance(request.prompt, str) else 0


def encode_prompt(
    text: TextFrontEnd, request: Generate | CountTokens
) -> tuple[list[int], AnswerParser | None]:
    """Token ids, and for messages what will tell the parts of the answer apart.

    Raises:
        CortexError: TEMPLATE_FAILED, or BAD_REQUEST for ids that the model does not have.
    """
    if request.messages is not None:
        prompt = text.render(request.messages, request.tools, request.template_args)
        return text.encode(prompt, special=False), text.answer_parser(prompt, request.tools)
    ids = text.encode(request.prompt, special=True) if isinstance(request.prompt, str) else request.prompt
    check_ids(ids, text, "prompt")
    return ids, None


def check_ids(ids: list[int], text: TextFrontEnd, param: str) -> None:
    """See that every id is a token of the model: BAD_REQUEST naming `param`."""
    if ids and not 0 <= min(ids) <= max(ids) < text.vocabulary_size:
        raise bad_request(param, f"a token id is not between 0 and {text.vocabulary_size - 1}")
