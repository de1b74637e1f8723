"""A request without its text: what a neuron has to know of it from the moment that a worker could take it.

Preparing is a function of the request and its model alone, so it can be done in any process.
"""

from __future__ import annotations

from array import array
from functools import partial

import msgspec

from ipc.errors import Code, CortexError
from ipc.messages.requests import Generate
from ipc.messages.sampling import Structured
from ipc.worker_messages import Constraint, SamplingParams
from neuron.grammar.structured import constrain, hold
from neuron.grammar.tool_calls import allow_call, require_call
from neuron.preparation.facts import ModelFacts
from neuron.preparation.placing import PreparedImage
from neuron.preparation.prompt import Prompt, encode_prompts, named_prompts, pack
from neuron.preparation.sampling import check_ids, resolve
from neuron.refusals import bad_request, too_long
from neuron.text.frontend import TextFrontEnd
from neuron.text.offered_tool import OfferedTool
from neuron.text.reasoning import Thought

MAX_PROMPT_LOGPROBS = 800_000  # of one request, alternatives included: some 50 MB for its client
MAX_TOLD_IDS = 1 << 18  # of prompts, for a client that wants to see them: all go in one message


class PreparedPrompt(msgspec.Struct, array_like=True):
    """One prompt as the worker takes it.

    Attributes:
        param: the field that it came in.
        ids: its tokens, uint32, little-endian.
        echo: the text that each answer begins with.
        images: that stand in it, in order.
    """

    param: str
    ids: bytes
    echo: str = ""
    images: list[PreparedImage] = []

    @property
    def tokens(self) -> int:
        """How many it has."""
        return len(self.ids) // 4

    @property
    def first(self) -> int:
        """The id of its first token."""
        return int.from_bytes(self.ids[:4], "little")

    def token_ids(self, count: int | None = None) -> list[int]:
        """The last `count` of them, or all."""
        return array("I", self.ids if count is None else self.ids[-4 * count :]).tolist()


class Prepared(msgspec.Struct, array_like=True):
    """A `Generate` that was prepared.

    Attributes:
        thought: where messages leave a model of these tags; None: they were none.
        tools: that it offers.
        written: the tokens of each answer that others wrote, as `ids`.
        request: the request itself without all that was only needed for this, where it came unread.
    """

    prompts: list[PreparedPrompt]
    params: SamplingParams
    constraint: Constraint | None
    thought: Thought | None
    tools: list[OfferedTool]
    written: list[bytes] = []
    request: Generate | None = None


def prepare(
    request: Generate,
    text: TextFrontEnd,
    model: ModelFacts,
    context_length: int,
    seconds: float | None = None,
) -> Prepared:
    """Tokenise and resolve.

    Args:
        seconds: that the chat template may take; see `ChatTemplate.render`.

    Raises:
        CortexError: what is wrong with the request, for this model.
    """
    if not model.completion:
        message = f"model: {request.model} writes no text; /v1/models says what it can do"
        raise CortexError(Code.NOT_SUPPORTED, message, param="model")
    made = encode_prompts(text, request, context_length, seconds)
    tokens = 0
    for prompt in made:
        if not prompt.ids:
            raise bad_request(prompt.param, f"{prompt.param} has no tokens")
        check_length(prompt.param, len(prompt.ids), request.sampling.max_tokens, context_length)
        tokens += len(prompt.ids)
    if request.return_token_ids and tokens > MAX_TOLD_IDS:
        name = "return_token_ids"
        raise bad_request(name, f"{name}: {tokens} tokens of prompts are more than {MAX_TOLD_IDS}")
    _check_choices(request, context_length)
    for number, token_ids in enumerate(request.written):
        check_ids(token_ids, text, f"written[{number}]")
    if model.engine == "simulated":
        _refuse_what_needs_a_model(request)
    params = _resolve(request, text, model, tokens)
    constraint = _constrain(request, text, made[0].rendered)
    return Prepared(
        _packed(request, text, made),
        params,
        constraint,
        None if made[0].rendered is None else text.think_tags.state(made[0].rendered),
        request.tools,  # whoever sends this to another process makes `OfferedTool`s of them
        list(map(pack, request.written)),
    )


