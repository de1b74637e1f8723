"""The request fields that OpenAI's two completion APIs have in common, and what is refused of both.

A field that would change the answer and that we cannot honour is refused by name: an answer that silently
ignores it is worse than none. Hints that leave the answer as it is are ignored (`user`, `store`, `metadata`,
`service_tier`, `prediction`, `verbosity`, ...), and so are fields that nobody here has
heard of: agents send new ones every month.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from msgspec import Meta, Struct

from gateway.dialects.fields import (
    MAX_INT,
    MAX_STOPS,
    MAX_TOKEN_ID,
    BadWord,
    Int,
    Model,
    Name,
    NonNegative,
    Short,
    Stop,
    TokenId,
    bad_request,
    convert,
    unsupported,
)
from gateway.dialects.openai.structured import StructuredFields
from gateway.refusals import shown
from ipc.messages.sampling import Sampling

MAX_BIAS = 100
MAX_BIASED = 1024  # token ids

Bias = Annotated[
    float, Meta(extra_json_schema={"minimum": -MAX_BIAS, "maximum": MAX_BIAS})
]  # see `_logit_bias`
MaxTokens = Annotated[int, Meta(ge=-1, le=MAX_INT)]  # see `limit`
LogprobCount = Annotated[int, Meta(ge=0, le=20)]
TokenIds = Annotated[list[TokenId], Meta(min_length=1)]

MAX_CHOICES = 128  # of one request
SHOWN_IDS = 8  # of a list of wrong ones, in a message

MAX_SEED = (1 << 64) - 1  # engines take unsigned seeds; clients send signed ones, too


class StreamOptions(Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # False where nobody says: here it is asked for


class Fields(StructuredFields, kw_only=True):
    """Fields of both APIs that we honour."""

    model: Model
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: int | None = None  # see `_seed`
    max_tokens: MaxTokens | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    best_of: int | None = None
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=MAX_BIASED)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None

    # as vLLM spells them
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None  # as llama.cpp calls it
    min_tokens: NonNegative | None = None
    bad_words: Annotated[list[BadWord], Meta(max_length=128)] | None = None
    allowed_token_ids: TokenIds | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: LogprobCount | None = None
    return_token_ids: bool | None = None
    priority: Int | None = None
    cache_salt: Short | None = None
    keep_alive: float | Short | None = None  # as Ollama has it
    prompt_cache_key: str | None = None  # of a conversation


# Fields of both APIs that we refuse, and the values, besides null, with which they ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "moderation": (),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "truncate_prompt_tokens": (),
    "skip_special_tokens": (True,),
    "logits_processors": ([],),
    "prompt_embeds": (),
    "return_tokens_as_token_ids": (False,),
    "grammar": (),  # of llama.cpp: another language than ours
    # ways to choose tokens that other servers have
    "ebnf": (),
    "stop_regex": (),
    "typical_p": (1,),
    "top_a": (0,),
    "tfs_z": (1,),
    "top_n_sigma": (0, -1),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "dynatemp_range": (0,),
}


def prompts(given: str | list[Any], param: str) -> str | list[int] | list[str] | list[list[int]]:
    """One prompt or several, each of them text or token ids; CortexError naming the one that is neither."""
    kind: Any = TokenIds
    if isinstance(given, str):
        kind = Name
    elif given and isinstance(given[0], str):
        kind = list[Name]
    elif given and isinstance(given[0], list):
        kind = list[TokenIds]
    return convert(given, kind, param)


def limit(max_tokens: int | None, param: str) -> int | None:
    """How many tokens an answer may have; None: as many as fit. CortexError when it is to have none."""
    if max_tokens == 0:
        text = "0 leaves nothing to answer; 1 or more are taken, and -1 for as many as fit"
        raise bad_request(param, text)
    return None if max_tokens == -1 else max_tokens


def is_one(prompts: str | list[Any]) -> bool:
    """Whether these are one prompt, and no list of several."""
    return isinstance(prompts, str) or isinstance(prompts[0], int)


def sampling(fields: Fields, max_tokens: int | None, logprobs: int | None) -> Sampling:
    """The sampling values that a request asks for; None where it leaves them to the model.

    Raises:
        CortexError: `best_of` asks for more than `n`, `stream_options` comes without a stream, a key of
            `logit_bias` is no token id, a bias is out of range, or `seed` is too long.
    """
    if fields.stream_options is not None and not fields.stream:
        raise bad_request("stream_options", "needs stream to be true")
    count = fields.n or 1
    if fields.best_of not in (None, count):
        raise unsupported(
            "best_of", f"{shown(fields.best_of)} is not supported; only n, which is {count}, is"
        )
    stop = [fields.stop] if isinstance(fields.stop, str) else fields.stop
    return Sampling(
        temperature=fields.temperature,
        top_k=None if fields.top_k is None else max(0, fields.top_k),
        top_p=fields.top_p,
        min_p=fields.min_p,
        repetition_penalty=fields.repetition_penalty or fields.repeat_penalty,
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        logit_bias=_logit_bias(fields.logit_bias) if fields.logit_bias else {},
        allowed_token_ids=fields.allowed_token_ids or [],
        bad_words=fields.bad_words or [],
        min_tokens=fields.min_tokens or 0,
        seed=_seed(fields.seed) if fields.seed is not None else None,
        n=count,
        max_tokens=max_tokens,
        stop=stop or [],
        include_stop=bool(fields.include_stop_str_in_output),
        stop_token_ids=fields.stop_token_ids or [],
        ignore_eos=bool(fields.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=fields.prompt_logprobs,
    )


def _logit_bias(given: dict[str, float]) -> dict[int, float]:
    wrong = [key for key in given if not _is_token_id(key)]
    if wrong:
        text = f"{_listed(wrong)} is no token id" if len(wrong) == 1 else f"{_listed(wrong)} are no token ids"
        raise bad_request("logit_bias", text)
    if beyond := [key for key, bias in given.items() if not -MAX_BIAS <= bias <= MAX_BIAS]:
        raise bad_request("logit_bias", f"{_listed(beyond)}: not between -{MAX_BIAS} and {MAX_BIAS}")
    return {int(key): bias for key, bias in given.items()}


def _listed(keys: list[str]) -> str:
    return ", ".join(map(shown, keys[:SHOWN_IDS])) + (", ..." if len(keys) > SHOWN_IDS else "")


def _is_token_id(key: str) -> bool:
    return re.fullmatch(r"0|[1-9][0-9]{0,9}", key) is not None and int(key) <= MAX_TOKEN_ID


def _seed(given: int) -> int:
    if not -MAX_INT - 1 <= given <= MAX_SEED:
        raise bad_request("seed", f"{shown(given)} does not fit into 64 bits")
    return given & MAX_SEED
