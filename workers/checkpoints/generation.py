"""What a checkpoint's `generation_config.json` wants of every answer, where a request does not say.

Files are written by many hands. A value that cannot be meant is left out and named, never a reason not to
load the model; and what is not done here is named, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from workers.checkpoints.files import read_json


class GenerationDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are chosen where a request does not say. None and nothing: no say here either."""

    temperature: float | None = None  # 0 is greedy
    top_k: int | None = None  # 0 is off
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None  # of output
    min_tokens: int = 0  # of output, before anything may end the answer
    suppress_ids: list[int] = []  # never chosen
    begin_suppress_ids: list[int] = []  # not chosen as the first token of the output
    bad_words: list[list[int]] = []  # token sequences of which the last is not chosen after the others
    no_repeat_ngram: int = 0  # so many tokens in a row stand in prompt and output once; 0 is off


MOST_IDS = 4096  # in a list: they go with every request

# Keys that would change answers, the values with which they do not, and that nothing here follows.
IGNORED: dict[str, tuple[Any, ...]] = {
    "max_length": (20,),
    "min_length": (0,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "typical_p": (1.0,),
    "top_h": (),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "sequence_bias": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "force_words_ids": (),
    "constraints": (),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,),
    "penalty_alpha": (0.0,),
    "diversity_penalty": (0.0,),
    "stop_strings": (),
    "watermarking_config": (),
    "dola_layers": (),
    "token_healing": (False,),
}


def read(path: Path, vocab_size: int) -> tuple[GenerationDefaults, list[int] | None, list[str]]:
    """What the file at `path` says.

    Returns:
        The defaults, the ids that end an answer (None: it does not say), and notes on what is not as written.

    Raises:
        CortexError: MODEL_LOAD_FAILED, the file is no JSON object.
    """
    if not path.exists():
        return GenerationDefaults(), None, []
    return understood(read_json(path, dict[str, Any]), vocab_size, path.name)


def understood(
    given: Mapping[str, Any], vocab_size: int, where: str
) -> tuple[GenerationDefaults, list[int] | None, list[str]]:
    """The same of what stands in such a file, or would; `where` begins the notes."""
    reader = _Reader(given, vocab_size)
    temperature = reader.number("temperature", lambda value: value >= 0, "0 or more")
    top_k = reader.whole("top_k")
    top_p = reader.number("top_p", lambda value: 0 <= value <= 1, "0 to 1")
    if top_p == 0:
        top_p, top_k = None, 1
        reader.notes.append("top_p 0: the most probable token alone, which is what it comes to")
    length = reader.number("max_new_tokens", lambda value: value >= 1, "1 or more")
    words = reader.words("bad_words_ids")
    defaults = GenerationDefaults(
        temperature=0.0 if given.get("do_sample") is False else temperature,
        top_k=None if top_k is None else max(0, top_k),
        top_p=top_p,
        min_p=reader.number("min_p", lambda value: 0 <= value <= 1, "0 to 1"),
        repetition_penalty=reader.number("repetition_penalty", lambda value: value > 0, "above 0"),
        max_tokens=None if length is None else int(length),
        min_tokens=max(0, reader.whole("min_new_tokens") or 0),
        suppress_ids=reader.ids("suppress_tokens") or [],
        begin_suppress_ids=reader.ids("begin_suppress_tokens") or [],
        bad_words=words,
        no_repeat_ngram=max(0, reader.whole("no_repeat_ngram_size") or 0),
    )
    for key, neutral in IGNORED.items():
        if given.get(key) is not None and given[key] not in neutral:
            reader.notes.append(f"{key} {_shortened(given[key])} is not followed")
    eos = reader.ids("eos_token_id")
    return defaults, eos, [f"{where}: {note}" for note in reader.notes]


class _Reader:
    """Values of a mapping in the type that they should have; `notes` says which had another."""

    def __init__(self, given: Mapping[str, Any], vocab_size: int) -> None:
        self._given, self._vocab_size = given, vocab_size
        self.notes: list[str] = []

    def number(self, key: str, fits: Callable[[float], bool], range_: str) -> float | None:
        value = self._given.get(key)
        if value is None:
            return None
        number = _number(value)
        if number is None or not fits(number):
            self._left_out(key, f"no number of {range_}")
            return None
        if not isinstance(value, int | float):
            self.notes.append(f"{key} {_shortened(value)} is a text, and read as {number:g}")
        return number

    def whole(self, key: str) -> int | None:
        number = self.number(key, lambda value: value == int(value), "any size without a fraction")
        return None if number is None else int(number)

    def ids(self, key: str) -> list[int] | None:
        """One id or several; those that the model does not have are left out."""
        value = self._given.get(key)
        if value is None:
            return None
        ids = value if isinstance(value, list) else [value]
        if len(ids) > MOST_IDS or not all(map(_is_int, ids)):
            self._left_out(key, f"no token id, and no list of up to {MOST_IDS} of them")
            return None
        return self._known(key, ids)

    def words(self, key: str) -> list[list[int]]:
        value = self._given.get(key)
        if value is None:
            return []
        words = value if isinstance(value, list) else [None]
        whole = all(isinstance(word, list) and word and all(map(_is_int, word)) for word in words)
        if not whole or sum(map(len, words)) > MOST_IDS:
            self._left_out(key, f"no list of lists of token ids, up to {MOST_IDS} of them")
            return []
        return [word for word in value if len(self._known(key, word)) == len(word)]

    def _left_out(self, key: str, why: str) -> None:
        self.notes.append(f"{key} {_shortened(self._given[key])} is left out: it is {why}")

    def _known(self, key: str, ids: list[int]) -> list[int]:
        known = [token for token in ids if 0 <= token < self._vocab_size]
        if len(known) < len(ids) and key != "eos_token_id":
            self.notes.append(f"{key}: ids that the model does not have are left out")
        return known


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> float | None:
    """A number, also one that stands in a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < 1e18 else None  # which leaves NaN out as well


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
