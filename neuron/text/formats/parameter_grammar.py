"""Grammars for arguments that are written one by one, as bare text between tags.

Arguments come in the order of the schema's properties, and no others come than these. A string has the
characters that its schema allows and never the tag that ends it; anything else is JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llguidance import regex_to_lark

from neuron.text.formats.lark import TEXT_GRAMMAR, Lark, TextGrammar, quoted
from neuron.text.formats.schema_types import ANY, referred, type_of, types_of


@dataclass(frozen=True, slots=True)
class Tags:
    """What stands around the key and the value of an argument.

    Attributes:
        before, between, after: the key, its value, and what follows.
        never: what no bare string has in it.
        between_json: instead of `between`, where the value is JSON.
    """

    before: str
    between: str
    after: str
    never: str
    between_json: str = ""


class Unfit(Exception):
    """No grammar can be made of a schema in this way."""


NAME = re.compile(r"[^<>\"'\s][^<>\"'\n\r\t]*")  # of an argument, where it can stand in a tag
ANY_NAME = r"/[A-Za-z_][A-Za-z0-9_]{0,62}/"
ANY_TEXT = "/(?s:.*)/"
# What would be read as something else than a string.
_NO_STRING = r"/\s*(-?[0-9][0-9.eE+\-]*|true|false|null|True|False|None|\[(?s:.*)|\{(?s:.*))\s*/"
OBJECT_KEYS = {"type", "properties", "required", "additionalProperties"}
_STRING_KEYS = {"type", "minLength", "maxLength", "pattern", "format"}
NOTES = {
    *("$anchor", "$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated"),
    *("description", "examples", "id", "readOnly", "title", "writeOnly", "nullable", TEXT_GRAMMAR),
}
_DATE, _TIME = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])", "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
_FORMATS = {  # a part of what each allows, and nothing else
    "date": _DATE,
    "time": f"{_TIME}Z",
    "date-time": f"{_DATE}T{_TIME}(\\.[0-9]{{1,6}})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    "duration": "P[0-9]{1,4}[DWMY]",
    "email": "[A-Za-z0-9_+-]+(\\.[A-Za-z0-9_+-]+)*@([A-Za-z0-9]+\\.)+[A-Za-z]{2,}",
    "hostname": "[A-Za-z0-9]{1,63}(\\.[A-Za-z0-9]{1,63}){0,3}",
    "ipv4": "((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])",
    "ipv6": "([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}",
    "uri": "[a-z][a-z0-9+.-]{1,15}://[A-Za-z0-9._~:/?#@!$&'()*+,;=-]+",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
}


def parameters(schema: Mapping[str, Any], tags: Tags, lark: Lark) -> str:
    """The arguments of a call, valid against `schema`; where no grammar can be made of it, any arguments."""
    try:
        return _known(schema, tags, lark)
    except Unfit:
        any_text = string([ANY_TEXT], tags, lark, alone=True)
        name = lark.terminal(ANY_NAME)
        return f"({lark.text(tags.before)} {name} {lark.text(tags.between)} {any_text})*"


def _known(schema: Mapping[str, Any], tags: Tags, lark: Lark) -> str:
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    open_ended = not properties and schema.get("additionalProperties", True) is not False
    if open_ended or not schema.keys() <= OBJECT_KEYS | NOTES or not {*required} <= properties.keys():
        raise Unfit
    written = []
    for key, each in properties.items():
        if not NAME.fullmatch(key):
            raise Unfit
        rule = lark.rule(_parameter(key, each, schema, tags, lark))
        written.append(rule if key in required else f"{rule}?")
    return " ".join(written)


def _parameter(key: str, schema: Any, root: Mapping[str, Any], tags: Tags, lark: Lark) -> str:
    """One argument."""
    if (text := held_text(schema, tags, lark)) is not None:
        return f"{lark.text(tags.before + key + tags.between)} {text}"
    try:
        strings, others = split(schema, root)
    except Unfit:  # a string about which more is asked than can be told: any
        strings, others = [ANY_TEXT], []
    ways = []
    if strings:
        said = string(strings, tags, lark, alone=not others or bool(tags.between_json))
        ways.append(f"{lark.text(tags.before + key + tags.between)} {said}")
    if others:
        definitions = {name: root[name] for name in ("$defs", "definitions") if name in root}
        value = lark.json({**(others[0] if len(others) == 1 else {"anyOf": others}), **definitions})
        between = tags.between_json or tags.between
        ways.append(f"{lark.text(tags.before + key + between)} {value} {lark.text(tags.after)}")
    return " | ".join(ways)


def string(contents: list[str], tags: Tags, lark: Lark, alone: bool) -> str:
    """A bare string and what follows it.

    Args:
        contents: terminals, of which it is one.
        alone: it cannot be taken for something else.
    """
    never = f" & ~/(?s:.*){_escaped(re.escape(tags.never))}(?s:.*)/"
    other = "" if alone else f" & ~{_NO_STRING}"
    content = f"(({' | '.join(contents)}){never}{other})"
    if lark.has_token(tags.after):  # no part of any terminal
        return f"{lark.terminal(content)} {lark.text(tags.after)}"
    return lark.terminal(f"{content} {quoted(tags.after)}")


def held_text(schema: Any, tags: Tags, lark: Lark) -> str | None:
    """A bare string that has a grammar of its own, and what follows it; None where none can be told."""
    grammar: TextGrammar | None = schema.get(TEXT_GRAMMAR) if isinstance(schema, Mapping) else None
    if grammar is None:
        return None
    inner = grammar.before(tags.never, None if lark.begins_with_token(tags.after) else tags.after[0])
    return None if inner is None else f"{lark.nested(inner)} {lark.text(tags.after)}"


def split(schema: Any, root: Mapping[str, Any], depth: int = 8) -> tuple[list[str], list[Any]]:
    """The strings that `schema` allows, as terminals, and schemas of what else it allows.

    Raises:
        Unfit: it says something about strings that cannot be told.
    """
    if not isinstance(schema, Mapping) or not schema:
        return [ANY_TEXT], [{"type": sorted(ANY - {"string"})}] if schema is not False else []
    types = types_of(schema, root)
    if "string" not in types:
        return [], [schema]
    keys = schema.keys() - NOTES
    if depth == 0:
        raise Unfit
    if keys == {"$ref"}:
        return split(referred(schema["$ref"], root), root, depth - 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if keys - {"type"} == {key} and (key != "allOf" or len(schema[key]) == 1):
            parts = [split(each, root, depth - 1) for each in schema[key]]
            return [each for strings, _ in parts for each in strings], [
                each for _, others in parts for each in others
            ]
    if keys - {"type"} in ({"enum"}, {"const"}):
        allowed = schema["enum"] if "enum" in schema else [schema["const"]]
        others = [each for each in allowed if type_of(each) in types and not isinstance(each, str)]
        strings = [each for each in allowed if isinstance(each, str)]
        return [*map(quoted, strings)], [{"enum": others}] if others else []
    if types == {"string"} and not keys <= _STRING_KEYS:
        raise Unfit
    others = types - {"string"} - ({"integer"} if "number" in types else set())
    return [_pattern(schema)], [{**schema, "type": sorted(others)}] if others else []


def _pattern(schema: Mapping[str, Any]) -> str:
    """The terminal of the strings that `schema` allows."""
    wanted = []
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    if least or most != "":
        wanted.append(f"/(?s:.{{{least},{most}}})/")
    if "format" in schema and schema["format"] in _FORMATS:
        wanted.append(f"/{_escaped(_FORMATS[schema['format']])}/")
    if "pattern" in schema:
        pattern, within = schema["pattern"], re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\((?:\?.)?")
        bare = within.sub("", pattern)
        if "|" in bare or bare.strip("^$").find("^") >= 0 or bare.strip("^$").find("$") >= 0:
            raise Unfit
        begins, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
        inner = regex_to_lark(pattern[begins : len(pattern) - ends], "dws")
        wanted.append(f"/{'' if begins else '(?s:.*)'}({inner}){'' if ends else '(?s:.*)'}/")
    return " & ".join(wanted) if wanted else ANY_TEXT


def _escaped(pattern: str) -> str:
    """A regular expression in Lark, where slashes end it."""
    return re.sub(r"(?<!\\)/", r"\\/", pattern)
