"""What stands beside the tokenizer in a GGUF file: templates, special tokens, ends of a text, sampling."""

from __future__ import annotations

from typing import Any

from workers.checkpoints.files import refuse
from workers.checkpoints.gguf import tokenizer
from workers.checkpoints.gguf.header import Gguf
from workers.checkpoints.text import SPECIAL, TextFormat

TEMPLATE = "tokenizer.chat_template"
# Tokens that end a turn by what they are called: files name one or none of them, and models have several.
_END_OF_TURN = """
    <|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <end_of_turn> <turn|> <|endoftext|> <|end_of_text|>
    <|eom_id|> <EOT> [EOT] [EOS] <end_of_utterance> <｜end▁of▁sentence｜>
"""
END_OF_TURN = frozenset(_END_OF_TURN.split())
HARMONY = {"<|return|>", "<|call|>"}  # where these end a turn, <|end|> only ends one of its messages
SAMPLING = "general.sampling."
# What of it there is a setting for here, and what `generation_config.json` calls that.
FOLLOWED = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
NEUTRAL = (0, -1, 0.0, "")


def read(file: Gguf) -> TextFormat:
    """What the metadata say.

    Raises:
        CortexError: MODEL_LOAD_FAILED, there is no tokenizer, or one that is not known here.
    """
    tokenizer.check(file)
    tokens, types = file.get("tokenizer.ggml.tokens"), file.get("tokenizer.ggml.token_type") or []
    special = {}
    for name in SPECIAL:
        number = tokenizer.token_id(file, name.removesuffix("_token"))
        if number is not None:
            special[name] = tokens[number]
    ends = [tokenizer.token_id(file, name) for name in ("eos", "eot", "eom")]
    said = {tokens[number]: number for number in ends if number is not None}
    for number, type_ in enumerate(types):
        if type_ == tokenizer.CONTROL and number < len(tokens) and tokens[number] in END_OF_TURN:
            said.setdefault(tokens[number], number)
    if said.keys() >= HARMONY:
        said.pop("<|end|>", None)
    return TextFormat(_templates(file), special, list(said.values()))


def _templates(file: Gguf) -> dict[str, str]:
    """Chat templates by name, the default first."""
    found = {}
    for key, value in file.metadata.items():
        if key == TEMPLATE or key.startswith(f"{TEMPLATE}."):
            if not isinstance(value, str):
                refuse(file.path, f"{key} is no text")
            if value:
                found[key[len(TEMPLATE) + 1 :] or "default"] = value
    return dict(sorted(found.items(), key=lambda item: item[0] != "default"))


def sampling(file: Gguf) -> tuple[dict[str, Any], list[str]]:
    """What the file wants of every answer, as a `generation_config.json`, and what is not followed."""
    given, notes = {}, []
    for key, value in file.metadata.items():
        if not key.startswith(SAMPLING):
            continue
        name = key.removeprefix(SAMPLING)
        if name in FOLLOWED:
            given[FOLLOWED[name]] = value
        elif value not in NEUTRAL:
            notes.append(f"{key} is not followed")
    return given, notes
