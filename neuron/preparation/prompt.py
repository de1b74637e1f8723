"""From what was asked to token ids: the checks that need no worker, and the tokenizer's part."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ipc.errors import Code, CortexError
from ipc.messages.requests import MAX_WRITTEN, CountTokens, Embed, Generate, Tokenize
from neuron.preparation.placing import PreparedImage, around_marks, place, refuse_marks, shown
from neuron.preparation.sampling import BLOCK, MAX_CHOICES, MIXED, check, check_ids
from neuron.refusals import bad_request, too_long
from neuron.text import content, continuation

if TYPE_CHECKING:
    from neuron.text.frontend import TextFrontEnd


INLINE_CHARACTERS = 2000  # up to here tokenising takes less than half a millisecond
PROBE = 8  # characters for each token of the context: most texts have more tokens than that
COUNTED = 4  # contexts' worth of tokens: a longer text is not counted
TURN, TOOL = 50, 1000  # what a template takes for one, in the same measure
WRITTEN = 4  # and what it takes to read a token that was written elsewhere


@dataclass(slots=True)
class Prompt:
    """One prompt of a request.

    Attributes:
        param: the field that it came in.
        rendered: the text that the chat template made of messages.
        images: that stand in it, in order.
    """

    param: str
    ids: list[int]
    rendered: str | None = None
    images: list[PreparedImage] = field(default_factory=list)


def validate(request: Generate) -> None:
    """Check what can be checked without knowing the model.

    Raises:
        CortexError: BAD_REQUEST naming the field.
    """
    validate_prompt(request)
    if request.echo and request.messages is not None:
        raise bad_request("echo", "echo needs a prompt: the template's text around messages is not shown")
    if request.suffix is not None and request.messages is not None:
        raise bad_request("suffix", "suffix needs a prompt, to fill in what stands between the two")
    if (written := sum(map(len, request.written))) > MAX_WRITTEN:
        raise bad_request("written", f"written has {written} tokens, more than {MAX_WRITTEN}")
    if request.must_call:
        known = {tool.name for tool in request.tools}
        if unknown := [name for name in request.must_call if name not in known]:
            raise bad_request("must_call", f"must_call names {unknown[0]!r}, which is none of the tools")
    check(request.sampling, may_be_empty=request.echo or request.messages is not None)
    if request.prompt is not None:
        _check_prompts(request)


def _check_prompts(request: Generate) -> None:
    """See that a list holds one kind of thing, that no prompt is empty, and that choices are not too many."""
    # Of a long list the rest is looked at where the ids are, off the event loop.
    kinds = set(map(type, request.prompt[:BLOCK])) if isinstance(request.prompt, list) else {str}
    if int in kinds and len(kinds) > 1:
        raise bad_request("prompt", MIXED)
    prompts, n = named_prompts(request), request.sampling.n
    if len(prompts) * n > MAX_CHOICES:
        raise bad_request(
            "prompt", f"{len(prompts)} prompts times n, which is {n}, are more than {MAX_CHOICES} choices"
        )
    for param, prompt in prompts:
        if not prompt and request.suffix is None:
            raise bad_request(param, f"{param} is empty")


def validate_prompt(request: Generate | CountTokens) -> None:
    """The part of `validate` that counting tokens shares."""
    if (request.messages is None) == (request.prompt is None):
        raise bad_request("messages", "a request has either messages or a prompt")
    if request.messages is not None and not request.messages:
        raise bad_request("messages", "messages is empty")
    if request.continue_final_message and not continuation.can_continue(request.messages or ()):
        name = "continue_final_message"
        raise bad_request(name, f"{name} needs messages that end in text of the assistant's")
    fills_in = isinstance(request, Generate) and request.suffix is not None  # from the start, perhaps
    if request.prompt is not None and not request.prompt and not (fills_in and request.prompt == ""):
        raise bad_request("prompt", "prompt is empty")
    if request.prompt is not None and request.tools:
        raise bad_request("tools", "tools need messages: a prompt is taken as it is")
    for i, tool in enumerate(request.tools):
        if not tool.is_valid():
            raise bad_request(f"tools[{i}]", f"tools[{i}] is no definition of a function")


def has_grammar(request: Generate | Embed | CountTokens) -> bool:
    """Whether preparing it makes and tries a grammar."""
    return isinstance(request, Generate) and (request.structured is not None or bool(request.must_call))


def is_quick(request: Generate | Embed | CountTokens) -> bool:
    """Whether preparing it takes so little time that the event loop can do it itself."""
    if isinstance(request, Embed) or has_grammar(request):
        return False
    left = INLINE_CHARACTERS
    if isinstance(request, Generate):
        if request.sampling.bad_words:
            return False
        left //= request.sampling.n
    for cost in _costs(request):
        left -= cost
        if left < 0:
            return False
    return True


def _costs(request: Generate | CountTokens) -> Iterator[int]:
    """What each of what stands in a request costs, as if it were so many characters of text."""
    for message in request.messages or ():
        yield TURN + len(message.reasoning or "")
        if isinstance(message.content, str):
            yield len(message.content)
        else:
            yield TURN * len(message.content)
            yield content.size(message)
            if any(content.images([message])):
                yield INLINE_CHARACTERS  # small files can be large images
        for call in message.tool_calls:
            yield TURN + len(call.arguments)
    if request.messages is None:
        suffix = request.suffix or "" if isinstance(request, Generate) else ""
        for _, prompt in named_prompts(request):
            yield len(prompt) + len(suffix)
    for tool in request.tools:
        yield TOOL
        yield from _costs_inside(tool.definition)
    if request.template_args:
        yield from _costs_inside(request.template_args)
    if isinstance(request, Generate) and request.written:
        yield WRITTEN * sum(map(len, request.written))


def _costs_inside(value: Any) -> Iterator[int]:
    """The same for what stands inside of JSON."""
    values = [value]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            yield len(value)
            yield sum(len(str(key)) for key in value)
            values += value.values()
        elif isinstance(value, list):
            yield len(value)
            values += value
        elif isinstance(value, str):
            yield len(value)


def named_prompts(request: Generate | CountTokens) -> list[tuple[str, str | list[int]]]:
    """The one prompt of a request, or each of several, behind the name that an error has for it."""
    prompt = request.prompt
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [("prompt", prompt)]
    return [(f"prompt[{number}]", each) for number, each in enumerate(prompt)]


def encode_prompts(
    text: TextFrontEnd,
    request: Generate | CountTokens,
    context_length: int | None = None,
    seconds: float | None = None,
) -> list[Prompt]:
    """What a request wants to have continued, as token ids; messages are one prompt.

    Args:
        seconds: that the chat template may take; see `ChatTemplate.render`.

    Raises:
        CortexError: TEMPLATE_FAILED, BAD_REQUEST for ids that the model does not have, or
            CONTEXT_LENGTH_EXCEEDED for text that is far too long for `context_length`. What is only counted
            may be several times as long: clients shorten their conversations by the number.
    """
    contexts = COUNTED if type(request) is CountTokens else 1
    special = request.add_special_tokens if isinstance(request, Tokenize) else None
    if request.messages is not None:
        _refuse_unread(text, content.characters(request.messages), "messages", context_length, contexts)
        rendered, vision = _render(text, request, seconds), text.vision
        views = [] if vision is None else shown(request.messages, vision)
        if vision is not None:
            rendered = around_marks(rendered, request.messages, views, vision, text.write)
        ids = to_ids(text, rendered, "messages", context_length, special=bool(special), contexts=contexts)
        if vision is None:
            return [Prompt("messages", ids, rendered)]
        about = vision, context_length, isinstance(request, Generate), text.write, contexts
        ids, images = place(ids, request.messages, views, *about)
        return [Prompt("messages", ids, rendered, images)]
    suffix = request.suffix if isinstance(request, Generate) else None
    prompts = [
        Prompt(param, _infill_ids(text, prompt, suffix, param, context_length))
        if suffix is not None
        else Prompt(
            param,
            to_ids(text, prompt, param, context_length, special=special is not False, contexts=contexts),
        )
        for param, prompt in named_prompts(request)
    ]
    if isinstance(request, Generate):
        for each in prompts:
            refuse_marks(each.ids, text.vision, each.param)
    return prompts


def _infill_ids(
    text: TextFrontEnd, prompt: str | list[int], suffix: str, param: str, context_length: int | None
) -> list[int]:
    """The token ids of a prompt that is to be continued up to `suffix`. What cannot fit is refused unread."""
    if isinstance(prompt, str):
        _refuse_long(text, prompt, param, context_length)
    else:
        check_ids(prompt, text, param)
    _refuse_long(text, suffix, "suffix", context_length)
    return text.encode_infill(prompt, suffix)


def _render(text: TextFrontEnd, request: Generate | CountTokens, seconds: float | None) -> str:
    """The prompt that messages become; an error of the template says whose it is."""
    continued, messages = request.continue_final_message, request.messages
    try:
        rendered = text.render(
            continuation.marked(messages) if continued else messages,
            request.tools,
            request.template_args,
            seconds,
            request.thinking,
        )
        return continuation.cut(rendered) if continued else rendered
    except CortexError as error:
        if error.code == Code.TEMPLATE_FAILED:
            raise CortexError(error.code, f"{request.model}: {error.message}", param=error.param) from error
        raise


def to_ids(
    text: TextFrontEnd,
    prompt: str | list[int],
    param: str,
    context_length: int | None,
    *,
    special: bool = True,
    contexts: int = 1,
) -> list[int]:
    """The token ids of one prompt. What cannot fit is refused unread: megabytes of text take seconds.

    Args:
        contexts: how many contexts' worth of tokens it may have.

    Raises:
        CortexError: BAD_REQUEST or CONTEXT_LENGTH_EXCEEDED, naming `param`.
    """
    if isinstance(prompt, str):
        _refuse_long(text, prompt, param, context_length, contexts)
        return text.encode(prompt, special)
    check_ids(prompt, text, param)
    return prompt


def _refuse_unread(
    text: TextFrontEnd, characters: int, param: str, context_length: int | None, contexts: int = 1
) -> None:
    """Refuse what has too many tokens whatever it says."""
    if context_length is None or characters < contexts * context_length:  # a token has one at least
        return
    if (fewest := text.fewest_tokens(characters)) >= contexts * context_length:
        raise too_long(fewest, context_length, param, None, counted=False)


def _refuse_long(
    text: TextFrontEnd, prompt: str, param: str, context_length: int | None, contexts: int = 1
) -> None:
    """The same, and read a long text piece by piece until it has too many: each token takes hundreds of
    bytes."""
    _refuse_unread(text, len(prompt), param, context_length, contexts)
    if context_length is None or len(prompt) <= 2 * PROBE * context_length:
        return
    tokens = 0
    for start in range(0, len(prompt), PROBE * context_length):
        piece = prompt[start : start + PROBE * context_length]
        tokens += len(text.encode(piece, special=False))
        if 2 * tokens >= 3 * contexts * context_length:  # where it was cut there may be some more
            raise too_long(tokens, context_length, param, None, counted=False)


def pack(ids: list[int]) -> bytes:
    """Token ids as a worker takes them: uint32, little-endian. In blocks, between which others may run."""
    if len(ids) <= BLOCK:
        return array("I", ids).tobytes()
    return b"".join(array("I", ids[start : start + BLOCK]).tobytes() for start in range(0, len(ids), BLOCK))
