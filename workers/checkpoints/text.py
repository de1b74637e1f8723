"""What stands beside a tokenizer in a checkpoint: chat templates, special tokens, tokens that end a text."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from workers.checkpoints import missing
from workers.checkpoints.files import FILE_LIMIT, open_file, read_json, read_text, refuse

TOKENIZER = "tokenizer.json"
BEGINNING = 64 << 10  # bytes of it in which its added tokens stand, if there are not thousands,
BEHIND_ADDED = b'"normalizer"'  # before this, as the library of its kind writes it
MODEL, BEFORE_MODEL = b'"model":', b'"decoder":'  # its last key, and the one before
END = 4 << 10  # bytes in which is seen whether a string is open
INDENTED = b"\n}"  # how all of it ends and nothing in it does, written with indents
# Without them: the end of the model and of all, behind whatever its last key has. Of a vocabulary, which ends
# in a number, there have to be three braces.
COMPACT = re.compile(rb"(?:[\]\"el]|[\d{]\})\}\}")
CLOSED = re.compile(rb'(?:[-+.,:{}\[\]\s\d]|"(?:[^"\\]|\\.)*+"|[eE]|true|false|null)*+', re.DOTALL)
MORE_TEMPLATES = "additional_chat_templates"  # a folder: one file a template, which has its name
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TextFormat(NamedTuple):
    """What stands beside a tokenizer."""

    chat_templates: dict[str, str]  # by name; the first one is the default
    special_tokens: dict[str, str]  # bos_token, eos_token, ..., for templates
    end_ids: list[int]  # of the tokenizer's own end token


class _AddedToken(msgspec.Struct):
    content: str
    id: int = -1


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class _TokenizerConfig(msgspec.Struct):
    bos_token: str | _AddedToken | None = None
    eos_token: str | _AddedToken | None = None
    unk_token: str | _AddedToken | None = None
    sep_token: str | _AddedToken | None = None
    pad_token: str | _AddedToken | None = None
    cls_token: str | _AddedToken | None = None
    mask_token: str | _AddedToken | None = None
    chat_template: str | list[_NamedTemplate] | None = None
    added_tokens_decoder: dict[int, _AddedToken] = {}


class _Tokenizer(msgspec.Struct):
    added_tokens: list[_AddedToken] = []


class _Beginning(msgspec.Struct):
    added_tokens: list[_AddedToken]


class _TemplateFile(msgspec.Struct):
    chat_template: str | list[_NamedTemplate]


def read(folder: Path) -> TextFormat:
    """What the files in `folder` say.

    Raises:
        CortexError: MODEL_LOAD_FAILED, there is no tokenizer, or a file is damaged.
    """
    path = folder / TOKENIZER
    if not os.path.lexists(path):
        refuse(path, f"is missing{missing.instead(folder, missing.TOKENIZERS)}")
    beginning = _whole_beginning(path)
    path = folder / "tokenizer_config.json"
    tokens = read_json(path, _TokenizerConfig) if path.exists() else _TokenizerConfig()
    special = {name: _content(token) for name in SPECIAL if (token := getattr(tokens, name)) is not None}
    return TextFormat(_templates(folder, tokens), special, _end_ids(folder, beginning, tokens, special))


def added(folder: Path) -> dict[str, int]:
    """The tokens that a tokenizer in `folder` finds whole in any text, by how they are written."""
    path = folder / TOKENIZER
    tokens = read_json(path, _Tokenizer).added_tokens if path.exists() else []
    return {token.content: token.id for token in tokens if token.content}


def _whole_beginning(path: Path) -> bytes:
    """The first part of a `tokenizer.json`, which may have many megabytes, once it is seen that all of it is
    there: while it is copied, it ends in the middle of what is written, which may be behind two braces.

    Raises:
        CortexError: MODEL_LOAD_FAILED, it is missing or cut short.
    """
    with open_file(path) as file:
        try:
            file.seek(max(0, os.fstat(file.fileno()).st_size - END))
            end = file.read(END).rstrip()
            file.seek(0)
            beginning = file.read(BEGINNING)
            is_whole = end.endswith(INDENTED)
            if not is_whole and _closes(end):
                found = beginning.find(MODEL)
                while found < 0 and len(beginning) < FILE_LIMIT and (more := file.read(len(beginning))):
                    seen = len(beginning) - len(MODEL)
                    beginning += more
                    found = beginning.find(MODEL, seen)
                is_whole = found >= 0 and beginning.rfind(BEFORE_MODEL, 0, found) >= 0
        except OSError as error:
            refuse(path, f"cannot be read: {error.strerror}")
    if not is_whole:
        read_json(path, _Tokenizer)  # nobody writes it like that, but for us
    return beginning


def _closes(end: bytes) -> bool:
    """Whether the last part of a compact file ends as all of it does, and in no string.

    It may begin in one, which nobody knows: read the other way round, what stands in strings is no JSON.
    """
    quote = re.search(rb'(?<!\\)"', end)
    if quote is None or not (COMPACT.fullmatch(end[-4:]) or COMPACT.fullmatch(end[-3:])):
        return False
    return any(CLOSED.fullmatch(end, start) for start in quote.span())


def _end_ids(
    folder: Path, beginning: bytes, tokens: _TokenizerConfig, special: Mapping[str, str]
) -> list[int]:
    if (end := special.get("eos_token")) is None:
        return []
    ids = [number for number, token in tokens.added_tokens_decoder.items() if token.content == end]
    if ids:
        return ids
    added = _added_in(beginning)
    if added is None:  # a file of many megabytes, for what the small one does not say
        added = read_json(folder / TOKENIZER, _Tokenizer).added_tokens
    return [token.id for token in added if token.content == end]


def _added_in(beginning: bytes) -> list[_AddedToken] | None:
    """The added tokens in the first part of a `tokenizer.json`; None where not all of them stand there."""
    before, behind, _ = beginning.partition(BEHIND_ADDED)
    if not behind:
        return None
    try:
        return msgspec.json.decode(before.rstrip(b" \t\r\n,") + b"}", type=_Beginning).added_tokens
    except msgspec.MsgspecError:
        return None


def _templates(folder: Path, tokens: _TokenizerConfig) -> dict[str, str]:
    """Chat templates by name, the default first. Those in files of their own count more than what stands in
    JSON, as transformers has it."""
    path = folder / "chat_template.json"
    found = read_json(path, _TemplateFile).chat_template if path.exists() else tokens.chat_template
    path = folder / "chat_template.jinja"
    if path.exists():
        found = read_text(path)
    if isinstance(found, str):
        templates = {"default": found} if found else {}
    else:
        templates = {each.name: each.template for each in found or ()}
    for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja")):
        templates[path.stem] = read_text(path)
    return dict(sorted(templates.items(), key=lambda item: item[0] != "default"))


def _content(token: str | _AddedToken) -> str:
    return token if isinstance(token, str) else token.content
