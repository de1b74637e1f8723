"""How the tokens of a request are chosen: checked, then resolved to what a worker takes as it is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from operator import attrgetter

from ipc.messages.sampling import Sampling
from ipc.worker_messages import SamplingParams
from neuron.refusals import bad_request
from neuron.text.answers import AnswerText
from neuron.text.frontend import TextFrontEnd
from workers.checkpoints.generation import GenerationDefaults

MAX_STOP_STRINGS = 16
MAX_STOP = 1000  # characters
MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_BIASED = 1024  # token ids
MAX_STOP_IDS = 1024
MAX_ALLOWED_IDS = 8192
SHOWN_IDS = 8  # of those at fault, in a message
BLOCK = 1 << 16  # token ids that are looked at in one go: about a millisecond
MIXED = "prompt has token ids beside whole prompts"
MAX_BAD_WORDS = 128
MAX_BAD_WORD = 256  # characters
MAX_SEED = (1 << 64) - 1  # workers take unsigned ones; clients send signed ones, too

RANGES: dict[str, tuple[float, float]] = {  # both ends are allowed
    "temperature": (0, 2),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "n": (1, MAX_CHOICES),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
    "seed": (-(1 << 63), MAX_SEED),
}

NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}

LENGTHS = {
    "stop": MAX_STOP_STRINGS,
    "bad_words": MAX_BAD_WORDS,
    "logit_bias": MAX_BIASED,
    "stop_token_ids": MAX_STOP_IDS,
    "allowed_token_ids": MAX_ALLOWED_IDS,
}

IDS = ("stop_token_ids", "allowed_token_ids", "logit_bias")

_ranged, _lists, _chosen, _ids = (attrgetter(*names) for names in (RANGES, LENGTHS, NEUTRAL, IDS))
_USUAL = _ranged(Sampling())  # what most requests say


def check(sampling: Sampling, *, may_be_empty: bool) -> None:
    """See that every value is in its range, and that no two contradict each other.

    Args:
        may_be_empty: the answer may have no tokens of its own, for the prompt is what is of interest.

    Raises:
        CortexError: BAD_REQUEST naming the field and the limit.
    """
    if (values := _ranged(sampling)) != _USUAL:
        for value, (name, (least, most)) in zip(values, RANGES.items(), strict=True):
            if value is not None and not least <= value <= most:
                raise bad_request(name, f"{name} is {value}, not between {least} and {most}")
    if sampling.top_p is not None and not 0 < sampling.top_p <= 1:
        raise bad_request("top_p", f"top_p is {sampling.top_p}, not above 0 and at most 1")
    if sampling.top_k is not None and sampling.top_k < 0:
        raise bad_request("top_k", f"top_k is {sampling.top_k}, not 0 (off) or more")
    if sampling.repetition_penalty is not None and not 0 < sampling.repetition_penalty <= 10:
        value = sampling.repetition_penalty
        raise bad_request("repetition_penalty", f"repetition_penalty is {value}, not above 0 and at most 10")
    _check_lengths(sampling, 0 if may_be_empty else 1)
    if any(_lists(sampling)):
        _check_lists(sampling)


def _check_lengths(sampling: Sampling, least: int) -> None:
    if sampling.max_tokens is not None and sampling.max_tokens < least:
        raise bad_request("max_tokens", f"max_tokens is {sampling.max_tokens}, not {least} or more")
    if sampling.min_tokens < 0:
        raise bad_request("min_tokens", f"min_tokens is {sampling.min_tokens}, not 0 or more")
    if sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens:
        raise bad_request(
            "min_tokens", f"min_tokens is {sampling.min_tokens}, above max_tokens, {sampling.max_tokens}"
        )


def _check_lists(sampling: Sampling) -> None:
    for name, most in LENGTHS.items():
        if (length := len(getattr(sampling, name))) > most:
            raise bad_request(name, f"{name} has {length} entries, more than {most}")
    for number, stop in enumerate(sampling.stop):
        if not 0 < len(stop) <= MAX_STOP:
            raise bad_request("stop", f"stop[{number}] has {len(stop)} characters, not 1 to {MAX_STOP}")
    for word in sampling.bad_words:
        if not 0 < len(word.strip()) <= MAX_BAD_WORD:
            text = f"bad_words: one is empty or has more than {MAX_BAD_WORD} characters"
            raise bad_request("bad_words", text)
    if wrong := [token for token, bias in sampling.logit_bias.items() if not -100 <= bias <= 100]:
        raise bad_request("logit_bias", f"the bias of {_listed(wrong)} not between -100 and 100")


def resolve(
    sampling: Sampling, defaults: GenerationDefaults, eos_ids: list[int], text: TextFrontEnd
) -> SamplingParams:
    """The request's values, else the model's own, else such that change nothing.

    Raises:
        CortexError: BAD_REQUEST for a token id that the model does not have.
    """
    for name, ids in zip(IDS, _ids(sampling), strict=True):
        if ids:
            check_ids(list(ids), text, name)
    chosen = NEUTRAL.copy()
    for name, default, asked in zip(NEUTRAL, _chosen(defaults), _chosen(sampling), strict=True):
        if (value := default if asked is None else asked) is not None:
            chosen[name] = value
    bad_words = [*defaults.bad_words, *([token] for token in defaults.suppress_ids)]
    if sampling.bad_words:
        bad_words = _bad_words(sampling.bad_words, text) + bad_words
    seed = random.getrandbits(64) if sampling.seed is None else sampling.seed
    return SamplingParams(
        **chosen,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=sampling.logit_bias,
        allowed_token_ids=sampling.allowed_token_ids,
        bad_words=bad_words,
        stop_ids=sampling.stop_token_ids + ([] if sampling.ignore_eos else eos_ids),
        min_tokens=sampling.min_tokens or defaults.min_tokens,
        seed=seed & MAX_SEED,
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
        begin_suppress_ids=defaults.begin_suppress_ids,
        no_repeat_ngram=defaults.no_repeat_ngram,
    )


def check_ids(ids: list[int], text: AnswerText, param: str) -> None:
    """See that every id is a token of the model: BAD_REQUEST naming `param`."""
    for start in range(0, len(ids), BLOCK):
        block = ids[start : start + BLOCK]
        if set(map(type, block)) != {int}:
            raise bad_request(param, MIXED)
        if not 0 <= min(block) <= max(block) < text.vocabulary_size:
            wrong = [each for each in block if not 0 <= each < text.vocabulary_size]
            raise bad_request(
                param, f"{param}: {_listed(wrong)} not between 0 and {text.vocabulary_size - 1}"
            )


def _listed(ids: Sequence[int]) -> str:
    """Which ids are at fault, as the beginning of a sentence on them."""
    names = ", ".join(map(str, ids[:SHOWN_IDS])) + (", ..." if len(ids) > SHOWN_IDS else "")
    return f"token id {names} is" if len(ids) == 1 else f"token ids {names} are"


def _bad_words(words: list[str], text: TextFrontEnd) -> list[list[int]]:
    """Each word as it is spelled at the start of a text, and after a space."""
    spelled = [text.encode(start + word.lstrip(), special=False) for word in words for start in ("", " ")]
    return [list(ids) for ids in dict.fromkeys(map(tuple, spelled)) if ids]
