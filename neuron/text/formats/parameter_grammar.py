"""Grammars for arguments that are written one by one, as bare text between tags.

Arguments come in the order of the schema's properties, and no others come than these. A string has the
characters that its schema allows and never the tag that ends it; anything else is JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neuron.text.formats.lark import TEXT_GRAMMAR, Lark, TextGrammar, quoted
from neuron.text.formats.members import NOTES, Unfit, fitting, members, named, several
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


NAME = re.compile(r"[^<>\"'\s][^<>\"'\n\r\t]*")  # of an argument, where it can stand in a tag
ANY_NAME = r"/[A-Za-z_][A-Za-z0-9_]{0,62}/"
ANY_TEXT = "/(?s:.*)/"
# What would be read as something else than a string.
_NO_STRING = r"/\s*(-?[0-9][0-9.eE+\-]*|true|false|null|True|False|None|\[(?s:.*)|\{(?s:.*))\s*/"
_STRING_KEYS = {"type", "minLength", "maxLength", "pattern", "format"}
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
    others = schema.get("additionalProperties", True)
    if not schema.get("properties") and others is not False:
        written = _parameter(lark.terminal(ANY_NAME), others, schema, tags, lark)
        return several(written, schema.get("minProperties", 0), schema.get("maxProperties"), lark)
    if named(fit := fitting(schema, NAME.fullmatch)):
        return members(fit, lambda key, each: _parameter(lark.text(key), each, schema, tags, lark), lark)
    any_text = string([ANY_TEXT], tags, lark, alone=True)
    name = lark.terminal(ANY_NAME)
    return f"({lark.text(tags.before)} {name} {lark.text(tags.between)} {any_text})*"


def _parameter(key: str, schema: Any, root: Mapping[str, Any], tags: Tags, lark: Lark) -> str:
    """One argument; `key` is what its name is written with."""
    head = f"{lark.text(tags.before)} {key} {lark.text(tags.between)}"
    if (text := held_text(schema, tags, lark)) is not None:
        return f"{head} {text}"
    try:
        strings, others = split(schema, root)
    except Unfit:  # a string about which more is asked than can be told: any
        strings, others = [ANY_TEXT], []
    ways = []
    if strings:
        said = string(strings, tags, lark, alone=not others or bool(tags.between_json))
        ways.append(f"{head} {said}")
    if others:
        definitions = {name: root[name] for name in ("$defs", "definitions") if name in root}
        value = lark.json({**(others[0] if len(others) == 1 else {"anyOf": others}), **definitions})
        if tags.between_json:
            head = f"{lark.text(tags.before)} {key} {lark.text(tags.between_json)}"
        ways.append(f"{head} {value} {lark.text(tags.after)}")
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
        pattern = schema["pattern"]
        signs = _SIGNS.findall(pattern)
        begins, ends = signs[:1] == ["^"], signs[-1:] == ["$"]
        between = signs[begins : len(signs) - ends]
        if "^" in between or "$" in between or ((begins or ends) and _has_ways(between)):
            raise Unfit
        from llguidance import regex_to_lark  # a tenth of what a check takes to start

        inner = regex_to_lark(pattern[begins : len(pattern) - ends], "dws")
        wanted.append(f"/{'' if begins else '(?s:.*)'}({inner}){'' if ends else '(?s:.*)'}/")
    return " & ".join(wanted) if wanted else ANY_TEXT


_SIGNS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", re.DOTALL)  # of a regular expression


def _has_ways(signs: list[str]) -> bool:
    """Whether there is a `|` that stands in no parentheses."""
    depth = 0
    for sign in signs:
        depth += (sign == "(") - (sign == ")")
        if sign == "|" and not depth:
            return True
    return False


def _escaped(pattern: str) -> str:
    """A regular expression in Lark, where slashes end it."""
    return re.sub(r"(?<!\\)/", r"\\/", pattern)
