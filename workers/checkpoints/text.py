"""What stands beside a tokenizer in a checkpoint: chat templates, special tokens, tokens that end a text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from workers.checkpoints.files import open_file, read_json, read_text

TOKENIZER = "tokenizer.json"
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


class _TemplateFile(msgspec.Struct):
    chat_template: str | list[_NamedTemplate]


def read(folder: Path) -> TextFormat:
    """What the files in `folder` say.

    Raises:
        CortexError: MODEL_LOAD_FAILED, there is no tokenizer, or a file is damaged.
    """
    open_file(folder / TOKENIZER).close()
    path = folder / "tokenizer_config.json"
    tokens = read_json(path, _TokenizerConfig) if path.exists() else _TokenizerConfig()
    special = {name: _content(token) for name in SPECIAL if (token := getattr(tokens, name)) is not None}
    return TextFormat(_templates(folder, tokens), special, _end_ids(folder, tokens, special))


def added(folder: Path) -> dict[str, int]:
    """The tokens that a tokenizer in `folder` finds whole in any text, by how they are written."""
    path = folder / TOKENIZER
    tokens = read_json(path, _Tokenizer).added_tokens if path.exists() else []
    return {token.content: token.id for token in tokens if token.content}


def _end_ids(folder: Path, tokens: _TokenizerConfig, special: Mapping[str, str]) -> list[int]:
    if (end := special.get("eos_token")) is None:
        return []
    ids = [number for number, token in tokens.added_tokens_decoder.items() if token.content == end]
    if ids:
        return ids
    # a file of many megabytes, for what the small one does not say
    added = read_json(folder / TOKENIZER, _Tokenizer).added_tokens
    return [token.id for token in added if token.content == end]


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