def check_length(param: str, tokens: int, max_tokens: int | None, context_length: int) -> None:
    """See that a prompt leaves room for an answer; CONTEXT_LENGTH_EXCEEDED when not."""
    if tokens >= context_length:
        raise too_long(tokens, context_length, param, max_tokens)


def _check_choices(request: Generate, context_length: int) -> None:
    """See that all choices of a prompt are no more work than one that fills the context.

    Where no `max_tokens` is given, they share the context: see `Generation.hand_over`.
    """
    sampling = request.sampling
    if sampling.n > 1 and sampling.n * (sampling.max_tokens or 0) > context_length:
        raise bad_request(
            "n",
            f"n times max_tokens is {sampling.n * sampling.max_tokens}, above the model's context of "
            f"{context_length} tokens",
        )


def _refuse_what_needs_a_model(request: Generate) -> None:
    """A simulated engine has neither probabilities nor a choice of tokens."""
    sampling = request.sampling
    for name, asked in (
        ("structured_outputs", request.structured),
        ("must_call", request.must_call or None),
        ("logprobs", sampling.logprobs),
        ("prompt_logprobs", sampling.prompt_logprobs),
    ):
        if asked is not None:
            raise CortexError(
                Code.NOT_SUPPORTED, f"{name}: the model is simulated and cannot do that", param=name
            )


def _resolve(request: Generate, text: TextFrontEnd, model: ModelFacts, tokens: int) -> SamplingParams:
    """How tokens are chosen, and what is told of them."""
    sampling, ends = request.sampling, model.eos_ids
    if request.suffix is not None and text.infill is not None:
        ends = [*ends, *text.infill.ends]
    params = resolve(sampling, model.defaults, ends, text)
    if request.echo and params.prompt_logprobs is None:
        params = msgspec.structs.replace(params, prompt_logprobs=params.logprobs)
    if params.prompt_logprobs is not None:
        count = tokens * (1 + params.prompt_logprobs)
        if count > MAX_PROMPT_LOGPROBS:
            raise bad_request(
                "logprobs" if sampling.prompt_logprobs is None else "prompt_logprobs",
                f"{tokens} tokens of prompts, and alternatives to them, have {count} "
                f"log-probabilities, more than {MAX_PROMPT_LOGPROBS}",
            )
    return params


def _constrain(request: Generate, text: TextFrontEnd, rendered: str | None) -> Constraint | None:
    """The grammar of every answer, and how long its thought may be. Only messages can leave a thought open,
    and they are one prompt: `rendered`."""
    budget = request.thinking.budget
    formed = request.structured is not None or bool(request.must_call)
    if not formed and budget is None:
        return None
    encode, tags = partial(text.encode, special=False), text.think_tags
    thought = text.thought_after(rendered)
    if thought == "none":
        budget = None
    if not formed:
        return None if budget is None else hold("", encode, thought, tags, budget)
    parallel, written = request.parallel_tool_calls, text.tool_format
    if request.must_call:  # of what is no call there is nothing then
        constraint = require_call(request.tools, request.must_call, encode, thought, parallel, written, tags)
    elif request.tools:
        constraint = allow_call(request.tools, request.structured, encode, thought, parallel, written, tags)
    else:
        constraint = constrain(request.structured, encode, thought, tags)
    return msgspec.structs.replace(constraint, budget=budget)


def _packed(request: Generate, text: TextFrontEnd, made: list[Prompt]) -> list[PreparedPrompt]:
    packed = [PreparedPrompt(prompt.param, pack(prompt.ids), images=prompt.images) for prompt in made]
    if request.echo:
        for prompt, (_, given) in zip(packed, named_prompts(request), strict=True):
            prompt.echo = given if isinstance(given, str) else text.decode(given)
    return packed


def without_text(request: Generate) -> Generate:
    """A request as it is still needed once it is prepared, and its tools are known."""
    sampling = msgspec.structs.replace(request.sampling, logit_bias={}, allowed_token_ids=[], bad_words=[])
    return msgspec.structs.replace(
        request,
        messages=None,
        prompt=None,
        suffix=None,
        written=[],
        tools=[],
        template_args={},
        sampling=sampling,
        structured=None if request.structured is None else Structured(),
    )
